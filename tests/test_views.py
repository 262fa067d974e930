"Views are pure functions of (seed, sample id, view): same pixels whatever the workers, the order, the process."
from pathlib import Path
from functools import partial
import hashlib
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import TensorCategory, TensorImage
from fastai.vision.augment import RandomResizedCrop, Resize
from fasttransform import DisplayedTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.transforms import v2

import tiny
from libkd import views
from libkd.data import Samples
from libkd.files import progress
from libkd.views import (ViewError, BETA, ERASE, ORDERS, LabelLoss, LightViews, Mix, Pictures, Ride, ViewSampler, ViewSet, as_policy, clean, box_mask, coloured, draws,
                         erase_boxes, finite, free_memory, image_dls, lam_table, light_tfms, mix_pair, mixed, online, open_sample, replay,
                         rng_scope, scramble, view_digests, view_keys, view_seed)


class Given:
    "A fixed order (a class, so that spawned workers can be given it)"
    def __init__(self, idxs): self.idxs = idxs
    def __call__(self): return self.idxs


def all_pixels(dls, epoch=0, **kw):
    "{id: pixels} of one epoch"
    dl = dls.train.new(drop_last=False, **kw)
    dl.epoch, n = epoch, len(dl.items)
    idxs = dl.get_idxs()
    x = torch.cat([x for x, _ in dl.new(get_idxs=Given(idxs))])
    return {dl.id_of(i % n): p for i, p in zip(idxs, x)}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def pipelines():
    import timm.data
    return {'light': LightViews(flip=True, erase=.5),
            'torchvision': [v2.RandomCrop(8, padding=2), v2.ColorJitter(.4, .4, .4)],
            'torchvision tensor': [v2.RandAugment(), v2.ToImage(), v2.RandomErasing(p=1.)],
            'timm': [timm.data.create_transform(8, is_training=True, auto_augment='rand-m9-mstd0.5-inc1', mean=(0, 0, 0), std=(1, 1, 1))],
            'fastai': [RandomResizedCrop(8)]}


@pytest.mark.parametrize('name', ['light', 'torchvision', 'torchvision tensor', 'timm', 'fastai'])
def test_order_does_not_matter(name):
    dls = tiny.loaders(tfms=pipelines()[name])
    a = all_pixels(dls, shuffle=False)
    torch.rand(7), np.random.rand(7), random.random()
    assert same(a, all_pixels(dls, shuffle=True))
    assert not same(a, all_pixels(dls, epoch=1, shuffle=False)), 'another view must differ, or this test proves nothing'


def unmodified():
    import timm.data
    return {'timm': timm.data.create_transform(8, is_training=True, auto_augment='rand-m9-mstd0.5-inc1', re_prob=1., re_mode='pixel', color_jitter=.4),
            'timm without mean': timm.data.create_transform(8, is_training=True, mean=(0, 0, 0), std=(1, 1, 1)),
            'torchvision': v2.Compose([v2.RandomResizedCrop(8), v2.RandAugment(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((.485, .456, .406), (.229, .224, .225)), v2.RandomErasing(p=1.)]),
            'integers': v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip()])}


@pytest.mark.parametrize('name', ['timm', 'timm without mean', 'torchvision', 'integers'])
def test_an_unmodified_pipeline_makes_the_batch(name):
    "Normalised floats, plain floats or integers: the batch holds what the pipeline made, normalised once"
    t = unmodified()[name]
    dl, mean, std = tiny.loaders(tfms=[t]).train, torch.tensor([.485, .456, .406]).view(3, 1, 1), torch.tensor([.229, .224, .225]).view(3, 1, 1)
    x = dl.after_batch((torch.stack([dl.do_item(2*18 + i)[0] for i in range(6)]),))[0]
    for i in range(6):
        with rng_scope(view_seed(0, dl.id_of(i), 2)): want = t(open_sample(dl.items[i]))
        if name == 'integers': want = want/255
        if name in ('integers', 'timm without mean'): want = (want - mean)/std
        assert torch.allclose(x[i].as_subclass(torch.Tensor), want, atol=1e-4)


@pytest.mark.parametrize('tfms', [[], *[t for n, t in {**pipelines(), **unmodified()}.items() if n != 'light']], ids=lambda t: type(t[0] if isinstance(t, list) and t else t).__name__)
@pytest.mark.parametrize('mix', [None, Mix()], ids=['', 'mixed'])
def test_known_steps_give_the_pixels_of_fastais_dispatch(tfms, mix):
    dls = tiny.loaders(tfms=tfms if isinstance(tfms, list) else [tfms], mix=mix)
    direct, fastais = dls.train.new(), dls.train.new()
    fastais.plain = False
    fastai_has_a_say = isinstance(tfms, list) and bool(tfms) and isinstance(tfms[0], RandomResizedCrop)
    assert (direct._steps() is None) == fastai_has_a_say and fastais._steps() is None
    for s in (0, 5, 18, 40):
        (x, y), (x2, y2) = direct.do_item(s), fastais.do_item(s)
        assert type(x) is type(x2) and x.dtype == x2.dtype and torch.equal(x, x2) and int(y) == int(y2) and y.ticket == y2.ticket


def test_validation_items_are_those_of_fastais_dispatch():
    "One by one, and in the batches of `LightViews`"
    data = tiny.samples(unlabelled=3)
    light = tiny.loaders(data=data).valid.one_batch()
    dls = tiny.loaders(data=data, tfms=[v2.ColorJitter(.9, .9, .9)])
    for dl in (dls.valid, dls.test_dl([data[i] for i in range(6)], with_labels=True)):
        slow = dl.new()
        slow.plain = False
        assert dl._steps() == [] and slow._steps() is None
        (x, y), (x2, y2) = dl.one_batch(), slow.one_batch()
        assert type(x) is type(x2) and type(y) is type(y2) and y.dtype == y2.dtype and torch.equal(x, x2) and torch.equal(y, y2)
        if dl is dls.valid: assert all(type(a) is type(b) and a.dtype == b.dtype and torch.equal(a, b) for a, b in zip((x, y), light))


def test_a_transform_that_is_added_later_is_applied():
    class Black(DisplayedTransform):
        order = 50
        def encodes(self, x:TensorImage): return x*0
    for tfms in (None, light_tfms((8, 8))):
        dls = tiny.loaders(tfms=tfms)
        before = dls.train.describe()
        dls.train.after_item.add(Black())
        assert dls.train.do_item(0)[0].sum() == 0 and dls.train.describe() != before
        x, y = dls.train.one_batch()
        assert (x == x[:, :, :1, :1]).all() and len(y.ride.view) == 6
    assert tiny.loaders(tfms=[Resize(4)]).train.do_item(0)[0].shape == (3, 4, 4)


pipeline_names, policies = st.sampled_from(['light', 'torchvision', 'torchvision tensor', 'timm', 'fastai']), st.sampled_from([online(), clean(), finite(2), finite(3), replay(6)])


@pytest.mark.slow
@given(pipeline_names, policies, st.sampled_from([None, Mix()]), st.integers(0, 5), st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_a_view_is_a_function_of_seed_id_and_number(name, policy, mix, epoch, seed, rnd):
    "Whatever was drawn before, in any order, in loaders made anew: the same pixels"
    dls, again = (tiny.loaders(tfms=pipelines()[name], mix=mix, seed=seed, check=False) for _ in range(2))
    want = all_pixels(dls, epoch=epoch, policy=policy, shuffle=False)
    dl = again.train.new(policy=policy)
    order, v = list(range(18)), policy.view(epoch)
    rnd.shuffle(order); torch.rand(rnd.randint(0, 5)), np.random.rand(rnd.randint(0, 5))
    for i in order[:6]: assert torch.equal(dl.after_batch((dl.do_item(v*18 + i)[0][None],))[0][0].as_subclass(torch.Tensor), want[dl.id_of(i)].as_subclass(torch.Tensor))


@pytest.mark.slow
@settings(max_examples=9)
@given(pipeline_names, st.sampled_from([1, 2, 4]), policies, st.sampled_from([None, Mix()]), st.integers(0, 5))
def test_workers_do_not_matter(name, workers, policy, mix, epoch):
    dls = tiny.loaders(tfms=pipelines()[name], mix=mix, check=False)
    assert same(all_pixels(dls, epoch=epoch, policy=policy), all_pixels(dls, epoch=epoch, policy=policy, num_workers=workers))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['light', 'torchvision'])
def test_spawned_workers_do_not_matter(monkeypatch, name):
    import multiprocessing
    from fastai.data.load import _FakeLoader
    dls = tiny.loaders(tfms=pipelines()[name], mix=Mix())
    want = all_pixels(dls, epoch=1)
    monkeypatch.setattr(_FakeLoader, 'multiprocessing_context', property(lambda self: multiprocessing.get_context('spawn') if self.num_workers else None))
    assert same(want, all_pixels(dls, epoch=1, num_workers=2))


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_torchs_own_loader_sees_the_same_views(workers):
    "Workers that stay from epoch to epoch, another order in each, and every epoch its view"
    dl = tiny.loaders(mix=Mix()).train.new(policy=finite(2), drop_last=False)
    loader = torch.utils.data.DataLoader(ViewSet(dl), 6, sampler=ViewSampler(dl, torch.utils.data.RandomSampler(range(18))), collate_fn=dl.create_batch,
                                         num_workers=workers, persistent_workers=workers > 0)
    for epoch in range(3):
        batches = [dl.after_batch(b) for b in loader]
        want = torch.stack(list(all_pixels(tiny.loaders(mix=Mix()), epoch=epoch % 2, shuffle=False).values())).flatten(1).as_subclass(torch.Tensor)
        got = torch.cat([x for x, _ in batches]).flatten(1).as_subclass(torch.Tensor)
        assert {tuple(o.tolist()) for o in got} == {tuple(o.tolist()) for o in want} and all((y.ride.view == epoch % 2).all() for _, y in batches)


def test_weights_choose_samples_and_nothing_else():
    dls = tiny.loaders()
    weights = (np.arange(18) % 3 == 1).astype(float)
    dl, whole = dls.train.new(wgts=weights, drop_last=False, repeats=2), all_pixels(dls, epoch=2)
    dl.epoch = 1
    idxs = dl.get_idxs()
    assert len(idxs) == 36 and {i % 18 for i in idxs} <= set(range(1, 18, 3)) and [i//18 for i in idxs] == [2]*18 + [3]*18 and dl.new().wgts is weights
    assert len(dl.new(repeats=1).get_idxs()) == 18 and sorted(i % 18 for i in idxs[:18]) != sorted(i % 18 for i in idxs[18:])
    i = idxs[0] % 18
    assert torch.equal(dl.after_batch((dl.do_item(36 + i)[0][None],))[0][0].as_subclass(torch.Tensor), whole[dl.id_of(i)].as_subclass(torch.Tensor))


def test_distributed_samplers_share_an_epoch_and_its_view(monkeypatch):
    from fastai.distributed import DistributedDL
    monkeypatch.setattr(DistributedDL, '_broadcast', lambda self, t, rank: t)
    seen = {}
    for epoch in range(2):
        for rank in range(2):
            dl = tiny.loaders().train.new(shuffle=False, drop_last=False, policy=finite(2))
            dl.epoch = epoch
            for x, y in DistributedDL(dl, rank=rank, world_size=2): seen.setdefault(epoch, []).append((rank, x, y.ride.view))
            assert dl.epoch == epoch + 1
        got = torch.cat([x for _, x, _ in seen[epoch]])
        want = torch.stack(list(all_pixels(tiny.loaders(), epoch=epoch, shuffle=False).values()))
        assert torch.equal(got, want) and all((v == epoch).all() for *_, v in seen[epoch]) and {r for r, *_ in seen[epoch]} == {0, 1}


@pytest.mark.slow
def test_another_process_sees_the_same_pixels():
    code = ("import sys; sys.path.insert(0, 'tests'); import tiny, hashlib; from test_views import all_pixels; from libkd.views import Mix;"
            "p = all_pixels(tiny.loaders(mix=Mix()), epoch=3); print(hashlib.sha256(b''.join(p[k].numpy().tobytes() for k in sorted(p))).hexdigest())")
    once, twice = (subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True, env={**__import__('os').environ, 'PYTHONHASHSEED': h}).stdout for h in '12')
    assert len(once.strip()) == 64 and once == twice


@given(st.integers(0, 2**63), st.integers(0, 5))
def test_outer_generators_continue(seed, draws):
    def three(): return random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1); np.random.seed(1); torch.manual_seed(1)
    three(); want = three()
    random.seed(1); np.random.seed(1); torch.manual_seed(1)
    three()
    with rng_scope(seed):
        for _ in range(draws): three()
        with rng_scope(seed + 1): three()
    assert three() == want


@given(st.integers(0, 2**63))
def test_nested_scopes_do_not_disturb_each_other(seed):
    with rng_scope(seed): a, b = np.random.rand(), np.random.rand()
    with rng_scope(seed):
        c = np.random.rand()
        with rng_scope(seed + 1): np.random.rand()
        d = np.random.rand()
    assert (a, b) == (c, d)


def test_generators_continue_after_an_exception():
    torch.manual_seed(3); want = torch.rand(1)
    torch.manual_seed(3)
    with pytest.raises(KeyError), rng_scope(9): raise KeyError
    assert torch.rand(1) == want


@given(st.binary(min_size=16, max_size=16), st.integers(0, 9), st.integers(0, 9))
def test_seeds_depend_on_all_three(id, v, w):
    assert view_seed(0, id, v) == view_seed(0, id, v)
    if v != w: assert view_seed(0, id, v) != view_seed(0, id, w) and view_seed(v, id, 0) != view_seed(w, id, 0)
    assert view_seed(0, id, v) != view_seed(0, id, v, b'mix') and view_seed(0, id, v) != view_seed(0, id[::-1] + b'x', v)


both_ways = pytest.mark.parametrize('tfms', [None, light_tfms((8, 8))], ids=['in batches', 'one by one'])


@both_ways
def test_a_subset_sees_the_same_pixels(tfms):
    "Seeds follow from the id, not from the position"
    whole, part = all_pixels(tiny.loaders(tfms=tfms)), all_pixels(tiny.loaders(data=tiny.samples().subset(per_class=3), bs=4, tfms=tfms))
    assert len(part) == 9 < len(whole) and all(torch.equal(whole[k], p) for k, p in part.items())


class Seen(Callback):
    "Views of every training batch"
    def __init__(self): self.views = []
    def before_batch(self):
        if self.training: self.views.append(self.yb[0].ride.view.unique().tolist())


def test_every_epoch_asks_for_its_view_also_in_a_second_fit():
    dls, seen = tiny.loaders(), Seen()
    dls.train.policy = finite(3)
    learn = Learner(dls, tiny.Linear(), cbs=seen)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2); dls.one_batch(); learn.fit(2)
    assert [v[0] for v in seen.views] == [e % 3 for e in range(4) for _ in range(len(dls.train))]


def test_repeats_show_every_sample_several_times_under_other_views():
    dl = tiny.loaders().train.new(repeats=3, drop_last=False)
    dl.epoch, n = 2, len(dl.items)
    idxs = dl.get_idxs()
    assert len(dl) == 9 and sorted(idxs) == list(range(6*n, 9*n)) and len(list(dl)) == 9 and dl.new().repeats == 3


@pytest.mark.parametrize('policy, views', [(finite(2), [0, 1, 0, 1]), (replay(4), [0, 1, 2, 3]), (online(), [0, 1, 2, 3]), (clean(), [0, 1, 2, 3])])
def test_policies(policy, views): assert [policy.view(e) for e in range(4)] == views


@pytest.mark.parametrize('bad', [0, -1, True, 2.5, 'all', None])
def test_what_is_no_policy(bad):
    with pytest.raises(ValueError, match='policy|1 or more'): as_policy(bad)


def test_replay_says_when_it_runs_out():
    dls = tiny.loaders()
    dls.train.policy = replay(1); dls.train.epoch = 1
    with pytest.raises(ValueError, match=r'views=replay\(2\)'): dls.one_batch()


@both_ways
def test_validation_is_never_augmented(tfms):
    dls = tiny.loaders(mix=Mix(), tfms=tfms)
    a, b = (torch.cat([x for x, _ in dls.valid]) for _ in range(2))
    plain = torch.cat([x for x, _ in tiny.loaders(tfms=[]).valid])
    assert torch.equal(a, b) and torch.equal(a, plain)


def test_a_mixed_view_is_its_two_parts():
    "The pixels are λ·own + (1−λ)·partner, and the partner's label rides along"
    dls = tiny.loaders(tfms=[], mix=Mix(cutmix_alpha=0))
    plain = tiny.loaders(tfms=[]).train
    originals = [(plain.do_item(i)[0].float(), int(plain.dataset[i][1])) for i in range(len(plain.dataset))]
    for i in range(6):
        x, y = dls.train.do_item(i)
        lam, label = y.ticket[3], y.ticket[2]
        gaps = [(x - (lam*originals[i][0] + (1-lam)*o)).abs().max().item() if l == label else 1e9 for o, l in originals]
        assert min(gaps) < 1e-3 and 0 < lam < 1


@both_ways
def test_mixing_partners_do_not_depend_on_the_order_of_the_items(tfms):
    s = tiny.samples()
    one, other = (tiny.loaders(data=o, mix=Mix(), tfms=tfms) for o in (s, s[np.arange(len(s))[::-1]]))
    assert same(all_pixels(one, epoch=1), all_pixels(other, epoch=1)) and one.train.describe() == other.train.describe()


def test_cutmix_lambda_is_the_share_that_is_left():
    a, b = torch.zeros(3, 8, 8), torch.ones(3, 8, 8)
    x, lam = mix_pair(a, b, .5, (2, 6, 4, 8))
    assert lam == 1 - 16/64 == 1 - x.mean().item()


def soft_ce(z, target): return -(target * z.log_softmax(1)).sum(1)


@given(st.integers(0, 10**6))
def test_label_loss_is_the_soft_cross_entropy(seed):
    rng = torch.Generator().manual_seed(seed)
    z, y, p, lam = torch.randn(5, 3, generator=rng), torch.randint(3, (5,), generator=rng), torch.randint(3, (5,), generator=rng), torch.rand(5, generator=rng)
    yb = TensorCategory(y)
    yb.ride = Ride.collate([(0, 0, int(b), float(l)) for b, l in zip(p, lam)], y)
    eye = torch.eye(3)
    want = soft_ce(z, lam[:, None]*eye[y] + (1-lam)[:, None]*eye[p])
    assert torch.allclose(LabelLoss()(z, yb), want.mean(), atol=1e-6)
    smooth = LabelLoss(CrossEntropyLossFlat(label_smoothing=.1))
    assert torch.allclose(smooth(z, yb), soft_ce(z, .9*(lam[:, None]*eye[y] + (1-lam)[:, None]*eye[p]) + .1/3).mean(), atol=1e-6)


def test_a_batch_without_any_label_costs_nothing_and_has_no_nan():
    z = torch.randn(4, 3, requires_grad=True)
    yb = TensorCategory(torch.full((4,), -1))
    yb.ride = Ride.collate([(0, 0, -1, 1.)]*4, torch.full((4,), -1))
    loss = LabelLoss()(z, yb); loss.backward()
    assert loss == 0 and z.grad.abs().sum() == 0


LOSSES = dict(function=nn.functional.cross_entropy, partial=partial(nn.functional.cross_entropy, label_smoothing=0.), plain=lambda z, y: nn.functional.cross_entropy(z, y),
              fastai=CrossEntropyLossFlat())

@pytest.mark.parametrize('mix', [None, Mix(prob=.5)], ids=['plain', 'mixed'])
@pytest.mark.parametrize('kind', LOSSES)
def test_every_sample_has_its_loss_when_fastai_asks_for_each(kind, mix):
    dls = tiny.loaders(unlabelled=6, mix=mix)
    z, y, each = Learner(dls, nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), loss_func=LabelLoss(LOSSES[kind])).get_preds(dl=dls.train, with_loss=True)
    assert each.shape == (len(dls.train_ds),) and (y < 0).any() and each.std() > 0


@pytest.mark.parametrize('base', [CrossEntropyLossFlat(reduction='sum'), partial(nn.functional.cross_entropy, reduction='sum'), CrossEntropyLossFlat()], ids=['fastai', 'partial', 'asked'])
def test_a_sum_is_the_sum_of_what_is_labelled(base):
    y = tiny.loaders(unlabelled=12, bs=18).train.one_batch()[1]
    z, plain = torch.randn(18, 3), y.as_subclass(torch.Tensor)
    want = nn.functional.cross_entropy(z[plain >= 0], plain[plain >= 0], reduction='sum')
    asked = {} if 'sum' in str(getattr(base, 'keywords', getattr(base, 'reduction', ''))) else dict(reduction='sum')
    assert torch.allclose(LabelLoss(base)(z, y, **asked), want)


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_a_loss_with_a_number_for_each_class_is_mixed(reduction):
    "timm's binary cross-entropy, which its recipes use; of a mixed target it is the mix of both"
    from timm.loss import BinaryCrossEntropy
    y, z, base = tiny.loaders(bs=18, mix=Mix()).train.one_batch()[1], torch.randn(18, 3), BinaryCrossEntropy(0., reduction=reduction)
    eye, lam, plain = torch.eye(3), y.ride.lam[:, None], torch.tensor(y.tolist())
    assert torch.allclose(LabelLoss(base)(z, y), base(z, lam*eye[plain] + (1 - lam)*eye[y.ride.partner.long()]), atol=1e-5)
    assert torch.allclose(LabelLoss(base)(z, plain), base(z, plain))


@pytest.mark.parametrize('mix', [None, Mix()], ids=['plain', 'mixed'])
def test_a_loss_that_takes_no_class_numbers_is_named(mix):
    from timm.loss import SoftTargetCrossEntropy
    y = tiny.loaders(bs=18, mix=mix).train.one_batch()[1]
    for base in (SoftTargetCrossEntropy(), nn.MSELoss(), nn.functional.mse_loss):
        with pytest.raises(ViewError, match=f'The loss {getattr(base, "__name__", type(base).__name__)} does not take logits.*give one for class numbers'): LabelLoss(base)(torch.randn(18, 3), y)
    def broken(z, y):
        if z.any(): raise RuntimeError('the GPU fell off the bus')
        return z.sum()
    with pytest.raises(RuntimeError, match='fell off'): LabelLoss(broken)(torch.randn(18, 3), y)


@pytest.mark.parametrize('kw, error, words', [
    (dict(sise=8), TypeError, "image_dls takes no 'sise'. Did you mean 'size'"), (dict(views=4), TypeError, 'LogitCache.build'), (dict(batch_tfms=[]), TypeError, 'picture by picture'),
    (dict(bs=0), ViewError, 'bs=0'), (dict(batch_size='4'), ViewError, "batch_size='4'"), (dict(size=0), ViewError, r'size=\(0, 0\)'), (dict(size=(8, 8, 3)), ViewError, 'height, width'),
    (dict(mix='mixup'), ViewError, r'give mix=Mix\(\)'), (dict(tfms='light'), ViewError, 'no list of transforms')])
def test_an_argument_that_nobody_takes_is_refused(kw, error, words):
    "fastai passes over names that it does not know"
    with pytest.raises(error, match=words): image_dls(tiny.samples(), **dict(device='cpu') | kw)
    assert image_dls(tiny.samples(), device='cpu', batch_size=np.int64(4), val_shuffle=False, pin_memory=False, shuffle=False, keep=None).train.bs == 4


@pytest.mark.parametrize('data', [None, [1], 3])
def test_what_is_no_data_is_refused(data):
    with pytest.raises(ViewError, match='takes a folder of pictures or Samples'): image_dls(data)
    for odd in (dict(prob=2), dict(switch_prob=-.1)):
        with pytest.raises(ViewError, match='a probability from 0 to 1'): Mix(**odd)


def test_a_loss_takes_no_argument_that_it_would_drop():
    y = tiny.loaders(unlabelled=12, bs=18).train.one_batch()[1]
    for labels in (y, y.as_subclass(torch.Tensor).clamp(min=0)):
        with pytest.raises(TypeError, match='weight'): LabelLoss(nn.functional.cross_entropy)(torch.randn(18, 3), labels, weight=torch.ones(3))


WEIGHED = dict(torch=lambda w: nn.CrossEntropyLoss(weight=w), fastai=lambda w: CrossEntropyLossFlat(weight=w),
               partial=lambda w: partial(nn.functional.cross_entropy, weight=w))

def weights_in(base): return base.keywords['weight'] if isinstance(base, partial) else getattr(base, 'func', base).weight

@pytest.mark.parametrize('kind', WEIGHED)
def test_weights_of_classes_are_where_the_logits_are(kind):
    loss = LabelLoss(WEIGHED[kind](torch.ones(3)))
    assert loss(torch.randn(4, 3), torch.zeros(4, dtype=torch.long)).isfinite() and weights_in(loss.base).device.type == 'cpu'
    assert loss(torch.empty(4, 3, device='meta'), torch.zeros(4, dtype=torch.long, device='meta')).device.type == 'meta'
    assert weights_in(loss.base).device.type == 'meta'


def test_weights_of_classes_follow_views_too():
    y = tiny.loaders(unlabelled=12, bs=18).train.one_batch()[1]
    there = y.to('meta')
    there.ride = y.ride
    loss = LabelLoss(CrossEntropyLossFlat(weight=torch.ones(3)))
    assert loss(torch.empty(18, 3, device='meta'), there, reduction='none').device.type == 'meta'
    assert weights_in(loss.base).device.type == 'meta'


def test_unlabelled_samples_do_not_train_the_labels():
    dls = tiny.loaders(unlabelled=10)
    x, y = tiny.loaders(unlabelled=10, bs=18).one_batch()
    z = torch.randn(len(y), 3)
    known = y.as_subclass(torch.Tensor) >= 0
    assert 0 < known.sum() < len(y)
    assert torch.allclose(LabelLoss()(z, y), nn.functional.cross_entropy(z[known], y.as_subclass(torch.Tensor)[known]))
    assert '(unlabelled)' in [str(o[1]) for o in dls.train.decode_batch((x, y), max_n=18)]


def test_describe_names_every_part_of_the_pipeline():
    one = tiny.loaders().train.describe()
    assert one == tiny.loaders().train.describe()
    for other in (tiny.loaders(seed=1), tiny.loaders(tfms=[v2.RandomCrop(8, padding=3)]), tiny.loaders(mix=Mix()), tiny.loaders(size=16), tiny.loaders(flip=True)):
        assert other.train.describe() != one
    tfms = [[v2.Lambda(lambda im: im)], [v2.Lambda(lambda im: im.rotate(9))]]
    assert tiny.loaders(tfms=tfms[0]).train.describe() != tiny.loaders(tfms=tfms[1]).train.describe()


def test_predict_takes_paths_arrays_and_images(tmp_path):
    from PIL import Image
    dls = tiny.loaders()
    learn = Learner(dls, tiny.Linear())
    array = dls.valid_ds.items[0].source
    Image.fromarray(array).save(tmp_path/'x.png')
    with learn.no_bar(): answers = [learn.predict(o)[2] for o in (array, tmp_path/'x.png', str(tmp_path/'x.png'), Image.fromarray(array))]
    assert all(torch.equal(answers[0], a) for a in answers[1:])

@pytest.mark.parametrize('tfms', [[], [RandomResizedCrop(6)], None], ids=['only resized', "fastai's random crop", 'default'])
def test_a_description_is_of_the_transforms_and_not_of_what_they_drew_last(tfms):
    dls = image_dls(Samples.from_arrays(list(np.random.default_rng(0).integers(0, 255, (24, 9, 13, 3), dtype=np.uint8)), [0, 1]*12, classes=['a', 'b']), size=6, tfms=tfms, bs=4, check=False)
    before = dls.train.describe()
    dls.train.one_batch(); dls.valid.one_batch()
    assert dls.train.describe() == before


# -- LightViews --------------------------------------------------------------------------------------------------------
def some_pictures(n, size, seed=0):
    "Pictures (n,3,size,size) and ids (n,16), from our own hash: no library's generator has a say"
    raw = scramble(np.arange(n*(3*size*size + 16), dtype=np.uint64) + np.uint64(seed)).astype(np.uint8)
    return torch.from_numpy(raw[:n*3*size*size].reshape(n, 3, size, size)), raw[n*3*size*size:].reshape(n, 16)


GOLDEN = {'plain': 'f9dcb054497ffd2cb1acf0ba8d254e915e5ffe8ce680766ebe8aad5e7591ae5c',
          'mixed': '91194e05caf1b3c3f0be55657434ce9c7baa85cfbcac769cce375fe7b081d001'}


def golden_views(device='cpu'):
    "SHA-256 of 64 views, plain and mixed: also run where this file is not, on other versions and devices"
    x, ids = some_pictures(64, 24)
    keys = view_keys(7, ids, np.arange(64) % 5)
    a = LightViews(flip=True, erase=.5)(x.to(device), keys)
    b, lam = mixed(a, a.flip(0), *Mix(prob=.9).lams_boxes(draws(keys, 8, 5), 24, 24))
    return {'plain': hashlib.sha256(a.cpu().numpy().tobytes()).hexdigest(),
            'mixed': hashlib.sha256(b.cpu().numpy().tobytes() + lam.numpy().tobytes()).hexdigest()}


def test_the_bits_of_64_views_never_change():
    "Stored answers belong to these pixels: another algorithm needs another number in `ALGORITHM`"
    assert golden_views() == GOLDEN


lights = st.builds(LightViews, shift=st.sampled_from([0, .1, 1/8, .5]), flip=st.booleans(), colour=st.sampled_from([0, .2, 1.]), erase=st.sampled_from([0, .3, 1.]))


@given(lights, st.integers(1, 20), st.integers(0, 2**64), st.randoms(use_true_random=False))
def test_a_light_view_does_not_depend_on_its_batch(light, size, seed, rnd):
    x, ids = some_pictures(30, size, seed % 97)
    keys = view_keys(seed, ids, np.arange(30))
    whole, order = light(x, keys), list(range(30))
    rnd.shuffle(order)
    cuts = sorted({0, 30, *(rnd.randint(0, 30) for _ in range(4))})
    parts = [light(x[order[a:b]], view_keys(seed, ids[order[a:b]], np.arange(30)[order[a:b]])) for a, b in zip(cuts, cuts[1:])]
    assert whole.dtype == torch.uint8 and torch.equal(torch.cat(parts), whole[order])
    assert torch.equal(light(x[3:4], keys[3:4]), whole[3:4])


@pytest.mark.parametrize('bs', [1, 64, 1024])
def test_batch_size_and_order_of_a_loader_do_not_matter(bs):
    data = tiny.samples(n=80)
    want = all_pixels(tiny.loaders(data=data, mix=Mix(), bs=7), epoch=2)
    assert same(want, all_pixels(tiny.loaders(data=data, mix=Mix(), bs=bs), epoch=2, shuffle=True))


@given(lights, st.integers(2, 20), st.integers(0, 50))
def test_parts_of_a_light_view_do_not_disturb_each_other(light, size, seed):
    "Switching erasing off changes only pixels that were erased"
    x, ids = some_pictures(6, size, seed)
    keys = view_keys(seed, ids, range(6))
    gone = box_mask(erase_boxes(draws(keys, ERASE, 41), size, size, light.erase), x) if light.erase else torch.zeros(1, dtype=torch.bool)
    without = LightViews(light.shift, light.flip, light.colour)(x, keys)
    assert torch.equal(torch.where(gone, 0, light(x, keys)), torch.where(gone, 0, without))


@given(st.lists(st.integers(0, 8192), min_size=3, max_size=3), st.integers(0, 5), st.integers(0, 999))
def test_colours_are_pillows(factors, order, seed):
    from PIL import Image, ImageEnhance
    x, _ = some_pictures(1, 9, seed)
    im = Image.fromarray(x[0].permute(1, 2, 0).numpy())
    for k in ORDERS[order]: im = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[k](im).enhance(factors[k]/4096)
    assert np.array_equal(coloured(x, np.array([factors]), ORDERS[[order]])[0].permute(1, 2, 0).numpy(), np.asarray(im))


@pytest.mark.slow
def test_light_views_are_distributed_as_torchvisions():
    "Means and deviations of the pixels over 3,000 draws, and the shares of pictures and areas that are erased"
    n, one = 3000, some_pictures(1, 8, 5)[0]
    keys = view_keys(0, np.zeros((n, 16), np.uint8), np.arange(n))
    ours = LightViews(flip=True)(one.expand(n, 3, 8, 8), keys).double()
    theirs, im = v2.Compose(light_tfms((8, 8), flip=True)), v2.functional.to_pil_image(one[0])
    with rng_scope(0): theirs = torch.stack([v2.functional.pil_to_tensor(theirs(im)) for _ in range(n)]).double()
    error = (ours.var(0) + theirs.var(0)).div(n).sqrt()
    assert ((ours.mean(0) - theirs.mean(0))/error).abs().max() < 4.5 and (ours.std(0)/theirs.std(0) - 1).abs().max() < .1
    boxes = erase_boxes(draws(keys, ERASE, 41), 32, 32, .5)
    area = np.prod(boxes[:, 1::2] - boxes[:, ::2], 1)
    with rng_scope(1): want = np.array([(v2.RandomErasing(.5)(torch.ones(1, 32, 32)) == 0).sum() for _ in range(n)])
    assert abs((area > 0).mean() - (want > 0).mean()) < .04 and abs(area[area > 0].mean() - want[want > 0].mean()) < 12


@pytest.mark.parametrize('alpha', [*BETA, 1])
def test_lambda_is_beta_distributed(alpha):
    from scipy.stats import beta
    keys = view_keys(1, np.zeros((4000, 16), np.uint8), np.arange(4000))
    lam, _ = Mix(alpha, 0).lams_boxes(draws(keys, 8, 5), 8, 8)
    for x in (.01, .1, .3, .5, .7, .9, .99): assert abs((lam/2**16 <= x).mean() - beta(alpha, alpha).cdf(x)) < .03


def test_cutmix_boxes_are_timms():
    "As large as timm's for the same λ, wherever they lie; the share counts what is pasted"
    u = draws(view_keys(2, np.zeros((500, 16), np.uint8), np.arange(500)), 8, 5)
    lam, boxes = Mix(0, 1.).lams_boxes(u, 20, 30)
    x, y = torch.zeros(500, 3, 20, 30, dtype=torch.uint8), torch.full((500, 3, 20, 30), 255, dtype=torch.uint8)
    z, share = mixed(x, y, lam, boxes)
    assert (lam == 2**16).all() and torch.allclose(share, 1 - z.double().mean((1, 2, 3)).float()/255, atol=1e-6)
    root = np.sqrt(1 - u[2].astype(float)/2**32)
    inner = (boxes[:, 0] > 0) & (boxes[:, 1] < 20) & (boxes[:, 2] > 0) & (boxes[:, 3] < 30)
    h, w = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    assert inner.sum() > 50 and (np.abs(h - 20*root)[inner] <= 2).all() and (np.abs(w - 30*root)[inner] <= 2).all()


def test_a_mixed_light_view_is_its_two_parts():
    dls, plain = tiny.loaders(tfms=LightViews(0, colour=0), mix=Mix(cutmix_alpha=0)), tiny.loaders(tfms=[]).train
    whole = torch.stack([plain.do_item(i)[0].float() for i in range(18)])
    x, y = dls.train.new(shuffle=False, get_idxs=Given(range(36, 54)), drop_last=False, bs=18, after_batch=[]).one_batch()
    lam = y.ride.lam[:, None, None, None]
    gaps = (x.float()[:, None] - (lam*whole)[:, None] - (1 - lam)[:, None]*whole[None]).abs().amax((2, 3, 4))      # (mixed, partner)
    assert (gaps.min(1).values < .6).all() and (y.as_subclass(torch.Tensor)[gaps.argmin(1)] == y.ride.partner).all() and y.ride.mixed


def test_draws_of_samples_views_and_seeds_are_unlike():
    ids = some_pictures(1, 2)[1]
    base = draws(view_keys(0, ids, [0]), 0, 8)
    flipped = ids.copy(); flipped[0, 15] ^= 1
    for other in (view_keys(1, ids, [0]), view_keys(0, ids, [1]), view_keys(0, flipped, [0]), view_keys(2**32, ids, [0])):
        assert not (draws(other, 0, 8) == base).any()


@pytest.mark.parametrize('bad', [dict(colour=1.5), dict(shift=.7), dict(erase=-.1)])
def test_light_views_say_what_they_can(bad):
    with pytest.raises(ValueError, match=next(iter(bad)) + '.*from 0 to'): LightViews(**bad)


def test_transforms_may_come_from_a_generator_and_one_alone_is_told_to_stand_in_a_list():
    tfms = [v2.RandomHorizontalFlip(1.), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((.5,)*3, (.2,)*3)]
    assert views.TrainTfm(o for o in tfms).norms == tfms[3:]
    want, got = (tiny.loaders(tfms=o).train.pixels([0, 1], [0, 0]) for o in (tfms, iter(tfms)))
    assert torch.equal(want, got)
    with pytest.raises(ValueError, match=r'tfms=RandomHorizontalFlip\(…\) is no list'): tiny.loaders(tfms=tfms[0])


@pytest.mark.parametrize('label', [-2, 3])
def test_a_number_of_no_class_is_refused(label):
    with pytest.raises(views.ViewError, match=f'Label {label} is outside the 3 classes.*from 0 to 2, −1 is unlabelled'): views.SampleCategory(tiny.CLASSES)(label)


def test_light_views_and_other_transforms_do_not_go_together():
    with pytest.raises(ValueError, match=r'RandomRotation stands beside it.*light_tfms\(size\)'): tiny.loaders(tfms=[LightViews(), v2.RandomRotation(9)])
    with pytest.raises(ValueError, match='draw λ for any α'): tiny.loaders(mix=Mix(.7))
    tiny.loaders(mix=Mix(.7), tfms=light_tfms((8, 8))).one_batch()


def test_light_views_are_the_default_of_small_pictures_only():
    big = Samples.from_arrays(np.random.default_rng(0).integers(0, 255, (8, 97, 97, 3), dtype=np.uint8), [0, 1]*4)
    assert tiny.loaders(data=big.split(.5), bs=2).train.light is None and tiny.loaders(data=big.split(.5), bs=2, size=96).train.light is not None
    assert tiny.loaders(tfms=[]).train.light is None and tiny.loaders(tfms=LightViews(erase=.1)).train.light.erase == .1


def wide_samples(n=12):
    "Pictures of other proportions than square, all different"
    rng = np.random.default_rng(0)
    return Samples.from_arrays([rng.integers(0, 255, (9 + i % 3, 12 + i, 3), dtype=np.uint8) for i in range(n)], [0, 1]*(n//2)).split(.5)


def test_other_proportions_show_a_window_and_validation_the_middle():
    dls = tiny.loaders(data=wide_samples(), size=8, tfms=LightViews(0, colour=0), bs=6)
    pics = dls.train.pictures
    pics.load()
    assert (pics.shapes[:, 0] == 8).all() and (pics.shapes[:, 1] > 8).all()
    seen = set()
    for v in range(40):
        x = dls.train.pixels(np.arange(6), np.full(6, v))
        wholes = [torch.from_numpy(pics.read(i).copy()).permute(2, 0, 1) for i in range(6)]
        places = [[k for k in range(w.shape[2] - 7) if torch.equal(w[:, :, k:k+8], o)] for w, o in zip(wholes, x)]
        assert all(len(p) == 1 for p in places)
        seen |= {(i, p[0]) for i, p in enumerate(places)}
    assert len(seen) == sum(w.shape[2] - 7 for w in wholes)             # every window comes
    x, = dls.valid.new(after_batch=[]).one_batch()[:1]
    first = torch.from_numpy(dls.valid.pictures.read(0).copy()).permute(2, 0, 1)
    middle = (first.shape[2] - 8)//2
    assert torch.equal(x[0].as_subclass(torch.Tensor), first[:, :, middle:middle+8])


def test_loaders_made_from_another_share_its_pictures():
    dls = tiny.loaders()
    assert dls.train.new(policy=finite(2)).pictures is dls.train.pictures and dls.valid.pictures is not dls.train.pictures


def test_predictions_of_one_picture_a_batch_and_a_test_loader_agree(tmp_path):
    from PIL import Image
    dls = tiny.loaders(data=wide_samples(), size=8, bs=4)
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), loss_func=CrossEntropyLossFlat())
    with learn.no_bar():
        whole = learn.get_preds()[0]
        arrays = [o.source for o in dls.valid_ds.items]
        again, none = learn.get_preds(dl=dls.test_dl(arrays))
        one = learn.predict(Image.fromarray(arrays[2]))[2]
    assert none is None and torch.equal(whole, again) and torch.allclose(one, whole[2], atol=1e-6)
    dls.show_batch()


# -- pictures ----------------------------------------------------------------------------------------------------------
def files(folder, n=6, size=(8, 8)):
    from PIL import Image
    folder.mkdir(exist_ok=True)
    rng, out = np.random.default_rng(1), []
    for i in range(n): Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder/f'{i}.png'); out.append(folder/f'{i}.png')
    return out


def test_arrays_side_by_side_are_not_copied():
    block = np.random.default_rng(0).integers(0, 255, (10, 8, 8, 3), dtype=np.uint8)
    pics = Pictures(list(block)[::-1], (8, 8))
    assert torch.equal(pics.take([0]), torch.from_numpy(block[9:].copy()).permute(0, 3, 1, 2))
    assert pics.flat.data_ptr() == block.ctypes.data and pics.have.all()
    for other in (list(block[:, :, ::-1]), [o.copy() for o in block], list(block.astype(np.int16).astype(np.uint8)) + [block[0]]):
        p = Pictures(other, (8, 8))
        assert torch.equal(p.take(np.arange(len(other))), torch.from_numpy(np.stack(other)).permute(0, 3, 1, 2))


def test_pictures_are_decoded_once_and_only_when_asked_for(tmp_path, monkeypatch):
    opened, pics = [], Pictures(files(tmp_path), (8, 8))
    read = Pictures.read
    monkeypatch.setattr(Pictures, 'read', lambda self, i: (opened.append(int(i)), read(self, i))[1])
    a = pics.take([3, 1, 3]); b = pics.take([1, 3, 5])
    assert opened == [1, 3, 5] and torch.equal(a[0], b[1])


def test_a_mapped_file_is_shared_and_written_over_when_damaged(tmp_path, monkeypatch):
    source = files(tmp_path/'data')
    want, keep = Pictures(source, (8, 8)).take(np.arange(6)), tmp_path/'keep'
    keep.mkdir()
    first = Pictures(source, (8, 8), keep)
    first.measure()
    assert torch.equal(first.take(np.arange(6)), want)
    monkeypatch.setattr(Pictures, '_write', lambda *a: pytest.fail('written twice'))
    assert torch.equal(Pictures(source, (8, 8), keep).take(np.arange(6)), want)            # another process finds it
    monkeypatch.undo()
    first.path.write_bytes(first.path.read_bytes()[:100])
    assert torch.equal(Pictures(source, (8, 8), keep).take(np.arange(6)), want) and len(list(keep.iterdir())) == 3
    files(tmp_path/'data', n=1, size=(8, 9))                                               # another picture under the same name
    other = Pictures(source, (8, 8), keep)
    other.open()
    assert other.path != first.path and other.shapes[0].tolist() == [8, 9]
    moved = Pictures([o.rename(o.with_suffix('.moved')) for o in map(Path, source)], (8, 8), keep)
    moved.open()
    assert moved.path == other.path                                                        # the same content under other names


@pytest.mark.parametrize('kills,again', [((5,), 2), ((3, 3), 2), ((2,), 6), ((1,), 6)])
def test_a_killed_process_leaves_what_it_has_decoded(tmp_path, monkeypatch, kills, again):
    import libkd.views as m
    source, read = files(tmp_path/'data'), Pictures.read
    want = Pictures(source, (8, 8)).take(np.arange(6))
    monkeypatch.setattr(m, 'SYNCED', 2)
    def decode(most):
        opened = []
        def counted(self, i):
            if len(opened) == most: raise KeyboardInterrupt                                # leaves what a kill leaves
            opened.append(i)
            return read(self, i)
        monkeypatch.setattr(Pictures, 'read', counted)
        x = Pictures(source, (8, 8), tmp_path/'keep').take(np.arange(6))
        return x, opened
    for most in kills:
        with pytest.raises(KeyboardInterrupt): decode(most)
    x, opened = decode(6)
    assert torch.equal(x, want) and len(opened) == again
    assert not list((tmp_path/'keep').glob('.*'))


def test_many_pictures_say_that_they_are_looked_at(monkeypatch):
    import libkd.views as m
    said = []
    def quiet(n, what, verbose):
        said.append((n, what, verbose))
        return progress(n, what, verbose=False)
    monkeypatch.setattr(m, 'progress', quiet)
    for n in (10, 10_001): Pictures([np.zeros((8, 8, 3), np.uint8)]*n, (8, 8)).measure()
    assert said == [(10, 'looking at pictures', False), (10_001, 'looking at pictures', True)]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    import errno, os
    pics = Pictures(files(tmp_path/'data'), (8, 8), tmp_path/'keep')
    def full(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr('libkd.files.os.replace', full)
    with pytest.raises(ValueError, match='disk is full.*pictures-.*6 decoded pictures'): pics.take([0])
    assert not list((tmp_path/'keep').glob('*.u8')) and not list((tmp_path/'keep').glob('.*'))


def test_a_picture_that_changes_meanwhile_is_named(tmp_path):
    source = files(tmp_path)
    pics = Pictures(source, (8, 8))
    pics.take([0])
    files(tmp_path, size=(8, 20))
    with pytest.raises(ValueError, match='1.png has another size'): pics.take([1])


def test_pictures_find_a_place_as_room_allows(tmp_path, monkeypatch):
    import libkd.views as m
    source = files(tmp_path)
    want = Pictures(source, (8, 8)).take(np.arange(6))
    monkeypatch.setattr(m, 'free_memory', lambda: 1000)
    mapped = Pictures(source, (8, 8))
    assert torch.equal(mapped.take(np.arange(6)), want) and mapped.path.is_file()
    path = mapped.path
    del mapped
    assert not path.exists()
    monkeypatch.setattr(m.shutil, 'disk_usage', lambda _: m.shutil._ntuple_diskusage(1000, 0, 1000))
    nowhere = Pictures(source, (8, 8))
    with pytest.warns(UserWarning, match='decoded for every view'): assert torch.equal(nowhere.take(np.arange(6)), want)
    assert nowhere.flat is None


def test_free_memory_heeds_the_container(tmp_path):
    (tmp_path/'memory').mkdir()
    for name, value in (('limit_in_bytes', 5000), ('usage_in_bytes', 3000), ('stat', 'cache 9\ntotal_inactive_file 500\n')): (tmp_path/f'memory/memory.{name}').write_text(str(value))
    assert free_memory(tmp_path) == 2500
    (tmp_path/'memory/memory.usage_in_bytes').write_text('9000')
    assert free_memory(tmp_path) == 0 and free_memory(tmp_path/'no such') > 10**7


def test_pictures_travel_as_a_path(tmp_path):
    pics = Pictures(files(tmp_path, n=40), (8, 8))
    want, sent = pics.take(np.arange(40)), pickle.dumps(pics)
    there = pickle.loads(sent)
    assert there.flat is None and torch.equal(there.take(np.arange(40)), want)


def test_a_gpu_takes_the_pictures_if_it_has_room(monkeypatch):
    pics, moved = Pictures(list(np.zeros((4, 8, 8, 3), np.uint8)), (8, 8)), []
    pics.load()
    class Flat:
        device = torch.device('cpu')
        def to(self, device): moved.append(device); return self
        def cpu(self): moved.append('cpu'); return self
    pics.flat = Flat()
    for free, workers, want in ((100, 0, []), (10**6, 0, ['cuda:0']), (10**6, 2, ['cpu'])):
        monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda _: (free, free))
        moved.clear(); pics.settle(workers, 'cuda:0')
        assert moved == want


def test_100_000_files_are_not_built_to_make_loaders(monkeypatch):
    import libkd.data as d
    n, built = 4000, []
    items = [f'{i % 2}/{i}.png' for i in range(n)]
    data = Samples(items, [i % 2 for i in range(n)], ['0', '1'], np.where(np.arange(n) % 5 == 0, 'valid', 'train'), root='/nowhere')
    picture = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr('libkd.views._shape', lambda o: (8, 8))
    monkeypatch.setattr('libkd.views.open_image', lambda o: __import__('PIL.Image').Image.fromarray(picture))
    get = Samples.__getitem__
    def counted(self, i):
        if isinstance(i, (int, np.integer)): built.append(i)
        return get(self, i)
    monkeypatch.setattr(Samples, '__getitem__', counted)
    dls = image_dls(data, check=False, device=torch.device('cpu'))
    dls.train.ids(), dls.train.labels(), dls.train.get_idxs()
    assert len(built) < 40 and len(dls.train_ds) == 3200 and isinstance(dls.train.items, Samples)
    assert dls.train.items[7].id == data[data.parts == 'train'][7].id


@given(st.integers(0, 99))
def test_digests_know_the_pixels(seed):
    dl = tiny.loaders(mix=Mix()).train
    rows, views = np.array([3, 0, 5, 3]), np.array([seed, 1, 2, seed])
    x = dl.pixels(rows, views)
    d = view_digests(x)
    assert d.shape == (4, 8) and (d[0] == d[3]).all() and len({o.tobytes() for o in d}) == 3
    assert np.array_equal(view_digests(x[1:2]), d[1:2])
    x[1, 2, 7, 7] ^= 1
    assert (view_digests(x) != d).any(1).tolist() == [False, True, False, False]
    one = tiny.loaders(tfms=light_tfms((8, 8))).train
    assert np.array_equal(view_digests(one.pixels(rows, views))[0], view_digests(one.do_item(seed*18 + 3)[0][None])[0])


def test_a_picture_that_a_viewer_turns_is_turned(tmp_path):
    "A photograph of a telephone held upright lies on its side in the file"
    from PIL import Image
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif(); exif[0x0112] = 6
    for name in ('x.jpg', 'x.png'):
        image.save(tmp_path/name, exif=exif)
        pics = Pictures([tmp_path/name], (10, 8))
        assert pics.take([0]).shape == (1, 3, 10, 8) and pics.shapes.tolist() == [[12, 8]]


# -- pictures that lie where they were decoded --------------------------------------------------------------------------------

def three_files(folder):
    from PIL import Image
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(3): Image.fromarray(np.full((8, 8, 3), 60*i, np.uint8)).save(folder/f'{i}.bmp')
    return [folder/f'{i}.bmp' for i in range(3)]


def rewritten(file, value, quiet=False):
    "Another picture under the same name, of the same size; `quiet`: with its old times"
    import os
    from PIL import Image
    s = file.stat()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file)
    if quiet: os.utime(file, ns=(s.st_atime_ns, s.st_mtime_ns))


@pytest.mark.parametrize('quiet', [False, True])
@pytest.mark.parametrize('keep', [False, True])
def test_a_loader_that_lives_on_refuses_pictures_that_were_exchanged(tmp_path, quiet, keep):
    from libkd.views import ViewError
    files = three_files(tmp_path/'x')
    pics = Pictures(files, (8, 8), tmp_path/'kept' if keep else None)
    pics.take([0, 1, 2])
    pics.settle(0, 'cpu')
    rewritten(files[1], 99, quiet)
    with pytest.raises(ViewError, match='1.bmp is another picture than when this loader first saw it'): pics.settle(0, 'cpu')


def test_touched_and_vanished_files_are_no_other_pictures(tmp_path):
    files = three_files(tmp_path/'x')
    pics = Pictures(files, (8, 8))
    before = pics.take([0, 1, 2]).clone()
    rewritten(files[1], 60)                        # the same again
    files[2].unlink()
    for _ in range(2): pics.settle(0, 'cpu')
    assert torch.equal(pics.take([0, 1, 2]), before)


def test_an_array_that_is_changed_in_place_is_noticed():
    from libkd.views import ViewError
    arrays = [np.full((9, 9, 3), 60*i, np.uint8) for i in range(3)]
    pics = Pictures(arrays, (8, 8))
    pics.take([0, 1, 2])
    arrays[2][0, 0] = 9
    with pytest.raises(ViewError, match='Picture 2 is another picture'): pics.settle(0, 'cpu')


def test_a_damaged_file_of_pictures_is_written_again(tmp_path):
    "Of the right size, and with a byte that flipped"
    files = three_files(tmp_path/'x')
    first = Pictures(files, (8, 8), tmp_path/'kept')
    before = first.take([0, 1, 2]).clone()
    data = bytearray(first.path.read_bytes()); data[5] ^= 1; first.path.write_bytes(data)
    second = Pictures(files, (8, 8), tmp_path/'kept')
    assert torch.equal(second.take([0, 1, 2]), before) and second.path == first.path


def test_a_file_of_pictures_is_named_by_what_is_seen_and_not_by_versions(tmp_path, monkeypatch):
    import PIL
    from PIL import Image
    files = three_files(tmp_path/'x')
    def path():
        pics = Pictures(files, (8, 8), tmp_path/'kept')
        pics.open()
        return pics.path
    first = path()
    monkeypatch.setattr(PIL, '__version__', '99.0')
    assert path() == first
    monkeypatch.setattr(Image, 'open', lambda source, f=Image.open: f(source).point(lambda v: v ^ 4))
    assert path() != first


# -- the same views with more pixels -------------------------------------------------------------------------------------

def waves(n=12, side=48):
    "Soft pictures, which look alike at any size"
    rng, at = np.random.default_rng(0), np.linspace(0, 1, side)
    f, p = rng.uniform(2, 6, (2, n, 3)), rng.uniform(0, 6, (n, 3))
    at = f[0][:, None, None]*at[:, None, None] + f[1][:, None, None]*at[None, :, None] + p[:, None, None]
    return list((127.5 + 120*np.sin(at)).astype(np.uint8))


def grown(size=16, want=(128, 128), side=48, **kw):
    data = Samples.from_arrays(waves(side=side), ['ab'[i % 2] for i in range(12)], classes=['a', 'b']).split(valid=.25, seed=0)
    dl = image_dls(data, size=size, check=False, **kw).train
    return dl, views.rendered(dl, want)


def test_more_pixels_show_the_same_views():
    "Shift, mirror, colour, partner and share are those of the small view; another view is another picture"
    small, large = grown(flip=True, mix=Mix())
    rows, nth = np.tile(np.arange(len(small.items)), 3), np.repeat(np.arange(3), len(small.items))
    down = torch.nn.functional.interpolate(large.pixels(rows, nth).float(), (16, 16), mode='area')
    far = lambda k: (down - small.pixels(rows, (nth + k) % 3).float()).abs().flatten(1).mean(1)
    assert large.size == (48, 48) and 3*far(0).median() < min(far(1).median(), far(2).median())
    idxs = [5, 2, len(small.items) + 1]
    one, two = (dl.make_batch(idxs)[1].ride for dl in (small, large))
    assert torch.equal(one.partner, two.partner) and torch.equal(one.view, two.view) and torch.allclose(one.lam, two.lam, atol=.06)


@pytest.mark.parametrize('kw, size', [
    (dict(want=(40, 40)), (40, 40)),            # what the model wants
    (dict(), (48, 48)),                         # what the files have
    (dict(size=(16, 8)), (48, 24)),             # in the proportions of the loader
    (dict(want=(24, 24)), None), (dict(side=24), None), (dict(want=None), None),
    (dict(tfms=[v2.Resize(16)], size=16), None)])
def test_pixels_are_as_many_as_the_model_wants_and_the_files_have(kw, size):
    small, large = grown(**kw)
    assert large is small if size is None else large.size == size and large.light == small.light


def test_more_pixels_leave_the_loader_as_it_was(tmp_path):
    small, large = grown(keep=tmp_path)
    before = small.pixels(np.arange(4), np.zeros(4, int)).clone()
    large.pixels(np.arange(4), np.zeros(4, int))
    assert small.size == (16, 16) and torch.equal(small.pixels(np.arange(4), np.zeros(4, int)), before)


def test_few_large_pictures_do_not_decide_the_size():
    small, large = [np.zeros((32, 40, 3), np.uint8)]*8, [np.zeros((n, n, 3), np.uint8) for n in (500, 600)]
    for i, x in enumerate(small): small[i] = np.full_like(x, i)
    samples = Samples.from_arrays([*small, *large], [0, 1]*5)
    assert image_dls(samples, bs=2, check=False).size == (32, 32)
