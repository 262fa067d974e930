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
from libkd.data import Samples
from libkd.teachers import (ChanceError, Teacher, as_teacher, bias_of, check_teacher, fit_teacher, labelled_loader, load_teacher,
                            model_for, model_name, stats_of, warn_if_uneven)
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
def good(dls, folder): return fit_teacher('resnet_mini', dls, epochs=4, folder=folder)

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

def test_fingerprint_does_not_see_name_mode_or_process(net, tmp_path):
    t = Teacher(net.eval(), 'abc', name='one')
    assert t.fingerprint == Teacher(net.train(), 'abc', name='two', accuracy=.5).fingerprint
    save_file(net.state_dict(), tmp_path/'w.safetensors')
    code = f"from libkd.teachers import as_teacher; print(as_teacher({str(tmp_path/'w.safetensors')!r}, arch='resnet_mini', classes='abc').fingerprint)"
    assert subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True).stdout.strip() == t.fingerprint

def test_fingerprint_of_half_precision_and_empty_buffers(net):
    t = Teacher(net.to(torch.bfloat16), 'abc')
    assert re.fullmatch('[0-9a-f]{64}', t.fingerprint)


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
        (FileNotFoundError, 'teacher.json', lambda: load_teacher(tmp_path)),
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

def test_another_argument_seed_or_image_is_another_teacher(dls, folder, good):
    def paths(**kw): return teachers._data_digest(kw.get('dls', dls), kw.get('dls', dls).samples)
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
        digests.append((d.samples.digest(), teachers._data_digest(d, d.samples)))
    assert digests[0][0] == digests[1][0] and digests[0][1] != digests[1][1]

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
    whole = next(p for p in folder.iterdir() if json.loads((p/'teacher.json').read_text())['args']['seed'] == 0)
    p = Path(shutil.copytree(whole, tmp_path/whole.name))
    damage(p)
    with pytest.raises((ValueError, FileNotFoundError), match=words): fit_teacher('resnet_mini', dls, epochs=4, folder=tmp_path)
def _flip(p): b = bytearray(p.read_bytes()); b[-5] ^= 64; p.write_bytes(bytes(b))
def _cut(p): p.write_bytes(p.read_bytes()[:-100])

def test_killed_while_saving_leaves_no_folder(dls, tmp_path, monkeypatch, good):
    def dies(folder, t, info): (folder/'model.safetensors').write_bytes(b'half'); raise KeyboardInterrupt
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
    assert str(folder) not in text and os.sep + 'tmp' not in text and set(json.loads(text)['args']) == {'name', 'epochs', 'lr', 'wd', 'pretrained', 'seed', 'data'}
