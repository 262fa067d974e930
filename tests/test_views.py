"Views are pure functions of (seed, sample id, view): same pixels whatever the workers, the order, the process."
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
from libkd.data import Samples
from libkd.views import LabelLoss, Mix, Ride, ViewSampler, ViewSet, as_policy, clean, finite, image_dls, mix_pair, online, open_sample, replay, rng_scope, view_seed


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
    return {'torchvision': [v2.RandomCrop(8, padding=2), v2.ColorJitter(.4, .4, .4)],
            'torchvision tensor': [v2.RandAugment(), v2.ToImage(), v2.RandomErasing(p=1.)],
            'timm': [timm.data.create_transform(8, is_training=True, auto_augment='rand-m9-mstd0.5-inc1', mean=(0, 0, 0), std=(1, 1, 1))],
            'fastai': [RandomResizedCrop(8)]}


@pytest.mark.parametrize('name', ['torchvision', 'torchvision tensor', 'timm', 'fastai'])
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


@pytest.mark.parametrize('tfms', [[], *({**pipelines(), **unmodified()}.values())], ids=lambda t: type(t[0] if isinstance(t, list) and t else t).__name__)
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
    data = tiny.samples(unlabelled=3)
    dls = tiny.loaders(data=data, tfms=[v2.ColorJitter(.9, .9, .9)])
    for dl in (dls.valid, dls.test_dl([data[i] for i in range(6)], with_labels=True)):
        slow = dl.new()
        slow.plain = False
        assert dl._steps() == [] and slow._steps() is None
        (x, y), (x2, y2) = dl.one_batch(), slow.one_batch()
        assert type(x) is type(x2) and type(y) is type(y2) and y.dtype == y2.dtype and torch.equal(x, x2) and torch.equal(y, y2)


def test_a_transform_that_is_added_later_is_applied():
    class Black(DisplayedTransform):
        order = 50
        def encodes(self, x:TensorImage): return x*0
    dls = tiny.loaders()
    dls.train.after_item.add(Black())
    assert dls.train.do_item(0)[0].sum() == 0
    assert tiny.loaders(tfms=[Resize(4)]).train.do_item(0)[0].shape == (3, 4, 4)


pipeline_names, policies = st.sampled_from(['torchvision', 'torchvision tensor', 'timm', 'fastai']), st.sampled_from([online(), clean(), finite(2), finite(3), replay(6)])


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
def test_spawned_workers_do_not_matter(monkeypatch):
    import multiprocessing
    from fastai.data.load import _FakeLoader
    dls = tiny.loaders(mix=Mix())
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


def test_a_subset_sees_the_same_pixels():
    "Seeds follow from the id, not from the position"
    whole, part = all_pixels(tiny.loaders()), all_pixels(tiny.loaders(data=tiny.samples().subset(per_class=3), bs=4))
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


def test_validation_is_never_augmented():
    dls = tiny.loaders(mix=Mix())
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


def test_mixing_partners_do_not_depend_on_the_order_of_the_items():
    s, mix = tiny.samples(), Mix()
    turned = s[np.arange(len(s))[::-1]]
    a, b = (all_pixels(tiny.loaders(data=o, mix=mix), epoch=1) for o in (s, turned))
    assert same(a, b) and tiny.loaders(data=s, mix=mix).train.describe() == tiny.loaders(data=turned, mix=mix).train.describe()


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


def test_unlabelled_samples_do_not_train_the_labels():
    dls = tiny.loaders(unlabelled=10)
    x, y = tiny.loaders(unlabelled=10, bs=18).one_batch()
    z = torch.randn(len(y), 3)
    known = y.as_subclass(torch.Tensor) >= 0
    assert 0 < known.sum() < len(y)
    assert torch.allclose(LabelLoss()(z, y), nn.functional.cross_entropy(z[known], y.as_subclass(torch.Tensor)[known]))
    assert '(unlabelled)' in [str(o[1]) for o in dls.train.decode_batch((x, y), max_n=18)]


def test_remembered_views_are_the_made_ones():
    dls = tiny.loaders()
    dls.train.policy = finite(2)
    first, again = (all_pixels(dls, epoch=e, policy=finite(2)) for e in (0, 2))
    assert same(first, again)
    dl = dls.train
    fresh = dl.do_item(3)[0].clone()
    assert 3 in dl.memory and torch.equal(dl.do_item(3)[0], fresh) and dl.do_item(3)[1].ticket == dl.memory[3][2]


def test_images_larger_than_the_memory_are_not_remembered(monkeypatch):
    import libkd.views as m
    monkeypatch.setattr(m, 'REMEMBER_BYTES', 100)
    dls = tiny.loaders()
    dls.train.policy = finite(2); dls.one_batch()
    assert not dls.train.memory


def test_describe_names_every_part_of_the_pipeline():
    one = tiny.loaders().train.describe()
    assert one == tiny.loaders().train.describe()
    for other in (tiny.loaders(seed=1), tiny.loaders(tfms=[v2.RandomCrop(8, padding=3)]), tiny.loaders(mix=Mix()), tiny.loaders(size=16)):
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
