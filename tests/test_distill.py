"The callback: training only, every term counted, nothing leaks, the same in any order; and the faults that other libraries have here."
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.schedule import SchedLin
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.learner import Learner, load_learner
from fastai.metrics import accuracy
from torch import nn

import tiny
from libkd.cache import CacheMismatch, LogitCache
from libkd.distill import METHODS, MultiTeacherDistill, cite, distill_learner, load_student, save_student
from libkd.losses import hard_kd_loss, kd_loss
from libkd.teachers import ChanceError, Teacher
from libkd.views import Mix, finite, replay

SMALL = dict(depth=1, embed_dim=32, num_heads=2)


def two(): return [tiny.teacher('a', 1), tiny.teacher('b', 2, bias='inv')]


def learner(dls=None, teachers='two', student='civt_nano', **kw):
    dls = dls or tiny.loaders()
    teachers = two() if teachers == 'two' else teachers
    kw = {'seed': 0, 'check': False, 'verbose': False, 'student_kw': SMALL if isinstance(student, str) else None, **kw}
    return distill_learner(dls, student, teachers=teachers, **kw)


def fit(learn, n=1, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, **kw)
    return [float(o) for o in learn.recorder.losses]


class Steps(Callback):
    "Logits, labels, loss and gradients of every training step"
    order = 100
    def __init__(self): self.seen = []
    def before_step(self): self.seen.append([self.loss_grad.item(), {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}])


# -- what the loss is ------------------------------------------------------------------------------------------------------

def test_the_step_is_the_formula():
    "One step of co-advise against the sum written out by hand: loss and every gradient"
    learn = learner(cbs=(steps := Steps()))
    x, y = learn.dls.one_batch()
    copy = tiny.student(); copy.load_state_dict(learn.model.state_dict())
    class One(Callback):
        def before_batch(self): self.learn.xb, self.learn.yb = (x,), (y,)
    learn.add_cb(One()); fit(learn)
    copy.train().set_distilled_training(True)
    out, plain = copy(x), x.as_subclass(torch.Tensor)
    a, b = (t.logits(plain, stats=learn.dls.stats).clone() for t in two())
    def kl(s, t): return (t.softmax(1)*(t.log_softmax(1) - s.log_softmax(1))).sum(1).mean()
    want = nn.functional.cross_entropy(out['cls'], y.as_subclass(torch.Tensor)) + kl(out['conv'], a) + kl(out['inv'], b)
    want.backward()
    loss, grads = steps.seen[0]
    assert abs(loss - want.item()) < 1e-5
    assert grads and all(torch.allclose(grads[n], p.grad, atol=1e-5) for n, p in copy.named_parameters())


def test_terms_are_columns_and_sum_to_the_loss():
    learn = learner(weights={'a': 2., 'b': .5}, label_weight=.3)
    losses = raw_losses(learn, 1)
    names, row = learn.recorder.metric_names, learn.recorder.values[-1]
    assert list(names)[:-1] == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'label', 'kd_a', 'kd_b']
    assert all(v > 0 for v in row[3:6]) and abs(sum(row[3:6]) - losses.mean()) < 1e-5


def raw_losses(learn, n=2):
    "The loss of every training step, not smoothed"
    out = []
    class Raw(Callback):
        order = 90
        def after_loss(self):
            if self.training: out.append(self.loss_grad.item())
    learn.add_cb(Raw()); fit(learn, n)
    return np.array(out)


@pytest.mark.parametrize('student', ['civt_nano', 'vit_nano'])
def test_order_of_teachers_changes_nothing(student):
    three = two() + [tiny.teacher('c', 3)]
    a, b = raw_losses(learner(teachers=three, student=student)), raw_losses(learner(teachers=three[::-1], student=student))
    assert (a == b).all() and len(a) > 3


def test_one_teacher_in_a_list_is_the_single_teacher():
    one = dict(student='vit_nano', method='kd')
    assert (raw_losses(learner(teachers=[two()[0]], **one)) == raw_losses(learner(teachers=two()[0], **one))).all()


@pytest.mark.parametrize('dtype, tol', [('float32', 1e-6), ('float16', 4e-3)])
@pytest.mark.parametrize('policy', [finite(2), replay(2)])
@pytest.mark.parametrize('mix', [None, Mix()])
def test_stored_and_live_answers_give_the_same_losses(tmp_path, policy, mix, dtype, tol):
    dls = tiny.loaders(mix=mix)
    cache = LogitCache.build(tmp_path/'c', dls, two(), views=policy, dtype=dtype, check=False)
    live = learner(dls); live.dls.train.policy = policy
    a, b = raw_losses(live), raw_losses(learner(dls, teachers=cache))
    assert len(a) == len(b) > 3 and abs(a - b).max() <= tol*max(1, abs(a).max())


def test_stored_and_live_teachers_together(tmp_path):
    dls = tiny.loaders()
    cache = LogitCache.build(tmp_path/'c', dls, two()[0], views=2, dtype='float32', check=False)
    live = learner(dls); live.dls.train.policy = finite(2)
    assert abs(raw_losses(live) - raw_losses(learner(dls, teachers=[two()[1], cache]))).max() < 1e-5


def test_several_teachers_on_one_head_are_their_mean_probability():
    "methods: sum_i w_i KL(p_i‖q) has the gradient of KL(mean p‖q)"
    x = torch.randn(4, 3, requires_grad=True)
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    (.5*kd_loss(x, a) + .5*kd_loss(x, b)).backward(); g = x.grad.clone(); x.grad = None
    kd_loss(x, (.5*a.softmax(1) + .5*b.softmax(1)).log()).backward()
    assert torch.allclose(g, x.grad, atol=1e-6)


def test_lib_kd_shares_the_weight_among_teachers():
    learn = learner(student='vit_nano')
    cb = learn.multi_teacher_distill
    assert cb.weights == {'a': .25, 'b': .25} and cb.label_weight == .5 and set(cb.T.values()) == {4.}


def test_deit_teaches_its_own_token_the_decision():
    learn = learner(student='deit_nano', teachers=two()[0])
    cb = learn.multi_teacher_distill
    fit(learn)
    assert cb.route == {'dist': ['a']} and cb.losses['a'] is hard_kd_loss and cb.label_weight == .5


def test_schedule_follows_the_progress():
    "With a schedule that is 0 the teachers say nothing"
    silent = learner(schedule=lambda p: 0.)
    fit(silent)
    assert silent.recorder.values[-1][4:6] == [0., 0.] and silent.recorder.values[-1][3] > 0
    learn, seen = learner(schedule=SchedLin(1., 0.)), []
    learn.multi_teacher_distill.schedule = lambda p, f=SchedLin(1., 0.): seen.append(float(p)) or f(p)
    fit(learn, 2)
    assert seen == sorted(seen) and seen[0] < .1 and seen[-1] > .7


# -- training only ---------------------------------------------------------------------------------------------------------

def test_validation_is_the_same_bits_with_and_without():
    learn = learner(); fit(learn)
    with_cb = learn.validate()
    logits = learn.get_preds(act=nn.Identity())[0]
    learn.remove_cb(MultiTeacherDistill)
    assert list(learn.validate()) == list(with_cb) and torch.equal(learn.get_preds(act=nn.Identity())[0], logits)


def test_valid_loss_of_a_fit_is_the_plain_loss():
    learn = learner(); fit(learn)
    valid_loss = learn.recorder.values[-1][1]
    z, y = learn.get_preds(act=nn.Identity())
    assert abs(valid_loss - nn.functional.cross_entropy(z, y.as_subclass(torch.Tensor)).item()) < 1e-6


def test_teachers_get_no_gradient_and_do_not_change():
    teachers = two()
    before = [t.fingerprint for t in teachers]
    learn = learner(teachers=teachers); fit(learn)
    for t, f in zip(teachers, before):
        assert all(p.grad is None and not p.requires_grad for p in t.model.parameters()) and not t.model.training
        assert Teacher(t.model, t.classes, name=t.name, bias=t.bias).fingerprint == f


def test_exactly_one_forward_a_step():
    learn, n = learner(), []
    learn.model.register_forward_hook(lambda *a: n.append(learn.training))
    fit(learn)
    assert n.count(True) == len(learn.dls.train)


class Boom(Callback):
    def __init__(self, event): setattr(self, event, self.boom)
    def boom(self):
        if self.training: raise ZeroDivisionError('on purpose')


@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_loss', 'before_step'])
def test_the_student_is_an_ordinary_model_after_an_exception(event):
    learn = learner(cbs=Boom(event))
    with pytest.raises(ZeroDivisionError): fit(learn)
    assert not learn.model.distilled_training
    learn.remove_cb(Boom)
    x = torch.randn(2, 3, 8, 8)
    fit(learn)
    assert isinstance(learn.model.train()(x), torch.Tensor) and len(learn.validate()) == 2


def test_the_mode_is_off_after_a_forward_that_fails():
    learn = learner()
    def fail(*_): raise MemoryError
    h = learn.model.norm.register_forward_hook(fail)
    with pytest.raises(MemoryError): fit(learn)
    h.remove()
    assert not learn.model.distilled_training


# -- with fastai ------------------------------------------------------------------------------------------------------------

def test_gradient_accumulation_keeps_the_teachers():
    "The published code loses its distillation terms here"
    plain = learner(cbs=[Steps()]); fit(plain)
    grads = {}
    for weight in (1., 2.):
        steps = Steps()
        fit(learner(weights=weight, cbs=[steps, GradientAccumulation(12)]))
        grads[weight] = steps.seen[0][1]['head_conv.weight']
    assert torch.allclose(grads[2.], 2*grads[1.], rtol=1e-3) and grads[1.].abs().sum() > 0


def test_exported_learner_holds_no_teacher_and_predicts(tmp_path):
    big = nn.Sequential(tiny.Linear(1), nn.Linear(3, 3)); big.register_buffer('ballast', torch.rand(1_000_000))
    learn = learner(teachers=[Teacher(big, tiny.CLASSES, name='a', bias='conv'), two()[1]])
    fit(learn); learn.path = tmp_path; learn.export()
    assert (tmp_path/'export.pkl').stat().st_size < 1_000_000
    code = f"import sys; sys.path.insert(0, 'tests'); from fastai.learner import load_learner; import numpy as np; l = load_learner(r'{tmp_path}/export.pkl'); c = l.no_bar(); c.__enter__(); print('\\n', l.predict(np.full((8, 8, 3), 99, np.uint8))[2].tolist())"
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True).stdout
    with learn.no_bar(): want = learn.predict(np.full((8, 8, 3), 99, np.uint8))[2]
    assert torch.allclose(torch.tensor(eval(out.splitlines()[-1].split('\r')[-1])), want, atol=1e-6)
    with pytest.raises(ValueError, match='its teachers stayed behind'):
        again = load_learner(tmp_path/'export.pkl'); again.dls = learn.dls; fit(again)


def test_lr_find_uses_up_no_views(tmp_path):
    dls = tiny.loaders()
    cache = LogitCache.build(tmp_path/'c', dls, two(), views=replay(2), check=False)
    learn = learner(dls, teachers=cache)
    with learn.no_bar(): learn.lr_find(num_it=4, show_plot=False)
    fit(learn, 2)
    assert len(learn.recorder.values) == 2


def test_early_stopping_and_save_model_see_the_plain_loss(tmp_path):
    learn = learner(); learn.path = tmp_path
    fit(learn, 3, cbs=[SaveModelCallback(), EarlyStoppingCallback(patience=1, min_delta=100.)])
    assert (tmp_path/'models'/'model.pth').is_file() and len(learn.recorder.values) == 2


def test_mixup_of_the_batch_is_refused_for_stored_answers_and_shown_to_live_teachers(tmp_path):
    dls = tiny.loaders()
    cache = LogitCache.build(tmp_path/'c', dls, two(), views=2, check=False)
    with pytest.raises(CacheMismatch, match=r'mix=Mix\(\)'): fit(learner(dls, teachers=cache, cbs=MixUp()))
    teachers, seen, checked = two(), [], []
    f = teachers[0].logits
    teachers[0].logits = lambda x, stats=None: seen.append(x.clone()) or f(x, stats=stats)
    class SameInput(Callback):
        order = 99
        def after_loss(self):
            if self.training: checked.append(torch.equal(self.xb[0].as_subclass(torch.Tensor), seen[-1]))
    fit(learner(dls, teachers=teachers, cbs=[MixUp(), SameInput()]))
    assert checked and all(checked)


def test_a_callback_added_by_hand_to_an_ordinary_learner():
    learn = Learner(tiny.loaders(), tiny.student(), metrics=accuracy, cbs=MultiTeacherDistill(two()))
    fit(learn)
    assert list(learn.recorder.metric_names)[-3:-1] == ['kd_a', 'kd_b']


def test_plain_training_uses_the_labelled_samples_only():
    dls = tiny.loaders(unlabelled=12)
    learn = learner(dls, teachers=None)
    fit(learn)
    assert len(learn.dls.train_ds) == 6 and len(learn.dls.train) == len(dls.train) and all(np.isfinite(learn.recorder.losses)) and len(dls.train_ds) == 18
    taught = learner(dls)
    fit(taught)
    assert len(taught.dls.train_ds) == 18 and all(np.isfinite(o) for o in taught.recorder.losses)


def test_the_given_loaders_stay_as_they_were():
    dls = tiny.loaders()
    a = dls.train.rng.getstate(), dls.train.policy, dls.train.epoch
    fit(learner(dls))
    assert (dls.train.rng.getstate(), dls.train.policy, dls.train.epoch) == a


def test_a_seed_fixes_everything_and_another_changes_it():
    assert (raw_losses(learner(seed=3)) == raw_losses(learner(seed=3))).all() and (raw_losses(learner(seed=3)) != raw_losses(learner(seed=4))).any()


class Killed(Callback):
    order = 20
    def __init__(self, epoch, at=None): self.stop, self.at = epoch, at
    def before_batch(self):
        if self.training and self.epoch == self.stop and self.iter == (self.at or 0): raise KeyboardInterrupt


@pytest.mark.parametrize('epoch, batch', [(1, 0), (2, 1), (3, 2)])
def test_a_killed_fit_continues_with_the_same_history(tmp_path, epoch, batch):
    kw = dict(student_kw={**SMALL, 'drop_rate': .2}, teachers=two())
    whole = learner(**kw)
    with whole.no_bar(), whole.no_logging(): whole.fit_one_cycle(4, 1e-3)
    first = learner(**kw, resume=tmp_path, cbs=Killed(epoch, batch))
    with pytest.raises(KeyboardInterrupt), first.no_bar(), first.no_logging(): first.fit_one_cycle(4, 1e-3)
    second = learner(**kw, resume=tmp_path)
    with second.no_bar(), second.no_logging(): second.fit_one_cycle(4, 1e-3)
    assert [list(v) for v in second.recorder.values] == [list(v) for v in whole.recorder.values]
    assert all(torch.equal(a, b) for a, b in zip(second.model.state_dict().values(), whole.model.state_dict().values()))
    with pytest.raises(ValueError, match='4 epochs, and 5'), second.no_bar(), second.no_logging(): learner(**kw, resume=tmp_path).fit_one_cycle(5)


# -- a saved student --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('heads', ['two', 'one'])
def test_a_saved_student_is_timms_own(tmp_path, heads):
    import timm
    learn = learner(teachers='two' if heads == 'two' else two()[0]); fit(learn)
    model, cfg = load_student(save_student(learn, tmp_path/'s'))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(): assert torch.allclose(model(x), learn.model.eval()(x), atol=1e-6)
    assert cfg['label_names'] == tiny.CLASSES and set(model.state_dict()) == set(learn.model.state_dict())
    assert 'taught by' in (tmp_path/'s'/'README.md').read_text().lower()


# -- two processes ----------------------------------------------------------------------------------------------------------

DDP = '''
import sys, os; sys.path.insert(0, 'tests')
import torch, torch.distributed as dist, tiny
from torch.nn.parallel import DistributedDataParallel as DDP
from fastai.callback.core import Callback
from fastai.learner import Learner
from libkd.distill import MultiTeacherDistill
torch.set_num_threads(1)
dist.init_process_group('gloo')
rank = dist.get_rank()
dls = tiny.loaders()
x, y = dls.train.new(shuffle=False, bs=12).one_batch()
forwards = []
class Halves(Callback):
    order = -100
    def before_batch(self): self.learn.xb, self.learn.yb = (x[rank*6:rank*6+6],), (y.as_subclass(torch.Tensor)[rank*6:rank*6+6],)
class Stop(Callback):
    def before_step(self):
        if rank == 0: torch.save({n.removeprefix('module.'): p.grad for n, p in self.model.named_parameters()}, sys.argv[1])
        from fastai.callback.core import CancelFitException
        raise CancelFitException
model = DDP(tiny.student())
model.module.patch_embed.register_forward_hook(lambda *a: forwards.append(1))
for m in model.modules():
    if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.eval = m.train = lambda *a, **k: m; m.training = False
learn = Learner(dls, model, loss_func=torch.nn.functional.cross_entropy, cbs=[MultiTeacherDistill([tiny.teacher('a', 1), tiny.teacher('b', 2, bias='inv')]), Halves(), Stop()])
with learn.no_bar(), learn.no_logging(): learn.fit(1)
assert len(forwards) == 1, forwards
'''


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path):
    (tmp_path/'ddp.py').write_text(DDP)
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    out = subprocess.run([sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--master-port', '0', '--standalone', tmp_path/'ddp.py', tmp_path/'grads.pt'], capture_output=True, text=True, env=env, timeout=300)
    assert out.returncode == 0, out.stderr[-2000:]
    got = torch.load(tmp_path/'grads.pt', weights_only=True)
    dls = tiny.loaders()
    x, y = dls.train.new(shuffle=False, bs=12).one_batch()
    model = tiny.student().train()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm): m.eval()
    model.set_distilled_training(True)
    z, plain = model(x.as_subclass(torch.Tensor)), x.as_subclass(torch.Tensor)
    a, b = (t.logits(plain, stats=dls.stats).clone() for t in two())
    (nn.functional.cross_entropy(z['cls'], y.as_subclass(torch.Tensor)) + kd_loss(z['conv'], a) + kd_loss(z['inv'], b)).backward()
    for n, p in model.named_parameters(): assert torch.allclose(got[n], p.grad, atol=1e-5), n


# -- misuse: one sentence that says what was given and how to get what is needed ------------------------------------------------

@pytest.mark.parametrize('kw, error, said', [
    (dict(method='coadvise'), KeyError, "Did you mean 'co-advise'"),
    (dict(student='civt_nanno'), ValueError, 'civt_nano'),
    (dict(route={'cnv': 'a', 'inv': 'b'}), ValueError, 'cnv'),
    (dict(route={'conv': 'a', 'inv': 'c'}), ValueError, "No teacher is called 'c'"),
    (dict(route={'conv': 'a'}), ValueError, 'leaves out teacher b'),
    (dict(loss='kdd'), KeyError, "did you mean 'kd'"),
    (dict(T=0.), ValueError, 'above 0'), (dict(T=-1.), ValueError, 'above 0'), (dict(T={'c': 1.}), ValueError, "'c'"),
    (dict(weights=0.), ValueError, 'All weights are 0'), (dict(weights=-1.), ValueError, '0 or more'),
    (dict(teachers=[]), ValueError, 'empty'),
    (dict(teachers=[tiny.teacher('a', 1), tiny.teacher('a', 2)]), ValueError, 'Two teachers are called a'),
    (dict(teachers=None, T=2.), ValueError, 'concern teachers'),
])
def test_misuse(kw, error, said):
    with pytest.raises(error, match=said):
        l = learner(**{**dict(student='civt_nano'), **kw}); fit(l)


def test_a_learner_is_not_a_student_and_a_stranger_no_teacher():
    dls = tiny.loaders()
    with pytest.raises(TypeError, match='learn.model'): learner(dls, student=Learner(dls, tiny.Linear()))
    with pytest.raises(TypeError, match='LogitCache or a Teacher'): MultiTeacherDistill([3])


def test_a_teacher_at_chance_is_refused_before_training():
    class Same(nn.Module):
        def forward(self, x): return torch.eye(3)[torch.zeros(len(x), dtype=torch.long)]
    bad = Teacher(Same(), tiny.CLASSES, name='bad', bias='conv')
    with pytest.raises(ChanceError, match='bad'): learner(teachers=bad, student='vit_nano', check=True)
    assert learner(teachers=bad, student='vit_nano', check=False)


def test_nan_stops_training_and_names_the_term():
    class Broken(nn.Module):
        def forward(self, x): return x.mean((2, 3)) / 0 * 0
    learn = learner(teachers=[two()[0], Teacher(Broken(), tiny.CLASSES, name='b', bias='inv')])
    with pytest.raises(ValueError, match='NaN|term b|nan'): fit(learn)
    good = learner(loss={'a': kd_loss, 'b': lambda s, t, y=None, *, T=1., reduction='mean': s.sum()*float('nan')})
    with pytest.raises(ValueError, match='epoch 0, batch 0: term b'): fit(good)


def test_batches_without_rows_are_refused(tmp_path):
    dls = tiny.loaders()
    cache = LogitCache.build(tmp_path/'c', dls, two(), views=2, check=False)
    learn = Learner(dls, tiny.student(), cbs=MultiTeacherDistill(cache))
    with pytest.raises(CacheMismatch, match='cache.bind'): fit(learn)


def test_out_of_memory_is_a_sentence():
    learn = learner()
    def fail(*_): raise torch.OutOfMemoryError('CUDA out of memory')
    learn.model.norm.register_forward_hook(fail)
    with pytest.raises(MemoryError, match=r'6 images of 8×8 pixels. Make the loaders with bs=3.*GradientAccumulation\(6\)'): fit(learn)


def test_methods_say_what_is_read_and_what_is_ours():
    for m in METHODS.values(): assert m.exact and m.reading and m.arxiv in cite(m.name)


def test_interpretation_works_on_our_loaders(tmp_path):
    import matplotlib.pyplot as plt
    from fastai.interpret import ClassificationInterpretation
    learn = learner(); fit(learn)
    with learn.no_bar():
        interp = ClassificationInterpretation.from_learner(learn)
        assert interp.confusion_matrix().sum() == len(learn.dls.valid_ds)
        interp.plot_top_losses(4); learn.show_results(max_n=4)
    assert len(plt.get_fignums()) == 2; plt.close('all')
