"The callback: training only, every term counted, nothing leaks, the same in any order; and the faults that other libraries have here."
import copy
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.schedule import SchedLin
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import IndexSplitter, get_image_files, parent_label
from fastai.learner import Learner, load_learner
from fastai.metrics import accuracy
from fastai.vision.augment import Resize
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock
from torch import nn

import tiny
import libkd.handover
from libkd import UserError
from libkd.cache import CacheMismatch, LogitCache
from libkd.data import Samples
from libkd.distill import MultiTeacherDistill
from libkd.files import publish
from libkd.handover import load_student, save_student
from libkd.learner import METHODS, cite, distill_learner, recipe
from libkd.losses import hard_kd_loss, kd_loss
from libkd.teachers import ChanceError, Teacher, fit_teacher, quick_adam
from libkd.views import Mix, finite, image_dls, replay

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


def test_heads_given_by_hand_are_taken():
    "The same student for one teacher as for two"
    heads = dict(cls='learned', conv='conv', inv='inv')
    learn = learner(teachers=tiny.teacher('a', 1), student_kw=SMALL | dict(heads=heads))
    assert learn.model.heads == tuple(heads)
    fit(learn)
    assert learn.model.heads == tuple(heads) and len(learn.recorder.values) == 1

def test_a_head_whose_teachers_weigh_nothing_learns_from_the_labels():
    "Else an untrained head would be a part of every answer; attention transfer, which hears layers alone, once stood 60 points below"
    for how in (dict(schedule=lambda p: 0.), dict(weights=dict(a=0., b=1.)), dict(weights=dict(a=lambda p: 0., b=1.))):
        learn = learner(cbs=(steps := Steps()), **how)
        fit(learn)
        grads = steps.seen[0][1]
        assert all(v.abs().sum() > 0 for n, v in grads.items() if 'head' in n), how
    assert learn.multi_teacher_distill.weights_at(0.) == dict(a=0., b=1.)


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


@pytest.mark.slow
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
    order, only_looks = 20, True
    def __init__(self, epoch, at=None): self.stop, self.at = epoch, at
    def before_batch(self):
        if self.training and self.epoch == self.stop and self.iter == (self.at or 0): raise KeyboardInterrupt


@pytest.mark.parametrize('epoch, batch, more', [(1, 0, {}), (2, 1, quick_adam(.05)), (3, 2, {})], ids=['1-0', '2-1-quick_adam', '3-2'])
def test_a_killed_fit_continues_with_the_same_history(tmp_path, epoch, batch, more):
    kw = dict(student_kw={**SMALL, 'drop_rate': .2}, teachers=two(), **more)
    whole = learner(**kw)
    with whole.no_bar(), whole.no_logging(): whole.fit_one_cycle(4, 1e-3)
    first = learner(**kw, resume=tmp_path, cbs=Killed(epoch, batch))
    with pytest.raises(KeyboardInterrupt), first.no_bar(), first.no_logging(): first.fit_one_cycle(4, 1e-3)
    second = learner(**kw, resume=tmp_path)
    with second.no_bar(), second.no_logging(): second.fit_one_cycle(4, 1e-3)
    assert [list(v) for v in second.recorder.values] == [list(v) for v in whole.recorder.values]
    assert all(torch.equal(a, b) for a, b in zip(second.model.state_dict().values(), whole.model.state_dict().values()))
    with pytest.raises(ValueError, match='epochs: kept 4, asked for 5'), second.no_bar(), second.no_logging(): learner(**kw, resume=tmp_path).fit_one_cycle(5)


def test_every_fit_has_a_state_of_its_own(tmp_path):
    "`fit` twice and `fine_tune`, which is two fits; a search for a rate is none; killed in the middle of the second"
    def train(cbs=(), resume=tmp_path):
        learn = learner(student_kw={**SMALL, 'drop_rate': .2}, resume=resume, cbs=list(cbs))
        with learn.no_bar(), learn.no_logging():
            learn.lr_find(num_it=3, show_plot=False)
            learn.fit(1)
            learn.fine_tune(2, 1e-3, freeze_epochs=1)
        return learn
    class Kill(Callback):
        order, only_looks = 20, True
        def before_batch(self):
            if self.training and self.learn.resume.fits == 3 and (self.epoch, self.iter) == (1, 1): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train([Kill()])
    assert sorted(p.name for p in tmp_path.glob('*.pt')) == ['fit-0.pt', 'fit-1.pt', 'fit-2.pt']
    a, b = train(), train(resume=None)
    assert [list(v) for v in a.recorder.values] == [list(v) for v in b.recorder.values]
    assert all(torch.equal(v, w) for v, w in zip(a.model.state_dict().values(), b.model.state_dict().values()))


def changed_data(what):
    data = tiny.samples()
    i = int(np.flatnonzero(data.parts == 'train')[0])
    if what == 'a pixel': data.items[i] = data.items[i].copy(); data.items[i][4, 4] ^= 255
    if what == 'a label': data.labels[i] = (data.labels[i] + 1) % 3
    return tiny.loaders(data=data)


def one_cycle(learn): learn.fit_one_cycle(2, 1e-2)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('finished')
    fit(learner(changed_data(''), resume=folder), 2, lr=1e-2)
    return folder


@pytest.mark.parametrize('kw, how, field', [
    (dict(teachers=[tiny.teacher('a', 5), tiny.teacher('b', 2, bias='inv')]), {}, 'teachers.a'), (dict(T=4.), {}, 'T.a'), (dict(weights={'b': .5}), {}, 'weights.b'),
    (dict(loss='hard'), {}, 'loss.a'), (dict(label_weight=.5), {}, 'label_weight'), (dict(schedule=SchedLin(1, 0)), {}, 'schedule'),
    (dict(weigh=lambda answers, y: torch.ones(len(answers), len(y))), {}, 'weigh'), (dict(seed=1), {}, 'student.tensors.*give seed='),
    (dict(teachers=None), {}, 'method'), (dict(student_kw={**SMALL, 'drop_rate': .3}), {}, 'student.settings'), (dict(method='deit', route={'conv': 'a', 'inv': 'b'}), {}, 'label_weight'),
    (dict(opt_func=quick_adam(.1)['opt_func']) if 'opt_func' in quick_adam(.1) else quick_adam(.1), {}, 'optimiser'), (dict(dls='a pixel'), {}, 'data.train'), (dict(dls='a label'), {}, 'data.train'),
    ({}, dict(lr=1e-3), 'hypers.*lr'), ({}, dict(n=3, lr=1e-2), 'epochs: kept 2, asked for 3'), ({}, dict(one_cycle=True), 'schedule.lr')])
def test_another_training_is_refused_by_name(finished, kw, how, field):
    before = (finished/'fit-0.pt').read_bytes()
    learn = learner(changed_data(kw.pop('dls', '')), resume=finished, **kw)
    with pytest.raises(ValueError, match=f'(?s)another training.*{field}'):
        one_cycle(learn) if how.pop('one_cycle', False) else fit(learn, how.pop('n', 2), **{'lr': 1e-2, **how})
    assert (finished/'fit-0.pt').read_bytes() == before


def test_a_finished_fit_says_so_and_is_plain(finished, capsys):
    learn = learner(changed_data(''), resume=finished)
    fit(learn, 2, lr=1e-2)
    assert 'all 2 epochs of this fit were trained before' in capsys.readouterr().out
    state = torch.load(finished/'fit-0.pt', weights_only=True)
    assert state['done'] == 2 and all(torch.equal(v, learn.model.state_dict()[k]) for k, v in state['model'].items())
    assert set(json.loads((finished/'fit-0.json').read_text())) == {'libkd', 'result', 'training'}


# -- what a resumed training sees beyond its arguments -----------------------------------------------------------------------

def pictures_in(folder, pixel=0, name='p'):
    for i in range(12):
        im = np.full((8, 8, 3), 20*i, np.uint8)
        if i == 0: im[0, 0] = pixel
        (folder/'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        PILImage.create(im).save(folder/'ab'[i % 2]/f'{name}{i}.png')
    return folder


def plain_learner(folder, resume, **kw):
    "Of somebody's own `DataBlock`, whose items are paths"
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=IndexSplitter([0, 1]), **kw)
    return learner(block.dataloaders(folder, bs=4, num_workers=0, device='cpu'), teachers=None, student='vit_nano', resume=resume)


def test_a_training_on_somebody_elses_loaders_sees_pictures_and_transforms(tmp_path):
    fit(plain_learner(pictures_in(tmp_path/'x'), tmp_path/'r'))
    fit(plain_learner(pictures_in(tmp_path/'moved'), tmp_path/'r'))                     # nothing is trained, and nothing refused
    with pytest.raises(ValueError, match='data.train|data.valid'): fit(plain_learner(pictures_in(tmp_path/'x', pixel=99), tmp_path/'r'))
    with pytest.raises(ValueError, match='(?s)data.views'): fit(plain_learner(pictures_in(tmp_path/'y'), tmp_path/'r', item_tfms=[Resize(16)]))


def test_a_damaged_state_is_named(tmp_path):
    fit(learner(resume=tmp_path))
    state, note = tmp_path/'fit-0.pt', tmp_path/'fit-0.json'
    whole, text = state.read_bytes(), note.read_text()
    flipped = bytearray(whole); flipped[len(whole)//2] ^= 1
    for data, said in ((bytes(flipped), 'its checksum'), (whole[:100], 'its checksum'), (b'', 'its checksum')):
        state.write_bytes(data)
        with pytest.raises(ValueError, match=f'fit-0.pt is damaged .*{said}'): fit(learner(resume=tmp_path))
    state.write_bytes(whole)
    note.write_text(text[:40])
    with pytest.raises(ValueError, match='fit-0.json is damaged'): fit(learner(resume=tmp_path))
    note.write_text(text)
    fit(learner(resume=tmp_path))
    (tmp_path/'fit-0.sum').unlink()                                # as folders of before are
    state.write_bytes(whole[:100])
    with pytest.raises(ValueError, match='fit-0.pt is damaged'): fit(learner(resume=tmp_path))


def test_views_of_other_names_are_another_training(tmp_path):
    "What is drawn for a view follows from the id of its picture"
    def renamed(by):
        data = tiny.samples()
        return tiny.loaders(data=Samples(data.items, data.labels, data.classes, data.parts, data.ids ^ by))
    fit(learner(renamed(0), resume=tmp_path))
    with pytest.raises(ValueError, match='data.views.ids'): fit(learner(renamed(1), resume=tmp_path))


class Halved(Callback):
    def __init__(self, by=.5): self.by = by
    def before_step(self):
        for p in self.model.parameters():
            if p.grad is not None: p.grad.mul_(self.by)


class Looker(Callback):
    only_looks = True


def test_a_callback_of_the_users_is_part_of_a_training_unless_it_only_looks(tmp_path):
    fit(learner(resume=tmp_path, cbs=Halved()))
    fit(learner(resume=tmp_path, cbs=[Halved(), Looker()]))
    with pytest.raises(ValueError, match=r'(?s)callbacks\.Halved.*only_looks = True'): fit(learner(resume=tmp_path))
    with pytest.raises(ValueError, match=r'callbacks\.Halved.*by'): fit(learner(resume=tmp_path, cbs=Halved(.7)))


def test_which_parameters_are_trained_is_part_of_a_training(tmp_path):
    "Two layers of one size: as many parameters are frozen, and others"
    def frozen(name):
        learn = learner(student='vit_nano', teachers=None, resume=tmp_path, student_kw=dict(SMALL, depth=2))
        for n, p in learn.model.named_parameters(): p.requires_grad_(not n.startswith(name))
        return fit(learn)
    frozen('blocks.0')
    with pytest.raises(ValueError, match='trained'): frozen('blocks.1')


# -- no fit without a step, no look that moves anything, no second callback --------------------------------------------------

@pytest.mark.parametrize('unlabelled', [10, 15])
def test_few_labels_train_at_least_a_step(unlabelled):
    dls = tiny.loaders(unlabelled=unlabelled, bs=17)              # 18 training images
    assert len(dls.train) == 1
    learn = learner(dls, teachers=None)
    before = learn.model.head.weight.detach().clone()
    fit(learn)
    assert len(learn.recorder.losses) == len(learn.dls.train) >= 1 and not torch.equal(before, learn.model.head.weight)


def test_an_epoch_without_a_batch_is_refused():
    from fastai.data.core import DataLoaders
    dls = tiny.loaders()
    empty = DataLoaders(dls.train.new(bs=64), dls.valid)
    for kw in ({}, dict(teachers=None)):
        with pytest.raises(ValueError, match='no batch: 18 training images, batches of 64.*bs=18 or less'): fit(learner(empty, **kw))
    with pytest.raises(ValueError, match='no batch'): fit(Learner(empty, tiny.student(), cbs=MultiTeacherDistill(two())))
    with pytest.raises(ValueError, match='No training image has a label'): learner(tiny.loaders(unlabelled=18, check=False), teachers=None)


@pytest.mark.parametrize('teachers', ['two', None])
def test_looking_moves_no_view(teachers):
    def train(look):
        learn = learner(teachers=teachers)
        if look:
            with learn.no_bar(): learn.validate(ds_idx=0); learn.get_preds(ds_idx=0)
        assert learn.dls.train.epoch == 0
        return raw_losses(learn, 1)
    assert (train(True) == train(False)).all()


def test_a_second_callback_is_refused():
    more = MultiTeacherDistill(tiny.teacher('c', 3))
    with pytest.raises(ValueError, match=r'Two MultiTeacherDistill.*MultiTeacherDistill\(\[a, b\]\)'): learner(cbs=more)
    learn = learner()
    with pytest.raises(ValueError, match='Two MultiTeacherDistill'): fit(learn, cbs=MultiTeacherDistill(tiny.teacher('c', 3)))
    learn.remove_cbs([c for c in learn.cbs if isinstance(c, MultiTeacherDistill)][1:]); fit(learn)


# -- settings that follow the training or the sample ---------------------------------------------------------------------------

def first_terms(**kw): return learner(**kw).distill_summary().term.to_dict()


def test_samples_are_weighed_by_name():
    from libkd.losses import combine_losses, confidence_weights
    same = first_terms(weigh=lambda answers, y: torch.ones(len(answers), len(y)))
    assert same == pytest.approx(first_terms(), rel=1e-6)
    half = first_terms(weigh=lambda answers, y: torch.tensor([[.5], [2.]]).expand(2, len(y)), teachers=two()[::-1])
    assert half['a'] == pytest.approx(.5*same['a'], rel=1e-6) and half['b'] == pytest.approx(2*same['b'], rel=1e-6)
    learn = learner(student='vit_nano', teachers=two(), weigh=confidence_weights, method='kd', T=1., weights=1.)
    terms, seen = learn.distill_summary().term, {}
    learn.multi_teacher_distill.weigh = lambda answers, y: confidence_weights(seen.setdefault('answers', answers), seen.setdefault('y', y)) if 'sum' not in seen else confidence_weights(answers, y)
    class Keep(Callback):
        order = 1
        def after_loss(self):
            cb = self.learn.multi_teacher_distill
            if self.training and 'sum' not in seen: seen['z'], seen['sum'] = cb.z['cls'].detach(), {n: cb.means[n] for n in 'ab'}
    learn.add_cb(Keep()); fit(learn)
    each = torch.stack([kd_loss(seen['z'], a, reduction='none') for a in seen['answers']])
    assert not seen['answers'].requires_grad and sum(seen['sum'].values()) == pytest.approx(combine_losses(each, confidence_weights(seen['answers'], seen['y'])).mean().item(), rel=1e-5)


def test_weighing_sees_top_k_as_dense_and_unknown_classes_as_minus_infinity(tmp_path):
    dls, seen = tiny.loaders(), []
    cache = LogitCache.build(tmp_path/'c', dls, two(), views=1, top_k=2, check=False)
    def look(answers, y): seen.append(answers); return torch.ones(answers.shape[:2])
    fit(learner(dls, teachers=cache, weigh=look))
    fit(learner(dls, teachers=strangers(), weigh=look))
    assert seen[0].shape == seen[-1].shape == (2, 6, 3) and seen[0].isfinite().all() and seen[-1][1, :, 2].isneginf().all()


@pytest.mark.parametrize('kw, error, said', [
    (dict(weigh=lambda answers, y: torch.ones(len(y))), ValueError, r'each of 2 teachers and 6 samples, \(2, 6\); it gave \(6,\)'),
    (dict(weigh=lambda answers, y: -torch.ones(2, len(y))), ValueError, '0 or more'), (dict(weigh='confidence'), TypeError, 'it is a function'),
    (dict(weights=lambda answers, y: torch.ones(len(y))), TypeError, 'sample by sample give weigh='), (dict(T='warm'), TypeError, "T of a is 'warm'"),
    (dict(T={'a': SchedLin(4, 0)}), ValueError, 'T of a is 0'), (dict(T=float('inf')), ValueError, 'finite'), (dict(loss=nn.KLDivLoss()), TypeError, r'loss\(student, teacher, target, T=…\)'),
    (dict(wieghts=2.), TypeError, "no 'wieghts'. Did you mean 'weights'"), (dict(stage_two=.5), TypeError, 'stage_two'), (dict(route='a'), TypeError, 'it is a dict, head'),
    (dict(loss='dist', weigh=lambda answers, y: torch.ones(answers.shape[:2])), ValueError, "has no value for one sample")])
def test_settings_that_are_none_are_sentences(kw, error, said):
    with pytest.raises(error, match=said): fit(learner(**kw))


def test_weighing_by_labels_needs_labels():
    from libkd.losses import confidence_weights
    with pytest.raises(ValueError, match='weigh=confidence_weights needs one label a picture.*without mixing'): fit(learner(tiny.loaders(mix=Mix()), weigh=confidence_weights))


def test_schedules_of_temperature_and_weight():
    seen = []
    def loss(s, t, y=None, *, T=1., reduction='mean'): seen.append(T); return kd_loss(s, t, T=T)
    learn = learner(loss={'a': loss}, T={'a': SchedLin(4, 1)}, weights={'b': SchedLin(1, 0)}, label_weight=SchedLin(0, 1), verbose=True)
    fit(learn, 2)
    assert seen[0] == 4 and seen == sorted(seen, reverse=True) and seen[-1] < 2
    assert learn.recorder.values[0][5] > 2*learn.recorder.values[1][5] > 0 and learn.recorder.values[0][3] < learn.recorder.values[1][3]


def test_arguments_are_passed_on_by_name():
    import test_features
    deit = dict(student='deit_nano', teachers=test_features.conv(), method='dearkd', student_kw=test_features.SMALL, layers={'blocks.0': 'a'})
    a, b = (learner(**deit, **kw) for kw in (dict(stage_one=.5, feature_weight=2.), dict(method_kw=dict(stage_one=.5, feature_weight=2.))))
    assert (a.feature_distill.stage_one, a.feature_distill.feature_weight) == (b.feature_distill.stage_one, b.feature_distill.feature_weight) == (.5, 2.)
    from inspect import signature
    assert {'T', 'route', 'weigh', 'check', 'cbs', 'opt_func'} <= signature(distill_learner).parameters.keys()


def test_a_method_of_ones_own(monkeypatch):
    from libkd.learner import Method
    class Mine(MultiTeacherDistill):
        def __init__(self, teachers, price=1., **kw): super().__init__(teachers, **kw); self.price = price
        @property
        def columns(self): return super().columns | dict(mine='mine')
        def terms(self): return super().terms() | dict(mine=self.price*self.z['cls'].pow(2).mean())
    monkeypatch.setitem(METHODS, 'mine', Method('mine', 'p', 'A', 2026, '1', 'e', 'r', dict(T=2.), callback=Mine))
    learn = learner(method='mine', price=3.)
    fit(learn)
    assert list(learn.recorder.metric_names)[-2] == 'mine' and learn.recorder.values[-1][-1] > 0 and learn.mine.T == {'a': 2., 'b': 2.}


def test_an_exported_learner_keeps_no_function_of_the_teaching(tmp_path):
    learn = learner(weigh=lambda answers, y: torch.ones(answers.shape[:2]), schedule=lambda p: 1 - p, loss=lambda s, t, y=None, *, T=1., reduction='mean': kd_loss(s, t, T=T, reduction=reduction))
    learn.path = tmp_path; learn.export()
    found = load_learner(tmp_path/'export.pkl')
    assert len(found.validate(dl=learn.dls.valid)) == 2
    kept = vars(next(cb for cb in found.cbs if isinstance(cb, MultiTeacherDistill)))
    assert not [k for k in ('losses', 'T', 'weights', 'schedule', 'weigh') if kept[k] is not None]


def test_terms_are_computed_in_float32_under_autocast():
    class Autocast(Callback):
        order = 10
        def before_batch(self): self.scope = torch.autocast('cpu', torch.bfloat16); self.scope.__enter__()
        def after_loss(self): self.scope.__exit__(None, None, None)
    seen = set()
    def product(s, t, y=None, *, T=1., reduction='mean'): seen.add((s @ t.T).dtype); return kd_loss(s, t, T=T)
    fit(learner(loss=product, cbs=Autocast()))
    assert seen == {torch.float32}


# -- before a fit: summary, recipe, methods --------------------------------------------------------------------------------

def state_of(learn):
    import random
    train = learn.dls.train
    return (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), train.rng.getstate(), train.epoch, learn.model.training,
            learn.model.distilled_training, {k: v.clone() for k, v in learn.model.state_dict().items()}, list(map(str, learn.cbs)), set(vars(learn)))


def same(a, b): return a[:-3] == b[:-3] and a[-2:] == b[-2:] and all(torch.equal(v, b[-3][k]) for k, v in a[-3].items())


@pytest.mark.parametrize('stored', [True, False])
def test_summary_shows_the_first_batch_and_training_does_not_notice(tmp_path, stored):
    dls = tiny.loaders()
    teachers = LogitCache.build(tmp_path/'c', dls, two(), views=replay(1), check=False) if stored else two()
    kw = dict(weights={'a': 2., 'b': .5}, label_weight=.5, student_kw={**SMALL, 'drop_rate': .2}, teachers=teachers)
    learn = learner(dls, **kw)
    before = state_of(learn)
    df = learn.distill_summary()
    assert same(before, state_of(learn))
    assert list(df.index) == ['labels', 'a', 'b'] and list(df['head']) == ['cls', 'conv', 'inv'] and list(df.weight) == [.5, 2., .5] and list(df['T'][1:]) == [1., 1.]
    assert list(df.source[1:]) == (['replay(1) of c']*2 if stored else ['live']*2) and abs(sum(float(s[:-1]) for s in df.share) - 100) <= 2 and (df.term > 0).all()
    assert (raw_losses(learn, 1) == raw_losses(learner(dls, **kw), 1)).all()
    assert learn.distill_summary().term.sum() < df.term.sum()                  # of the student as it is now


def test_summary_needs_a_teacher():
    with pytest.raises(ValueError, match='No teacher advises'): learner(teachers=None).distill_summary()


def test_the_small_recipe_trains_a_student():
    r = recipe('co-advise', small=True)
    dls = tiny.loaders(mix=r.loaders['mix'])
    learn = learner(dls, **r.learner)
    with learn.no_bar(), learn.no_logging(): learn.fit(**{**r.fit, 'n_epoch': 3})
    assert np.isfinite(learn.recorder.losses).all() and learn.loss_func.base.func.label_smoothing == .1
    assert learn.opt.hypers[0]['lr'] < 5e-4 and learn.opt.hypers[0]['wd'] == .05 and learn.opt.hypers[0]['sqr_mom'] == .999


def test_the_paper_recipe_says_the_published_numbers():
    "config.py of OliverRensu/co-advise, commit 8049918; learning rates for 8 × 128 images"
    r = recipe('co-advise')
    n = r.numbers
    assert [n[k] for k in ('epochs', 'batch', 'lr', 'warmup', 'lr_start', 'lr_end', 'weight_decay', 'clip')] == [300, 1024, 1e-3, 20, 1e-6, 1e-5, .05, 15.]
    tfms = r.loaders['tfms']
    import PIL.Image
    img = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 280, 3), dtype=np.uint8))
    for t in tfms: img = t(img)
    assert img.shape == (3, 224, 224) and img.dtype == torch.uint8 and [type(t).__name__ for t in tfms][:3] == ['RandomResizedCropAndInterpolation', 'RandomHorizontalFlip', 'RandAugment']


def test_the_paper_rate_is_timms_curve():
    "The authors' scheduler is timm's, whose cosine runs from epoch 0 and hides behind the warm-up"
    from timm.scheduler import CosineLRScheduler
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1e-3)
    theirs = CosineLRScheduler(opt, t_initial=300, lr_min=1e-5, warmup_lr_init=1e-6, warmup_t=20)
    rate = recipe('co-advise').fit['cbs'][0].scheds['lr']
    for epoch in range(300):
        theirs.step(epoch)
        assert rate(epoch/300) == pytest.approx(opt.param_groups[0]['lr'], rel=1e-6)


def test_the_patient_recipe_asks_the_teacher_about_every_view_and_nobody_else(tmp_path):
    "configs/proj/distill/bit_i1k.py of google-research/big_vision, commit 2f3f493; 5,000 steps of 4,096 among 98 % of ImageNet's images are 16.3 epochs"
    n = recipe('patient').numbers
    assert [n[k] for k in ('epochs', 'batch', 'lr', 'mixup', 'cutmix', 'clip', 'size')] == [1200, 4096, .03, 1., 0., 1., 224] and round(n['weight_decay']*n['lr'], 9) == 3e-4
    assert n['warmup'] == round(5000*4096/(.98*1_281_167)) and recipe('patient').views == replay(1200)
    assert [type(t).__name__ for t in recipe('patient').loaders['tfms']] == ['RandomResizedCropAndInterpolation', 'RandomHorizontalFlip', 'PILToTensor']
    r = recipe('patient', small=True)
    dls = tiny.loaders(mix=r.loaders['mix'])
    learn = learner(dls, student='vit_nano', teachers=LogitCache.build(tmp_path/'c', dls, two(), views=replay(2), check=False), **r.learner)
    with learn.no_bar(), learn.no_logging(): learn.fit(**{**r.fit, 'n_epoch': 2})
    assert learn.dls.train.mix.draw(np.random.default_rng(0))[1] is False and learn.recorder.values[-1][3] == 0      # no CutMix; no label term


def test_without_labels_every_head_hears_a_teacher():
    with pytest.raises(ValueError, match="leaves head cls of the student nothing to learn"): fit(learner(label_weight=0., route={'conv': 'a', 'inv': 'b'}))
    learn = learner(label_weight=0.)
    fit(learn)
    assert learn.multi_teacher_distill.route == {'conv': ['a'], 'inv': ['b'], 'cls': ['a', 'b']}


def test_a_teacher_on_two_heads_has_two_terms():
    first = lambda r: learner(student=tiny.student(), route={**r, 'inv': 'b'}).distill_summary().term
    a = [float(first(r)['a']) for r in ({'cls': 'a', 'conv': 'a'}, {'cls': 'a'}, {'conv': 'a'})]
    assert abs(a[0] - a[1] - a[2]) < 1e-5 and min(a) > 0
    assert first({'cls': 'a', 'conv': 'a'}).index.tolist() == ['labels', 'a', 'b']


def test_soft_deit_is_equation_2():
    learn = learner(student='deit_nano', teachers=two()[0], method='deit-soft')
    cb = learn.multi_teacher_distill
    assert cb.losses['a'] is kd_loss and cb.weights == {'a': .5} and cb.label_weight == .5 and cb.T == {'a': 1.}
    fit(learn)
    assert cb.route == {'dist': ['a']}


def test_a_dict_names_exceptions_from_the_method():
    "A decision has no temperature, so b has not the method's 4"
    cb = learner(student='vit_nano', T={'a': 2.}, weights={'b': 1.}, loss={'b': 'hard'}, method='kd').multi_teacher_distill
    assert cb.T == {'a': 2., 'b': 1.} and cb.weights == {'a': .45, 'b': 1.} and cb.losses == {'a': kd_loss, 'b': hard_kd_loss}


def test_methods_print_as_a_table():
    assert list(METHODS.table().index) == list(METHODS) and {'year', 'exact', 'our reading'} <= set(METHODS.table())
    for m in METHODS.values(): assert m.paper in repr(METHODS) and m.reading in METHODS._repr_html_().replace('&amp;', '&')


@pytest.mark.slow
def test_the_registry_is_whole_in_every_process():
    code = "import sys; from libkd.learner import METHODS; from libkd.distill import METHODS as before; print(before is METHODS, *METHODS)"
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert out == ['True', 'co-advise', 'deit', 'deit-soft', 'lib-kd', 'kd', 'patient', 'dearkd', 'cakd', 'fitnet', 'at', 'sp', 'rkd']


def test_old_places_answer():
    import libkd.distill, libkd.features, libkd.learner, libkd.handover
    for name in ('distill_learner', 'METHODS', 'Method', 'cite', 'recipe', 'Recipe', 'DistillLearner'): assert getattr(libkd.distill, name) is getattr(libkd.learner, name)
    for name in ('save_student', 'load_student', 'Resume'): assert getattr(libkd.distill, name) is getattr(libkd.handover, name)
    assert libkd.features.cakd_ramp is libkd.learner.cakd_ramp
    with pytest.raises(AttributeError, match='distill_lerner'): libkd.distill.distill_lerner


# -- teachers that differ from the student and from one another --------------------------------------------------------------

def strangers():
    "Another size and normalisation; other class names, one of them unknown"
    from torch.nn.functional import avg_pool2d
    class Large(nn.Module):
        def __init__(self): super().__init__(); self.inner = tiny.Linear(5)
        def forward(self, x): return self.inner(avg_pool2d(x, 2))
    big = Teacher(Large(), tiny.CLASSES, name='big', bias='conv', mean=(.5,)*3, std=(.25,)*3, size=16)
    some = Teacher(tiny.Linear(6), ['ring', 'box', 'dog'], name='some', bias='inv', class_map=dict(ring='circle', box='square'), answers=tiny.CLASSES)
    return [big, some]


def test_teachers_of_other_sizes_normalisations_and_classes(tmp_path):
    dls = tiny.loaders()
    cache = LogitCache.build(tmp_path/'c', dls, strangers(), views=2, dtype='float32', check=False)
    live = learner(dls, teachers=strangers()); live.dls.train.policy = finite(2)
    stored, steps = learner(dls, teachers=cache), Steps()
    live.add_cb(steps)
    a, b = raw_losses(live), raw_losses(stored)
    assert np.isfinite(a).all() and abs(a - b).max() < 1e-5
    grad = steps.seen[0][1]['head_inv.weight']
    assert grad[:2].any() and not grad[2].any()              # of the star the second teacher says nothing


def test_a_continued_fit_with_live_and_stored_teachers(tmp_path):
    dls = tiny.loaders()
    cache = LogitCache.build(tmp_path/'c', dls, two()[0], views=2, check=False)
    def run(resume=None, cbs=None):
        learn = learner(dls, teachers=[cache, two()[1]], resume=resume, cbs=cbs)
        learn.dls.train.policy = finite(2)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 1e-3)
        return [list(v) for v in learn.recorder.values]
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'r', Killed(2))
    assert run(tmp_path/'r') == run()


def test_several_processes_cannot_resume(tmp_path, monkeypatch):
    import libkd.handover as m
    monkeypatch.setattr(m, 'processes', lambda: 2)
    with pytest.raises(ValueError, match='SaveModelCallback'): fit(learner(resume=tmp_path))


# -- the eight faults of a neighbour, each reproduced there (the fourth, teachers in an exported learner, is tested above) --------

def test_fault_1_validation_is_not_blended():
    learn = learner(weights=100.); fit(learn)
    blended, valid_loss = list(learn.recorder.values[-1])[:2]
    assert learn.validate()[0] == valid_loss < 5 < blended


def test_fault_2_teachers_run_without_gradients():
    learn, seen = learner(), []
    for t in learn.teachers: t.model.conv.register_forward_hook(lambda m, i, o: seen.append((torch.is_grad_enabled(), o.requires_grad)))
    fit(learn)
    assert set(seen) == {(False, False)} and len(seen) == 2*len(learn.dls.train)


def test_fault_3_teachers_add_up_instead_of_nesting():
    "Each term counts as if the other were not there; the sum has no order"
    def first(**kw): return learner(**kw).distill_summary().term.to_dict()
    one, double = first(), first(weights={'a': 2.}, teachers=two()[::-1])
    assert abs(double['a'] - 2*one['a']) < 1e-6 and double['b'] == one['b'] and double['labels'] == one['labels']


def test_fault_5_blocks_of_transformers_and_stages_of_cnns_are_both_seen():
    import timm
    x = torch.randn(2, 3, 32, 32)
    for name, n in (('vit_civt_nano', 6), ('vit_nano', 6), ('resnet_mini', 4), ('rednet_mini', 4)):
        _, maps = timm.create_model(name).eval().forward_intermediates(x)
        assert len(maps) == n and all(m.ndim == 4 for m in maps)


def test_fault_6_tuples_names_and_devices():
    class Both(nn.Module):
        def __init__(self): super().__init__(); self.inner = tiny.Linear(1)
        def forward(self, x): z = self.inner(x); return z, z.mean()
    pair = Teacher(Both(), tiny.CLASSES, name='a', bias='conv')
    assert (raw_losses(learner(teachers=[pair, two()[1]]), 1) == raw_losses(learner(), 1)).all()
    far, here = two()[0], two()[0].model
    far.model = copy.deepcopy(here).to('meta')
    def to(device): far.model, far.went = here, str(device)
    far.to = to
    assert (raw_losses(learner(teachers=[far, two()[1]]), 1) == raw_losses(learner(), 1)).all() and far.went == 'cpu'


@pytest.mark.parametrize('how', ['batch', 'view'])
def test_fault_7_mixed_pictures_have_no_single_label(how):
    dls = tiny.loaders(mix=Mix() if how == 'view' else None)
    cbs = [MixUp()] if how == 'batch' else []
    for name in ('dkd', 'nkd', 'ofa'):
        with pytest.raises(ValueError, match=f'{name}_loss of teacher a .*mixed pictures have two.*kd, hard, dist'): fit(learner(dls, loss=name, cbs=cbs))
    for name in ('kd', 'hard', 'dist'): fit(learner(dls, loss=name, cbs=[type(c)() for c in cbs]))
    with pytest.raises(ValueError, match='unlabelled samples'): fit(learner(tiny.loaders(unlabelled=12), loss='dkd'))
    fit(learner(loss='dkd'))


def test_fault_8_every_loss_and_method_that_the_notebooks_name_exists(root):
    import re
    import libkd.distill, libkd.learner, libkd.losses as L, libkd.students
    for name in ('03a_losses', '07_distill', '08b_learner', '05_students'):
        prose = ''.join(''.join(c['source']) for c in json.loads((root/f'nbs/{name}.ipynb').read_text())['cells'] if c['cell_type'] == 'markdown')
        named = set(re.findall(r'`([a-z_]+_loss)`', prose)) | set(re.findall(r'`([a-z]+(?:_[a-z]+)+)\(', prose))
        rooms = (L, libkd.distill, libkd.learner, libkd.students, __import__('libkd.all', fromlist=['_']))
        assert not [n for n in named if not any(hasattr(r, n) for r in rooms) and n not in ('valid_loss', 'train_loss', 'after_loss')], name


# -- compiled, averaged, in half precision -------------------------------------------------------------------------------------

@pytest.mark.slow
def test_a_compiled_student_is_compiled_once_and_runs_once_a_step():
    from torch._dynamo.testing import CompileCounter
    import torch._dynamo
    plain, learn, count, n = learner(), learner(), CompileCounter(), []
    torch._dynamo.reset()
    learn.model = torch.compile(learn.model, backend=count)
    learn.model.register_forward_hook(lambda *_: n.append(learn.training))
    assert np.allclose(raw_losses(learn, 3), raw_losses(plain, 3), atol=1e-4)
    assert n.count(True) == 3*len(learn.dls.train) and count.frame_count == 2        # one graph to train, one to validate
    assert not learn.model._orig_mod.distilled_training


def test_an_average_of_weights_is_an_ordinary_model():
    from torch.optim.swa_utils import AveragedModel
    class Average(Callback):
        order = 1
        def before_fit(self): self.mean = AveragedModel(self.model)
        def after_step(self): self.mean.update_parameters(self.model)
    learn = learner(cbs=(ema := Average())); fit(learn, 2)
    assert not ema.mean.module.distilled_training and isinstance(ema.mean.train()(torch.randn(2, 3, 8, 8)), torch.Tensor)


def test_mixed_precision_computes_the_losses_in_float32():
    class Autocast(Callback):
        "fastai's MixedPrecision knows CUDA only"
        order = 10
        def before_batch(self): self.scope = torch.autocast('cpu', torch.bfloat16); self.scope.__enter__()
        def after_loss(self): self.scope.__exit__(None, None, None)
    class Types(Callback):
        order = 5
        def after_loss(self): seen.add((self.pred.dtype, self.loss_grad.dtype)) if self.training else None
    seen = set()
    full, half = raw_losses(learner(), 2), raw_losses(learner(cbs=[Autocast(), Types()]), 2)
    assert seen == {(torch.float32, torch.float32)} and (full != half).any() and np.allclose(full, half, rtol=.05)


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


def test_a_pruned_student_is_handed_over_and_a_changed_one_refused(tmp_path):
    from torch.nn.utils import parametrizations, prune
    learn, x = learner(teachers=None, student='vit_nano'), torch.randn(2, 3, 8, 8)
    prune.l1_unstructured(learn.model.head, 'weight', .5); parametrizations.weight_norm(learn.model.blocks[0].mlp.fc1)
    fit(learn)
    model, _ = load_student(save_student(learn, tmp_path/'s'))
    with torch.no_grad(): assert torch.allclose(model(x), learn.model.eval()(x), atol=1e-5)
    assert (model.head.weight == 0).float().mean() >= .5
    learn.model.norm = nn.Sequential(learn.model.norm, nn.Tanh())
    with pytest.raises(ValueError, match='was changed after it was made'): save_student(learn, tmp_path/'t')
    learn = learner(teachers=None, student='vit_nano'); learn.model.blocks[0].mlp.act = nn.Sigmoid()
    with pytest.raises(ValueError, match='answers differently'): save_student(learn, tmp_path/'t')
    assert not (tmp_path/'t').exists()


FRESH = '''
import sys, numpy as np, onnxruntime, torch
folder, x = sys.argv[1], torch.load(sys.argv[2])
session = onnxruntime.InferenceSession(f'{folder}/model.onnx', providers=['CPUExecutionProvider'])
answers = [torch.from_numpy(session.run(None, {'images': x[:n].numpy()})[0]) for n in (1, 5)]
program = torch.export.load(f'{folder}/model.pt2').module()
with torch.no_grad(): answers += [program(x[:n]) for n in (1, 5)]
assert not [m for m in sys.modules if m.split('.')[0] == 'libkd']
import timm, libkd.students
with torch.no_grad(): answers += [timm.create_model(f'local-dir:{folder}', pretrained=True).eval()(x)]
assert not {'libkd.teachers', 'libkd.cache', 'libkd.distill'} & set(sys.modules)
torch.save(answers, sys.argv[2])
'''


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')                      # of the exporters
def test_a_saved_student_answers_without_libkd(tmp_path):
    "ONNX Runtime and torch.export in a process that never imports libkd, any number of images; timm with the student's room alone"
    pytest.importorskip('onnxruntime')
    learn = learner(); fit(learn)
    folder, x = save_student(learn, tmp_path/'s', onnx=True, exported=True), torch.randn(5, 3, 8, 8)
    assert {p.name for p in folder.iterdir()} == {'README.md', 'config.json', 'model.safetensors', 'model.onnx', 'model.pt2'}
    torch.save(x, tmp_path/'x.pt')
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', FRESH, folder, tmp_path/'x.pt'], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-2000:]
    with torch.no_grad(): want = learn.model.eval()(x)
    for z in torch.load(tmp_path/'x.pt'): assert (z - want[:len(z)]).abs().max() < 1e-4


def test_a_saved_student_carries_its_own_normalisation(tmp_path):
    from timm.data import resolve_model_data_config
    learn = learner(teachers=None)
    learn.dls.train.stats = ((.5,)*3, (.25,)*3)
    model, cfg = load_student(save_student(learn, tmp_path/'s'))
    want = resolve_model_data_config(model)
    assert tuple(want['mean']) == (.5,)*3 and tuple(want['std']) == (.25,)*3 and tuple(want['input_size']) == (3, 8, 8) and want['crop_pct'] == 1 and cfg['pretrained_cfg']['mean'] == [.5]*3


def test_onnx_without_its_packages_says_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(ImportError, match='pip install onnx onnxscript'): save_student(learner(teachers=None), tmp_path/'s', onnx=True)


@pytest.mark.slow
def test_the_predict_command_gives_the_learners_answers(tmp_path):
    import csv, PIL.Image
    learn = learner(); fit(learn)
    folder, images = save_student(learn, tmp_path/'s'), tmp_path/'images'
    images.mkdir()
    for i, o in enumerate(learn.dls.valid_ds.items[:4]): PIL.Image.fromarray(o.source).save(images/f'{i}.png')
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', 'from libkd.cli import main; main()', 'predict', folder, images, '-o', tmp_path/'a.csv'], capture_output=True, text=True)
    assert out.returncode == 0 and '4 of 4 images' in out.stdout, out.stderr[-2000:]
    rows = list(csv.DictReader(open(tmp_path/'a.csv')))
    with learn.no_bar(): want = [learn.predict(images/f'{i}.png') for i in range(4)]
    assert [r['class'] for r in rows] == [w[0] for w in want]
    for r, w in zip(rows, want): assert all(abs(float(r[c]) - float(p)) < 1e-4 for c, p in zip(tiny.CLASSES, w[2]))


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
from types import SimpleNamespace
from libkd.distill import Means, label_share
y = dls.train.one_batch()[1]
y.ride.unlabelled = True; y[1 if rank == 0 else 3:4] = -1; y[4:] = -1; y.ride.partner[:] = y.as_subclass(torch.Tensor); y.ride.lam[:] = 1
assert label_share(y) == (.5 if rank == 0 else 1.5), label_share(y)
means = Means(); means.add({'a': torch.tensor(1. + 2*rank)}); means.share()
assert means['a'] == 2.
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
    (dict(route={'cnv': 'a', 'inv': 'b'}), ValueError, "no head 'cnv'. Did you mean 'conv'"),
    (dict(route={'invv': 'a'}, student='vit_nano'), ValueError, "no head 'invv'. There are cls"),
    (dict(label_weight=-1.), ValueError, 'label_weight is -1'), (dict(T=float('nan')), ValueError, 'above 0'),
    (dict(route={'conv': 'a', 'inv': 'c'}), ValueError, "No teacher is called 'c'"),
    (dict(route={'conv': 'a'}), ValueError, 'leaves out teacher b'),
    (dict(loss='kdd'), KeyError, "Did you mean 'kd'"),
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
    with pytest.raises(TypeError, match='Learner cannot teach as it is'): MultiTeacherDistill(Learner(dls, tiny.Linear()))
    with pytest.raises(TypeError, match='takes the Learner'): save_student(tiny.student(), 'nowhere')
    with pytest.raises(TypeError, match='DataLoaders; a TokenViT was given'): distill_learner(tiny.student(), 'civt_nano')
    with pytest.raises(ValueError, match='5.*class_map'): fit(learner(dls, student=nn.Sequential(tiny.Linear(), nn.Linear(3, 5))))


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


def test_a_teacher_that_does_not_know_the_class_counts_nothing():
    from libkd.losses import confidence_weights
    w = confidence_weights([torch.tensor([[0., 1., -torch.inf]]*2), torch.tensor([[0., 1., 2.]]*2)], torch.tensor([2, 1]))
    assert w[:, 0].tolist() == [0., 1.] and w.isfinite().all()


@pytest.mark.parametrize('kind', ['weights', 'function', 'timm', 'partial'])
def test_a_label_loss_of_any_kind_is_the_loss_of_what_is_labelled(kind):
    from functools import partial
    from fastai.losses import CrossEntropyLossFlat
    from timm.loss import LabelSmoothingCrossEntropy
    from libkd.views import LabelLoss
    w = torch.tensor([1., 5., .2])
    base = dict(weights=CrossEntropyLossFlat(weight=w), function=lambda z, y: nn.functional.cross_entropy(z, y), timm=LabelSmoothingCrossEntropy(.1),
                partial=partial(nn.functional.cross_entropy, weight=w))[kind]
    y = tiny.loaders(unlabelled=12, bs=18).train.one_batch()[1]
    known, z = (y >= 0).as_subclass(torch.Tensor), torch.randn(18, 3)
    assert 0 < known.sum() < 18
    want = base(z[known], y.as_subclass(torch.Tensor)[known])
    assert LabelLoss(base)(z, y).item() == pytest.approx(want.item(), rel=1e-5)
    fit(learner(tiny.loaders(mix=Mix()), loss_func=base))


def test_a_loss_without_temperature_gets_none_of_the_methods():
    "kd and lib-kd bring T=4 of their own; nobody asked the hard loss for one"
    T = lambda **kw: next(c for c in learner(student='vit_nano', **kw).cbs if isinstance(c, MultiTeacherDistill)).T
    assert T(loss='hard') == dict(a=1., b=1.) and T(loss={'b': 'hard'}) == dict(a=4., b=1.) and T(loss={'b': 'hard'}, T={'a': 2.}) == dict(a=2., b=1.)
    fit(learner(student='vit_nano', loss='hard'))
    with pytest.raises(UserError, match='no temperature'): fit(learner(student='vit_nano', loss='hard', T=2.))


def test_weights_of_samples_come_as_any_list_of_numbers():
    first = lambda weigh: first_terms(weigh=weigh)
    assert first(lambda a, y: [torch.ones(len(y))]*2) == first(lambda a, y: [[1]*len(y)]*2) == first_terms()
    for odd in (None, 'a', [torch.ones(2), torch.ones(3)]):
        with pytest.raises(UserError, match='weigh must give numbers'): fit(learner(weigh=lambda a, y: odd))


def test_a_student_in_channels_last_is_saved(tmp_path):
    "Its weights lie in memory in another order, which safetensors refuses"
    learn = learner(student='resnet_mini', teachers=None, student_kw={}); learn.model.to(memory_format=torch.channels_last)
    model, _ = load_student(save_student(learn, tmp_path/'s'))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(x), learn.model.eval()(x)) and sorted(p.name for p in (tmp_path/'s').iterdir()) == ['README.md', 'config.json', 'model.safetensors']


def test_a_student_that_cannot_be_read_says_so(tmp_path):
    folder = save_student(learner(student='vit_nano', teachers=None), tmp_path/'s')
    whole = {p: p.read_bytes() for p in folder.iterdir()}
    for file, content in (('model.safetensors', whole[folder/'model.safetensors'][:999]), ('model.safetensors', None), ('config.json', b'{'), ('config.json', b'[]'),
                          ('config.json', b'{}'), ('config.json', whole[folder/'config.json'].replace(b'"vit_nano"', b'"vit_unheard_of"'))):
        for p, b in whole.items(): p.write_bytes(b)
        if content is None: (folder/file).unlink()
        else: (folder/file).write_bytes(content)
        with pytest.raises(UserError, match='holds no student that can be read.*Copy it again'): load_student(folder)
    with pytest.raises(UserError, match='A file is in the way'): save_student(learner(student='vit_nano', teachers=None), folder/'README.md')


def test_weights_are_those_that_were_saved(tmp_path):
    "A flipped bit in the weights is a student like any other, and nothing but a checksum tells"
    folder = save_student(learner(student='vit_nano', teachers=None), tmp_path/'s')
    weights, whole = folder/'model.safetensors', (folder/'model.safetensors').read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match='has other weights than were saved .* Copy it again'): load_student(folder)
    weights.unlink()
    with pytest.raises(UserError, match='no student that can be read'): load_student(folder)
    weights.write_bytes(whole)
    cfg = json.loads((folder/'config.json').read_text())
    assert cfg.pop('weights_sha256') == [hashlib.sha256(whole).hexdigest()]
    (folder/'config.json').write_text(json.dumps(cfg))                       # as an older libkd saved it
    load_student(folder)


def test_a_save_that_is_killed_leaves_a_student_that_loads(tmp_path, monkeypatch):
    first, second = (learner(student='vit_nano', teachers=None, seed=k) for k in (0, 1))
    folder, x = save_student(first, tmp_path/'s'), torch.randn(2, 3, 8, 8)
    def killed(path, data):
        if Path(path).name == 'model.safetensors': raise KeyboardInterrupt
        publish(path, data)
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(libkd.handover, 'publish', killed)
        save_student(second, folder)
    with torch.no_grad(): torch.testing.assert_close(load_student(folder)[0](x), first.model.eval()(x))
    save_student(second, folder)
    with torch.no_grad(): torch.testing.assert_close(load_student(folder)[0](x), second.model.eval()(x))


@pytest.mark.parametrize('seed', ['a', 1.5, True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(UserError, match='a whole number is needed'): learner(teachers=None, seed=seed)
    with pytest.raises(UserError, match='a whole number is needed'): image_dls(tiny.samples(), seed=seed)
    with pytest.raises(UserError, match='a whole number is needed'): fit_teacher('resnet_mini', tiny.loaders(), seed=seed)


def test_what_cannot_be_trained_or_teach_is_said_at_once():
    lazy, classes = nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), list('abc')
    with torch.device('meta'): meta = nn.Linear(3, 3)
    for make in (lambda: learner(student=lazy), lambda: Teacher(lazy, classes), lambda: Teacher(meta, classes)):
        with pytest.raises(UserError, match='has no values yet'): make()
    with pytest.raises(TypeError, match="A student is a name, such as 'civt_nano'"): learner(student=None)
    with pytest.raises(TypeError, match='weights are torch.bfloat16.*student.float'): learner(student=tiny.student().bfloat16())
    with pytest.raises(UserError, match=r'A dict of teachers.*list\(teachers.values'): learner(teachers={'a': tiny.teacher('a', 1)})
