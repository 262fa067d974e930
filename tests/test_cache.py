"The cache: what is stored belongs to this image, this view, this teacher; whatever happens to the folder is noticed."
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.data.block import DataBlock
from fastai.data.transforms import GrandparentSplitter, get_image_files, parent_label
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.torch_core import TensorImage
from fastai.vision.data import ImageBlock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision.transforms import v2

import tiny
from libkd import UserError
from libkd.cache import TopK, top_k, CacheCorrupt, CacheError, CacheLocked, CacheMismatch, CacheUnfinished, LogitBlock, LogitCache
from libkd.learner import distill_learner
from libkd.teachers import Teacher, fit_teacher
from libkd.views import LightViews, Mix, clean, finite, image_dls, light_tfms, replay


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A cache of two teachers, two views, three shards a view"
    dls = tiny.loaders()
    teachers = [tiny.teacher('a', 1), tiny.teacher('b', 2, bias='inv')]
    path = tmp_path_factory.mktemp('made')/'cache'
    return dls, teachers, LogitCache.build(path, dls, teachers, views=2, shard_rows=7)


@pytest.fixture
def copied(made, tmp_path):
    "The same, in a folder that may be spoilt"
    dls, teachers, cache = made
    shutil.copytree(cache.path, tmp_path/'cache')
    return dls, teachers, tmp_path/'cache'


def build(path, dls, teachers, **kw): return LogitCache.build(path, dls, teachers, **{'views': 2, 'shard_rows': 7, 'check': False, **kw})


def contents(path): return {p.relative_to(path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(path.rglob('*')) if p.is_file() and p.name != '.lock'}


def live(dls, teacher, row, view):
    dl = dls.train
    x = dl.after_batch((dl.do_item(view*len(dl.items) + row)[0][None],))[0]
    return teacher.logits(x, stats=dls.stats)[0]


# -- what comes back ---------------------------------------------------------------------------------------------------

@given(st.lists(st.tuples(st.integers(0, 17), st.integers(0, 1)), min_size=1, max_size=9))
def test_gather_gives_each_row_its_own_answer(made, pairs):
    dls, teachers, cache = made
    rows, views = map(torch.tensor, zip(*pairs))
    got = cache.gather(rows, views)
    for t in teachers:
        want = torch.stack([live(dls, t, r, v) for r, v in pairs])
        assert torch.allclose(got[t.name], want, atol=4e-3*want.abs().max())


def test_float32_is_exact(made, tmp_path):
    dls, teachers, _ = made
    cache = build(tmp_path/'c', dls, teachers, dtype='float32')
    assert torch.allclose(cache.gather(torch.tensor([3]), 1)['a'][0], live(dls, teachers[0], 3, 1), atol=1e-6)


def test_a_script_without_libkd_reads_it(made):
    code = '''
import json, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file
cache = Path(sys.argv[1])
plan, manifest = json.loads((cache/'plan.json').read_text()), json.loads((cache/'manifest.json').read_text())
samples = load_file(cache/'samples.safetensors')
name, rows = plan['teachers'][0]['name'], []
for shard in range(-(-plan['n']//plan['shard_rows'])): rows.append(load_file(cache/f'logits/{name}/v0001-s{shard:05d}.safetensors')['logits'])
logits = np.concatenate(rows)
assert 'libkd' not in sys.modules and 'torch' not in sys.modules
print(json.dumps([logits.shape, str(logits.dtype), samples['ids'].shape, float(logits[5,2])]))
'''
    dls, teachers, cache = made
    out = json.loads(subprocess.run([sys.executable, '-c', code, cache.path], capture_output=True, text=True, check=True).stdout)
    assert out == [[18, 3], 'float16', [18, 16], cache.gather(torch.tensor([5]), 1)['a'][0, 2].item()]


def test_only_some_teachers_teach_and_the_cache_stays_whole(made):
    dls, teachers, cache = made
    one = cache.only('b')
    assert list(one.gather(torch.arange(3))) == ['b'] and list(cache.teachers) == ['a', 'b'] and one.verify() == cache.verify()
    learn = distill_learner(dls, tiny.student(heads=('cls', 'inv')), teachers=one, verbose=False)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.recorder.metric_names[-2:-1] == ['kd_b']
    with pytest.raises(CacheMismatch, match='no answers of nobody. Its teachers are a, b'): cache.only()


@pytest.fixture(scope='module')
def sparse(tmp_path_factory):
    "Two of seven classes are kept, of three shards"
    dls = seven()
    t = Teacher(Wide(1), list('abcdefg'), name='a', bias='conv')
    return dls, t, LogitCache.build(tmp_path_factory.mktemp('sparse')/'cache', dls, t, views=2, shard_rows=7, top_k=2, check=False)


class Wide(nn.Module):
    "Seven answers to a tiny picture"
    def __init__(self, seed): super().__init__(); torch.manual_seed(seed); self.conv = nn.Conv2d(3, 7, 8)
    def forward(self, x): return 3*self.conv(x).mean((2, 3))


def seven():
    "The tiny pictures in seven classes"
    s = tiny.samples(); s.classes, s.labels[:] = list('abcdefg'), np.arange(len(s)) % 7
    return tiny.loaders(data=s)


def test_top_k_answers_are_the_largest_and_the_rest_is_one_exact_number(sparse):
    dls, t, cache = sparse
    got = cache.gather(torch.arange(18), 1)['a']
    z = torch.stack([live(dls, t, r, 1) for r in range(18)])
    want = top_k(z, 2)
    assert isinstance(got, TopK) and (got.classes, got.T) == (7, 1.) and torch.equal(got.indices, want.indices)
    assert torch.allclose(got.values, want.values, atol=4e-3*z.abs().max()) and torch.allclose(got.tail, want.tail, atol=1e-5)
    p, q = z.softmax(1), got.dense().softmax(1)
    assert torch.allclose(p.gather(1, want.indices), q.gather(1, want.indices), atol=2e-3)
    assert cache.spot_check(dls, t) < 2e-3 and cache.verify() == 2 + 2*3 + 2*3


def test_what_top_k_loses_is_written_down(sparse):
    dls, t, cache = sparse
    rows, views = torch.arange(18).repeat(2), torch.arange(2).repeat_interleave(18)
    z = torch.stack([live(dls, t, int(r), int(v)) for r, v in zip(rows, views)])
    q = cache.gather(rows, views)['a'].dense().log_softmax(1)
    want = (z.softmax(1)*(z.log_softmax(1) - q)).sum(1).mean().item()
    assert want > 1e-3 and abs(cache.info()['lost']['a'] - want) < 1e-3*want + 1e-6 and cache.info()['top_k'] == 2


@pytest.mark.parametrize('classes, k', [(1000, 10), (70_000, 3)])
def test_bytes_of_a_top_k_record(classes, k):
    "2 for a value, 2 or 4 for a class, 4 for the tail"
    from libkd.cache import CacheBuilder
    builder = CacheBuilder.__new__(CacheBuilder); builder.plan = dict(top_k=k, tail_T=1., dtype='float16')
    got = builder.encode('a', torch.randn(5, classes), 0)
    bytes_a_record = sum(v.element_size()*v[0].numel() for n, v in got.items() if n != 'lost')
    assert bytes_a_record == 2*k + (2 if classes <= 65_536 else 4)*k + 4 and got['lost'].numel() == 1
    assert int(got['indices'].long().max()) < classes and bytes_a_record <= (4*k + 6 if classes <= 65_536 else 6*k + 6)


def test_top_k_teaches_and_a_loss_that_needs_all_logits_says_so(sparse):
    from libkd.learner import distill_learner
    dls, t, cache = sparse
    losses = {}
    for name, c in {'sparse': cache, 'live': t}.items():
        learn = distill_learner(dls, Wide(2), c, method='kd', T=1., seed=0, check=False, verbose=False, metrics=[])
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        losses[name] = learn.recorder.losses
    assert 0 < np.mean(losses['sparse']) < np.mean(losses['live']), 'the order within the rest is not asked for'
    for kw, said in ((dict(loss='dkd'), r"needs all C logits of the teacher and got the top k: use `kd_loss`, build the cache without top_k"), (dict(T=4.), r'build the cache with T=4 or without top_k')):
        learn = distill_learner(dls, Wide(2), cache, method='kd', seed=0, verbose=False, **{'T': 1., **kw})
        with learn.no_bar(), learn.no_logging(), pytest.raises((TypeError, ValueError), match=said): learn.fit(1)


@pytest.mark.parametrize('k', [0, 7, -1])
def test_top_k_that_leaves_nothing_to_save_is_refused(tmp_path, k):
    with pytest.raises(CacheError, match=f'top_k={k}: between 1 and 6 of 7'): build(tmp_path/'c', seven(), Teacher(Wide(1), list('abcdefg'), name='a', bias='conv'), top_k=k)
    assert not (tmp_path/'c').exists()


def test_a_resumed_top_k_build_has_the_same_bytes(sparse, tmp_path):
    dls, t, cache = sparse
    shutil.copytree(cache.path, tmp_path/'c')
    (tmp_path/'c'/'manifest.json').unlink(); (tmp_path/'c'/'logits'/'a'/'v0001-s00001.safetensors').unlink()
    assert contents(build(tmp_path/'c', dls, t, top_k=2).path) == contents(cache.path)


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize('mix', [None, Mix()])
def test_every_batch_is_paired_with_its_own_answers(tmp_path, mix, workers):
    "What the cache says of a batch is what the teacher says of the batch's pixels: shuffled, two epochs, with workers"
    t, dls = tiny.teacher('a', 1), tiny.loaders(mix=mix)
    cache = build(tmp_path/'c', dls, [t], dtype='float32')
    bound = cache.bind(dls)
    train = bound.train.new(num_workers=workers)
    for _ in range(2):
        for x, y in train:
            want = t.logits(x.as_subclass(torch.Tensor), stats=dls.stats)
            assert torch.allclose(cache.gather(y.ride.row, y.ride.view)['a'], want, atol=1e-5)


def test_a_subset_may_be_trained_on(made):
    dls, teachers, cache = made
    some = tiny.loaders(data=tiny.samples().subset(per_class=3), bs=4)
    x, y = cache.bind(some).one_batch()
    assert (cache.labels[y.ride.row] == y.numpy()).all() and len(some.train_ds) == 9


def test_clean_stores_the_unaugmented_picture(tmp_path):
    dls, t = tiny.loaders(), tiny.teacher()
    cache = LogitCache.build(tmp_path/'c', dls, t, views='clean', dtype='float32')
    x = next(iter(tiny.loaders(tfms=[]).train.new(shuffle=False, bs=18)))[0]
    assert torch.allclose(cache.gather(torch.arange(18))['lin'], t.logits(x.as_subclass(torch.Tensor), stats=dls.stats), atol=1e-5)
    bound = cache.bind(dls)
    assert set(bound.one_batch()[1].ride.view.tolist()) == {0} and not torch.equal(bound.train.do_item(0)[0], bound.train.do_item(18)[0])


def test_order_of_teachers_changes_nothing(made, tmp_path):
    dls, teachers, cache = made
    assert contents(build(tmp_path/'c', dls, teachers[::-1]).path) == contents(cache.path)


# -- refusals: the field and both values are named ------------------------------------------------------------------------

def renamed(t, classes): return Teacher(t.model, classes, name=t.name, bias=t.bias, class_map={c: c for c in classes}, answers=tiny.CLASSES)


OTHER = {
    'seed': (lambda: tiny.loaders(seed=1), None, {}, r'views\.seed: the cache has 0, asked for 1'),
    'transform': (lambda: tiny.loaders(tfms=[v2.RandomCrop(8, padding=3)]), None, {}, r'views\.item_tfms'),
    'mixing': (lambda: tiny.loaders(mix=Mix()), None, {}, r'views\.mix'),
    'size': (lambda: tiny.loaders(size=16), None, {}, r'views\.(size|item_tfms)'),
    'samples': (lambda: tiny.loaders(data=tiny.samples(n=30)), None, {}, r'\bn: the cache has 18'),
    'labels': (lambda: tiny.loaders(unlabelled=2), None, {}, r'samples: '),
    'weights': (None, [tiny.teacher('a', 5), tiny.teacher('b', 2, bias='inv')], {}, r'teachers\[0\]\.fingerprint'),
    'normalisation': (None, [tiny.teacher('a', 1, mean=(.1, .1, .1)), tiny.teacher('b', 2, bias='inv')], {}, r'teachers\[0\]\.fingerprint'),
    'class order': (None, [renamed(tiny.teacher('a', 1), tiny.CLASSES[::-1]), tiny.teacher('b', 2, bias='inv')], {}, r'teachers\[0\]\.fingerprint'),
    'name': (None, [tiny.teacher('z', 1), tiny.teacher('b', 2, bias='inv')], {}, r'teachers'),
    'count': (None, [tiny.teacher('a', 1)], {}, r'teachers: the cache has \["a", "b"\], asked for \["a"\]'),
    'views': (None, None, {'views': 3}, r'n_views: the cache has 2, asked for 3'),
    'policy': (None, None, {'views': replay(2)}, r'policy: the cache has "finite", asked for "replay"'),
    'dtype': (None, None, {'dtype': 'float32'}, r'dtype'),
    'top_k': (None, None, {'top_k': 2}, r'top_k: the cache has null, asked for 2'),
}


@pytest.mark.parametrize('complete', [True, False])
@pytest.mark.parametrize('what', OTHER)
def test_another_plan_is_refused(copied, what, complete):
    dls, teachers, path = copied
    other, them, kw, said = OTHER[what]
    if not complete: (path/'manifest.json').unlink(); next((path/'logits'/'a').iterdir()).unlink()
    before = contents(path)
    with pytest.raises(CacheMismatch, match=said) as e: build(path, other() if other else dls, them or teachers, **kw)
    assert 'overwrite=True' in str(e.value) and contents(path) == before


@pytest.mark.parametrize('complete', [True, False])
def test_teachers_are_known_by_their_fingerprints_of_before(tmp_path, complete):
    "A cache of an older libkd opens, goes on, and refuses other teachers"
    dls, teachers = tiny.loaders(), [tiny.teacher('a', 1), tiny.teacher('b', 2, bias='inv')]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Teacher, 'fingerprint', Teacher.old_fingerprint)
        build(tmp_path/'c', dls, teachers)
    assert teachers[0].fingerprint != teachers[0].old_fingerprint
    if not complete: (tmp_path/'c'/'manifest.json').unlink(); next((tmp_path/'c'/'logits'/'a').iterdir()).unlink()
    cache = build(tmp_path/'c', dls, teachers)
    assert cache.teachers['a']['fingerprint'] == teachers[0].old_fingerprint
    with pytest.raises(CacheMismatch, match=r'teachers\[0\]\.fingerprint'): build(tmp_path/'c', dls, [tiny.teacher('a', 5), teachers[1]])


def test_overwrite_builds_anew(copied):
    dls, teachers, path = copied
    cache = build(path, dls, [tiny.teacher('z', 3)], overwrite=True)
    assert list(cache.teachers) == ['z'] and sorted(p.name for p in (path/'logits').iterdir()) == ['z']


def test_other_library_versions_are_a_warning_when_whole_and_refused_in_part(copied, monkeypatch):
    import libkd.cache as m
    dls, teachers, path = copied
    monkeypatch.setattr(m, 'pixel_versions', lambda: {'pillow': '0.0'})
    with pytest.warns(UserWarning, match=r'versions\.pillow .* \(here "?0\.0'): assert len(build(path, dls, teachers)) == 18
    (path/'manifest.json').unlink()
    with pytest.raises(CacheMismatch, match=r'versions\.pillow'): build(path, dls, teachers)


@pytest.mark.parametrize('other, said', [(lambda: tiny.loaders(seed=1), r'views\.seed'), (lambda: tiny.loaders(tfms=[]), r'views\.light(.|\n)*leave out tfms='), (lambda: tiny.loaders(mix=Mix()), r'views\.mix')])
def test_binding_refuses_other_views(made, other, said):
    with pytest.raises(CacheMismatch, match=said): made[2].bind(other())


def test_binding_names_the_samples_that_are_missing_or_relabelled(made):
    more = tiny.samples(n=30)
    with pytest.raises(CacheMismatch, match=r'\d+ of \d+ training samples are not in the cache .* first array number'): made[2].bind(tiny.loaders(data=more))
    other = tiny.samples()
    i = int(np.flatnonzero(other.parts == 'train')[4]); other.labels[i] = (other.labels[i] + 1) % 3
    with pytest.raises(CacheMismatch, match='1 training samples have another label'): made[2].bind(tiny.loaders(data=other))


def test_binding_refuses_another_class_order(made):
    other = tiny.samples(); other.classes = other.classes[::-1]
    with pytest.raises(CacheMismatch, match='classes'): made[2].bind(tiny.loaders(data=other))


@pytest.mark.parametrize('bad', ['../x', 'a/b', 'A b', '', 'x'*65, 'a..b', 'ü'])
def test_odd_teacher_names_never_become_folders(bad, tmp_path):
    t = tiny.teacher(); t.name = bad
    with pytest.raises(CacheError, match='cannot name a folder'): build(tmp_path/'c', tiny.loaders(), [t])
    assert not (tmp_path/'c').exists() and not (tmp_path/'x').exists()


def test_what_cannot_be_built(tmp_path):
    dls, t = tiny.loaders(), tiny.teacher()
    with pytest.raises(CacheError, match='stores nothing'): build(tmp_path/'c', dls, t, views='online')
    with pytest.raises(CacheError, match='float16'): build(tmp_path/'c', dls, t, dtype='int8')
    with pytest.raises(CacheError, match='at least one'): build(tmp_path/'c', dls, [])
    with pytest.raises(CacheError, match='Two teachers are called lin'): build(tmp_path/'c', dls, [t, tiny.teacher(seed=4)])
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'thesis.txt').write_text('precious')
    with pytest.raises(CacheError, match='not a cache'): build(tmp_path/'mine', dls, t)
    with pytest.raises(CacheError, match='not a cache'): build(tmp_path/'mine', dls, t, overwrite=True)
    assert (tmp_path/'mine'/'thesis.txt').read_text() == 'precious'


@pytest.mark.parametrize('value, said', [(float('nan'), 'NaN or infinite'), (float('inf'), 'NaN or infinite'), (1e6, 'float32'), (-1e6, 'float32')])
def test_answers_that_cannot_be_stored(tmp_path, value, said):
    class Bad(nn.Module):
        def forward(self, x): return torch.full((len(x), 3), value)
    with pytest.raises(CacheError, match=said): build(tmp_path/'c', tiny.loaders(), Teacher(Bad(), tiny.CLASSES, name='bad', bias='conv'), check=False)
    with pytest.raises(CacheUnfinished): LogitCache.open(tmp_path/'c')


@pytest.mark.parametrize('low', [-1e6, float(torch.finfo(torch.float32).min)])
def test_a_number_below_float16_does_not_become_an_unknown_class(tmp_path, low):
    class Sure(nn.Module):
        def forward(self, x): return torch.tensor([[2., low, -torch.inf]]*len(x))
    dls, t = tiny.loaders(bs=6), Teacher(Sure(), tiny.CLASSES, name='sure', bias='conv')
    said = r'Teacher sure gave 6 answers that cannot be stored, first for row 0: 6 numbers are beyond ±65,504.*dtype="float32"'
    with pytest.raises(CacheError, match=said): build(tmp_path/'c', dls, t, check=False)
    cache = build(tmp_path/'whole', dls, t, check=False, dtype='float32')
    assert cache.gather(torch.tensor([5]), 0)['sure'].tolist() == [[2, low, -torch.inf]]
    few = build(tmp_path/'few', dls, t, check=False, top_k=1)                     # what is not kept need not fit
    assert few.gather(torch.tensor([0]), 0)['sure'].values.tolist() == [[2]]


def test_a_teacher_at_chance_is_refused_before_anything_is_written(tmp_path):
    from libkd.teachers import ChanceError
    class Same(nn.Module):
        def forward(self, x): return torch.eye(3)[torch.zeros(len(x), dtype=torch.long)]
    with pytest.raises(ChanceError, match='bad'): build(tmp_path/'c', tiny.loaders(), Teacher(Same(), tiny.CLASSES, name='bad', bias='conv'), check=True)
    assert not (tmp_path/'c').exists()


# -- damage ---------------------------------------------------------------------------------------------------------------

def test_any_flipped_byte_is_found(copied):
    *_, path = copied
    rng = np.random.default_rng(0)
    for f in [p for p in sorted(path.rglob('*')) if p.is_file() and p.name != '.lock']:
        whole = f.read_bytes()
        k = int(rng.integers(len(whole)))
        f.write_bytes(whole[:k] + bytes([whole[k] ^ (1 << int(rng.integers(8)))]) + whole[k+1:])
        with pytest.raises(CacheCorrupt): LogitCache.open(path).verify()
        f.write_bytes(whole)
    assert LogitCache.open(path).verify() == 2 + 2*2*3 + 2*3


@pytest.mark.parametrize('spoil', [lambda f: f.unlink(), lambda f: f.write_bytes(f.read_bytes()[:-3]), lambda f: f.write_bytes(b'')])
def test_missing_and_truncated_shards_are_named(copied, spoil):
    dls, teachers, path = copied
    shard = path/'logits'/'b'/'v0001-s00002.safetensors'
    spoil(shard)
    cache = LogitCache.open(path)
    with pytest.raises(CacheCorrupt, match='v0001-s00002'): cache.verify()
    if not shard.is_file() or shard.stat().st_size < 90:
        with pytest.raises(CacheCorrupt, match='v0001-s00002'): cache.gather(torch.tensor([17]), 1)
    assert cache.gather(torch.tensor([0]), 0)['b'].shape == (1, 3), 'the other shards still answer'


def test_a_plan_that_was_edited_is_refused(copied):
    *_, path = copied
    text = (path/'plan.json').read_text()
    (path/'plan.json').write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(CacheCorrupt, match='plan.json was changed'): LogitCache.open(path)


@pytest.mark.parametrize('name', ['plan.json', 'manifest.json'])
@pytest.mark.parametrize('data', [b'', b'{"schema": 1', b'\xff\xfe', b'[]', b'{"schema": 1}', b'7'])
def test_half_written_json_is_named(copied, name, data):
    *_, path = copied
    (path/name).write_bytes(data)
    with pytest.raises(CacheCorrupt, match=name): LogitCache.open(path)


@pytest.mark.parametrize('rel', ['../../outside.safetensors', '/outside.safetensors', 'logits/a/../../../outside.safetensors', 'logits/a..b/v0000-s00000.safetensors'])
def test_a_manifest_cannot_point_outside(copied, rel):
    *_, path = copied
    m = json.loads((path/'manifest.json').read_text()); m['files'][rel] = dict(bytes=1, sha256='0')
    (path/'manifest.json').write_text(json.dumps(m))
    with pytest.raises(CacheCorrupt, match='manifest.json names '): LogitCache.open(path).verify()


def test_links_are_refused(copied, tmp_path):
    *_, path = copied
    f = path/'logits'/'a'/'v0000-s00000.safetensors'
    f.rename(tmp_path/'elsewhere'); f.symlink_to(tmp_path/'elsewhere')
    with pytest.raises(CacheCorrupt, match='link'): LogitCache.open(path).verify()
    plan = path/'plan.json'; plan.rename(tmp_path/'plan'); plan.symlink_to(tmp_path/'plan')
    with pytest.raises(CacheCorrupt, match='link'): LogitCache.open(path)


def test_a_changed_image_is_named(tmp_path):
    root = folder(tmp_path/'images')
    cache = LogitCache.build(tmp_path/'c', image_dls(root, bs=4), tiny.teacher(), views=1)
    f = sorted((root/'train'/'star').iterdir())[1]
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(f)
    with pytest.raises(CacheMismatch, match=f'1 of .* images changed since the cache was built, first .*{f.name}'): cache.verify(image_dls(root, bs=4))


def rename(f): f.rename(f.with_name('renamed.png'))
def add(f): Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(f.with_name('added.png'))


@pytest.mark.parametrize('change, name', [(rename, 'renamed.png'), (add, 'added.png')])
def test_a_strange_image_is_named_and_nobody_is_taught_about_it(tmp_path, change, name):
    root = folder(tmp_path/'images')
    cache = LogitCache.build(tmp_path/'c', image_dls(root, bs=4), tiny.teacher(), views=1)
    change(sorted((root/'train'/'star').iterdir())[1])
    with pytest.raises(CacheMismatch, match=f'1 of .* training samples are not in the cache .*{name}'): cache.bind(image_dls(root, bs=4))
    with pytest.raises(CacheMismatch, match=rf'samples: the cache has.*\n  1 images are not in the cache \(the first: .*{name}\), {int(change is rename)} of the cache are gone, 0 have another label'):
        LogitCache.build(tmp_path/'c', image_dls(root, bs=4), tiny.teacher(), views=1)


def test_a_removed_image_is_no_harm_to_the_others(tmp_path):
    root = folder(tmp_path/'images')
    cache = LogitCache.build(tmp_path/'c', image_dls(root, bs=4, tfms=[]), tiny.teacher(), views=1, dtype='float32')
    sorted((root/'train'/'star').iterdir())[1].unlink()
    dls = image_dls(root, bs=4, tfms=[])
    for x, y in cache.bind(dls).train: assert torch.allclose(cache.gather(y.ride.row)['lin'], tiny.teacher().logits(x.as_subclass(torch.Tensor), stats=dls.stats), atol=1e-5)


def test_two_samples_with_one_id_are_refused(tmp_path):
    s = tiny.samples()
    i, j = np.flatnonzero(s.parts == 'train')[:2]
    s.items[j], s.ids[j] = s.items[i], s.ids[i]
    with pytest.raises(CacheError, match='array number 0 and array number 1 have one id'): build(tmp_path/'c', tiny.loaders(data=s, check=False), tiny.teacher())


def test_a_view_that_is_not_there_is_named(made):
    for view in (2, 9): 
        with pytest.raises(CacheError, match=r'v000[29].*holds finite\(2\), so views 0 to 1'): made[2].gather(torch.tensor([3]), view)


def test_spot_check_finds_another_teacher(made):
    dls, teachers, cache = made
    assert cache.spot_check(dls, teachers) < 2e-3
    with pytest.raises(CacheMismatch, match='Teacher a answers differently'): cache.spot_check(dls, [tiny.teacher('a', 9)])


@pytest.mark.parametrize('known, top', [(2, None), (2, 2), (1, 2)])
def test_spot_check_of_a_teacher_that_does_not_know_every_class(tmp_path, known, top):
    "−∞ then and now is the same answer; a number now is not"
    dls, names = tiny.loaders(), tiny.CLASSES
    t = Teacher(tiny.Linear(1), names, name='a', bias='conv', class_map={c: c for c in names[:known]}, answers=names)
    cache = build(tmp_path/'c', dls, [t], top_k=top)
    assert cache.spot_check(dls, t) < 2e-3 and cache.ask_again(dls.train, [t])
    more = Teacher(t.model, names, name='a', bias='conv')
    if known < (top or 3):
        with pytest.raises(CacheMismatch, match='a class has a number as its logit one time and none'): cache.spot_check(dls, more)
    with pytest.raises(CacheMismatch, match='a class has a number as its logit one time and none'): cache.ask_again(dls.train, [more])
    with pytest.raises(CacheMismatch, match='Teacher a answers differently'): cache.spot_check(dls, [more, tiny.teacher('a', 9)])


@pytest.mark.parametrize('place, rows', [('v0000-s00000', 7), ('v9999-s00002', 4), ('v10000-s00002', 4), ('v999999-s00002', 4), ('v0000-s000002', 4)])
def test_the_size_of_a_shard_follows_from_its_name(made, place, rows):
    assert made[2]._promised('a', place + '.safetensors', {}) == (3, {'logits': ((rows, 3), torch.float16)})


def test_a_cache_for_a_temperature_that_is_none_is_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match='T=0: a temperature must be above 0'): build(tmp_path/'c', tiny.loaders(), [tiny.teacher()], top_k=2, T=0)
    assert not (tmp_path/'c').exists()


# -- teachers that want more pixels than the student ------------------------------------------------------------------------

def wants(name='large', seed=1, side=8): return tiny.teacher(name, seed, size=side)


def shows_more(dls): return dls.train.new(size=(8, 8), pictures=None)


def test_a_teacher_is_asked_about_the_pixels_that_the_files_have(tmp_path):
    "The student sees four pixels, the files have eight: views, partners and shares are the same"
    dls, t = tiny.loaders(size=4, mix=Mix()), wants()
    cache = build(tmp_path/'c', dls, [t])
    assert cache.plan['teachers'][0]['size'] == [8, 8] and 'shown 8×8 pixels' in cache.info()['teachers']['large']
    for row, view in ((0, 0), (5, 1), (17, 0)):
        x = shows_more(dls).after_batch((TensorImage(shows_more(dls).pixels([row], [view])),))[0]
        said = cache.gather(torch.tensor([row]), view)['large'][0].float()
        assert torch.allclose(said, t.logits(x, stats=dls.stats)[0], atol=5e-3)
        assert not torch.allclose(said, live(dls, t, row, view), atol=5e-3)             # of four enlarged pixels
    assert cache.spot_check(dls, [t]) < 2e-3 and cache.bind(dls).train.proof
    assert build(tmp_path/'c', dls, [t]).spot_check(dls) < 2e-3                         # found again


def test_a_size_of_the_plan_is_compared_and_checked(tmp_path):
    "A cache of before, whose teachers saw enlarged pictures, is another one; a plan cannot name any size"
    import libkd.cache as m
    dls, t = tiny.loaders(size=4), wants()
    LogitCache.builder(tmp_path/'c', dls, [t], views=2, check=False)
    plan = json.loads((tmp_path/'c/plan.json').read_text())
    without = plan | dict(teachers=[{k: v for k, v in plan['teachers'][0].items() if k != 'size'}])
    (tmp_path/'c/plan.json').write_text(json.dumps(without))
    with pytest.raises(CacheMismatch, match=r'teachers\[0\]\.size'): build(tmp_path/'c', dls, [t])
    for size in ([8], [8, 0], [8, '8'], 'large', None):
        with pytest.raises(CacheCorrupt, match='teachers'):
            m.check_plan(plan | dict(teachers=[plan['teachers'][0] | dict(size=size)]), 'plan.json')
    m.check_plan(plan, 'plan.json')


def test_teachers_of_all_sizes_are_added_and_extended(tmp_path):
    import libkd.sharing                                        # which brings `add` and `extend`
    dls, A = tiny.loaders(size=4), wants()
    B = Teacher(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), tiny.CLASSES, name='small', bias='conv')
    once = build(tmp_path/'a', dls, [A, B])
    later = build(tmp_path/'b', dls, [B], views=1).add(dls, [A], check=False).extend(dls, [A, B], 2)
    assert [t.get('size') for t in later.plan['teachers']] == [[8, 8], None] and later.spot_check(dls, [A, B]) < 2e-3
    assert contents(once.path) == contents(later.path)


# -- interruptions --------------------------------------------------------------------------------------------------------

def test_a_resumed_build_has_the_same_bytes(copied, made):
    dls, teachers, path = copied
    (path/'manifest.json').unlink()
    for f in list((path/'logits').rglob('*s0000[12]*')): f.unlink()
    (path/'samples.safetensors').unlink()
    with pytest.raises(CacheUnfinished, match='it continues'): LogitCache.open(path)
    build(path, dls, teachers)
    assert contents(path) == contents(made[2].path)


def test_a_file_that_was_being_written_is_never_taken_for_whole(tmp_path, monkeypatch, made):
    import libkd.cache as m
    dls, teachers, cache = made
    real, left = os.fsync, [5]
    def cut(fd):
        left[0] -= 1
        if left[0]: return real(fd)
        os.ftruncate(fd, 10)
        raise KeyboardInterrupt
    monkeypatch.setattr(m.os, 'fsync', cut)
    with pytest.raises(KeyboardInterrupt): build(tmp_path/'c', dls, teachers)
    monkeypatch.undo()
    (tmp_path/'c'/'logits'/'.v.tmp').write_text('of one that was killed')
    got = contents(build(tmp_path/'c', dls, teachers).path)
    assert got == contents(cache.path), 'what killed builders left is gone'


def test_finished_shards_are_not_asked_for_again(copied, monkeypatch):
    dls, teachers, path = copied
    (path/'logits'/'a'/'v0001-s00001.safetensors').unlink()
    asked = []
    for t in teachers: monkeypatch.setattr(t, 'logits', lambda x, stats=None, t=t, f=t.logits: asked.append(len(x)) or f(x, stats=stats), raising=False)
    build(path, dls, teachers)
    assert sum(asked) == 2*7 + 2*8 + 2*8, 'one shard of seven rows for two teachers; the reference views, made again and asked again'


@pytest.mark.slow
def test_kill_9_at_any_moment(made, tmp_path):
    "Twenty kills at random calls, each continuing what the one before left; then finished: the same bytes as never interrupted"
    from test_sharing import events
    dls, teachers, cache = made
    total = events(lambda: build(tmp_path/'dry', dls, teachers))()
    rng, path, shards = np.random.default_rng(1), tmp_path/'c', set()
    for k in range(20):
        events(lambda: build(path, dls, teachers))(int(rng.integers(total//8, total)))
        if (path/'manifest.json').exists():
            assert contents(path) == contents(cache.path)
            shutil.rmtree(path); continue
        if path.exists():
            with pytest.raises(CacheUnfinished): LogitCache.open(path)
        shards.add(len(list(path.glob('logits/*/*.safetensors'))))
        if (path/'plan.json').exists() and k % 3 == 0:
            for other, them in ((tiny.loaders(seed=1), teachers), (dls, [tiny.teacher('a', 5), teachers[1]])):
                with pytest.raises(CacheMismatch, match='seed|fingerprint'): build(path, other, them)
    assert total > 300 and len(shards) > 3, 'the kills must fall into different parts of the work'
    build(path, dls, teachers)
    assert contents(path) == contents(cache.path)


@pytest.mark.parametrize('code, said', [(errno.EACCES, 'may not be written to'), (errno.EROFS, 'can only be read'), (errno.EDQUOT, 'share of the disk is full')])
@pytest.mark.parametrize('call', ['mkdir', 'open'])
def test_a_folder_that_may_not_be_written_to_is_a_sentence(tmp_path, monkeypatch, made, code, said, call):
    "As root permissions do not count, so the refusal is made"
    import libkd.files as m
    dls, teachers, _ = made
    def refuse(*a, **kw): raise OSError(code, os.strerror(code))
    if call == 'mkdir': monkeypatch.setattr(m.Path, 'mkdir', refuse)
    else: monkeypatch.setitem(vars(m), 'open', refuse)
    with pytest.raises(CacheError, match=f'{said}.*could not be written') as e: build(tmp_path/'c', dls, teachers)
    assert str(tmp_path/'c') in str(e.value)


def test_other_errors_of_the_disk_are_not_hidden(tmp_path, monkeypatch, made):
    import libkd.cache as m
    dls, teachers, _ = made
    monkeypatch.setattr(m.os, 'fsync', lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, 'broken')))
    with pytest.raises(OSError, match='broken'): build(tmp_path/'c', dls, teachers)
    assert not list((tmp_path/'c').rglob('*.tmp'))


def test_a_full_disk_is_a_sentence_and_keeps_what_is_done(tmp_path, monkeypatch, made):
    import libkd.cache as m
    dls, teachers, cache = made
    replace, left = os.replace, [4]
    def full(a, b):
        left[0] -= 1
        if left[0] < 0: raise OSError(errno.ENOSPC, 'No space left on device')
        return replace(a, b)
    monkeypatch.setattr(m.os, 'replace', full)
    with pytest.raises(CacheError, match='disk is full'): build(tmp_path/'c', dls, teachers)
    assert not list((tmp_path/'c').rglob('*.tmp')) and len(list((tmp_path/'c'/'logits').rglob('*.safetensors'))) == 2
    monkeypatch.undo()
    assert contents(build(tmp_path/'c', dls, teachers).path) == contents(cache.path)


def test_a_second_builder_is_refused(tmp_path):
    from filelock import FileLock
    (tmp_path/'c').mkdir()
    with FileLock(tmp_path/'c'/'.lock'), pytest.raises(CacheLocked, match='Another process'): build(tmp_path/'c', tiny.loaders(), tiny.teacher())


def test_an_undecodable_image_in_the_middle_is_named(tmp_path):
    root = folder(tmp_path/'images')
    dls = image_dls(root, bs=4)
    f = sorted((root/'train'/'star').iterdir())[1]; f.write_bytes(f.read_bytes()[:40])
    with pytest.raises(ValueError, match=f.name): build(tmp_path/'c', dls, tiny.teacher())
    with pytest.raises(CacheUnfinished): LogitCache.open(tmp_path/'c')


# -- several processes ----------------------------------------------------------------------------------------------------

def scripts():
    "The programs that the notebook shows, by name"
    import re
    nb = json.loads((Path(__file__).parents[1]/'nbs'/'04_cache.ipynb').read_text(encoding='utf-8'))
    text = '\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown')
    return {name: code for name, code in re.findall(r'```python\n# build.py for (\w+)\n(.*?)```', text, re.S)}


@pytest.fixture(scope='module')
def job(tmp_path_factory):
    "Images, two teachers' folders, and the cache that one process builds"
    home = tmp_path_factory.mktemp('job')
    root, dls = folder(home/'images'), image_dls(folder(home/'images'), device='cpu')
    teachers = [fit_teacher(name, dls, epochs=15, folder=home/'teachers') for name in ('resnet_mini', 'rednet_mini')]
    one = LogitCache.build(home/'one', dls, teachers, views=2, shard_rows=8)
    return home, [str(root), *map(str, sorted((home/'teachers').iterdir(), key=lambda p: p.name, reverse=True))], one


def run_script(command, home): return subprocess.run(command, cwd=home, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'})


DIES_ONCE = '''
def die_once():
    import os, signal
    try: os.close(os.open('died', os.O_CREAT | os.O_EXCL))
    except FileExistsError: return
    os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.mark.slow
def test_torchrun_builds_the_same_bytes_and_a_killed_worker_costs_its_shard(job):
    home, args, one = job
    code = scripts()['torchrun']
    (home/'torchrun.py').write_text(code)
    (home/'dying.py').write_text(code.replace('import sys\n', 'import sys\n' + DIES_ONCE, 1).replace('builder.build_shard(i)', '(i == 3 and die_once(), builder.build_shard(i))'))
    command = lambda file: [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', str(home/file), str(home/'two'), *args]
    died = run_script(command('dying.py'), home)
    assert died.returncode != 0 and (home/'died').exists() and not (home/'two'/'manifest.json').exists()
    logits = home/'two'/'logits'        # the other worker may be stopped between the files of its two teachers: such a shard is made again
    kept = {p: p.stat().st_mtime_ns for p in logits.rglob('*.safetensors') if all((teacher/p.name).exists() for teacher in logits.iterdir())}
    assert any('v0000-s00001' in p.name for p in kept) and not any('v0001-s00000' in p.name for p in kept), 'worker 1 finished shard 1 and died at shard 3'
    done = run_script(command('torchrun.py'), home)
    assert done.returncode == 0, done.stderr[-2000:]
    assert contents(home/'two') == contents(one.path) and all(p.stat().st_mtime_ns == t for p, t in kept.items())


@pytest.mark.slow
def test_dask_builds_the_same_bytes_and_a_killed_worker_costs_its_shard(job):
    home, args, one = job
    (home/'died').unlink(missing_ok=True)
    code = scripts()['dask']
    (home/'dask_build.py').write_text(code.replace('def make(', DIES_ONCE + '\ndef make(', 1).replace('    worker.builder.build_shard(i)', '    if i == 1: die_once()\n    worker.builder.build_shard(i)'))
    done = run_script([sys.executable, str(home/'dask_build.py'), str(home/'three'), *args], home)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (home/'died').exists() and contents(home/'three') == contents(one.path)


@pytest.mark.parametrize('seed', range(4))
def test_shards_may_be_built_in_any_order_by_any_builder(made, tmp_path, seed):
    dls, teachers, cache = made
    builders = [LogitCache.builder(tmp_path/'c', dls, teachers[::k], views=2, shard_rows=7, check=False) for k in (1, -1)]
    rng = np.random.default_rng(seed)
    for i in [*rng.permutation(6), *rng.permutation(6)]: builders[rng.integers(2)].build_shard(int(i))
    builders[1].finish()
    assert contents(tmp_path/'c') == contents(cache.path) and builders[0].shards == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    with pytest.raises(CacheMismatch, match=r'views\.seed'): LogitCache.builder(tmp_path/'c', tiny.loaders(seed=1), teachers, views=2, shard_rows=7, check=False)


# -- teaching from a cache, and live -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('dtype, tol', [('float32', 1e-6), ('float16', 2e-3)])
@pytest.mark.parametrize('policy', [finite(2), replay(3)], ids=str)
def test_stored_and_live_teachers_give_the_same_losses_step_by_step(tmp_path, policy, dtype, tol):
    "With mixing, three epochs, two teachers; relative to the loss"
    from libkd.learner import distill_learner
    dls, teachers = tiny.loaders(mix=Mix()), [tiny.teacher('a', 1), tiny.teacher('b', 2, bias='inv')]
    cache = build(tmp_path/'c', dls, teachers, views=policy, dtype=dtype)
    live_dls = tiny.loaders(mix=Mix()); live_dls.train.policy = policy
    losses = {}
    for name, d, t in (('stored', dls, cache), ('live', live_dls, teachers)):
        learn = distill_learner(d, tiny.Linear(4), t, seed=0, check=False, verbose=False, metrics=[])
        with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-2)
        losses[name] = np.array(learn.recorder.losses, dtype='f8')
    assert len(losses['live']) == 9 and len(set(losses['live'])) == 9
    assert np.abs(losses['stored']/losses['live'] - 1).max() <= tol


def test_several_caches_teach_one_learner_together(made, tmp_path):
    from libkd.learner import distill_learner
    dls, teachers, both = made
    apart = [build(tmp_path/t.name, dls, t) for t in teachers]
    losses = []
    for t in (both, apart, apart[::-1], [apart[0], teachers[1]]):
        learn = distill_learner(dls, tiny.Linear(4), t, method='lib-kd', seed=0, check=False, verbose=False, metrics=[])
        with learn.no_bar(), learn.no_logging(): learn.fit(2)
        losses.append(list(map(float, learn.recorder.losses)))
    assert losses[0] == losses[1] == losses[2] and np.allclose(losses[0], losses[3], rtol=2e-3)


# -- fastai ---------------------------------------------------------------------------------------------------------------

def folder(root):
    "The tiny samples as an image folder"
    items = tiny.samples()
    for i in range(len(items)):
        f = root/str(items.parts[i])/items.classes[items.labels[i]]/f'{i:03d}.png'
        f.parent.mkdir(parents=True, exist_ok=True); Image.fromarray(items.source(i)).save(f)
    return root


def block(cache): return DataBlock(blocks=(ImageBlock, LogitBlock(cache)), get_items=get_image_files, get_y=parent_label, splitter=GrandparentSplitter())


def test_logit_block_pairs_plain_paths(tmp_path):
    root = folder(tmp_path/'images')
    cache = LogitCache.build(tmp_path/'c', image_dls(root, bs=4, tfms=[]), tiny.teacher(), views=1)
    dls = block(cache).dataloaders(root, bs=4, num_workers=0)
    for x, y in dls.train:
        want = tiny.teacher().logits(x.as_subclass(torch.Tensor))
        assert (cache.labels[y.ride.row] == y.cpu().numpy()).all()
    moved = tmp_path/'other'/'place'; shutil.copytree(root, moved)
    assert (block(cache).dataloaders(moved, bs=4, num_workers=0).one_batch()[1].ride.row >= 0).all()


def test_logit_block_refuses_a_stranger_in_training_and_takes_one_in_validation(tmp_path):
    root = folder(tmp_path/'images')
    cache = LogitCache.build(tmp_path/'c', image_dls(root, bs=4, tfms=[]), tiny.teacher(), views=1)
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(root/'valid'/'star'/'new.png')
    dls = block(cache).dataloaders(root, bs=4, num_workers=0)
    assert len(list(dls.valid)) and not hasattr(next(iter(dls.valid))[1], 'ride')
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(root/'train'/'star'/'new.png')
    with pytest.raises(CacheMismatch, match='new.png'): block(cache).dataloaders(root, bs=4, num_workers=0)


@pytest.fixture(scope='module')
def blocked(tmp_path_factory):
    "A folder, a cache of it, and loaders of a `DataBlock` with a `LogitBlock`"
    home = tmp_path_factory.mktemp('blocked')
    root, teachers = folder(home/'images'), [tiny.teacher('a', 1), tiny.teacher('b', 2, bias='inv')]
    cache = LogitCache.build(home/'c', image_dls(root, bs=4, tfms=[]), teachers, views=2, check=False)
    return root, cache, block(cache).dataloaders(root, bs=4, num_workers=0)


@pytest.mark.parametrize('taught', [True, False])
def test_all_of_fastai_works_with_the_block(blocked, tmp_path, taught):
    "With the callback and without: fit, metrics, predict, pictures, interpretation, export and a fresh loading"
    import matplotlib.pyplot as plt
    from fastai.interpret import ClassificationInterpretation
    from fastai.learner import load_learner
    from libkd.learner import distill_learner
    root, cache, dls = blocked
    learn = distill_learner(dls, tiny.Linear(4), cache, method='kd', verbose=False) if taught else Learner(dls, tiny.Linear(4), metrics=accuracy)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2)
        assert len(learn.validate()) == 2 and 'accuracy' in learn.recorder.metric_names
        image = sorted((root/'valid'/'star').iterdir())[0]
        label, _, probs = learn.predict(image)
        assert label in tiny.CLASSES and abs(probs.sum() - 1) < 1e-5
        assert len(ClassificationInterpretation.from_learner(learn).vocab) == 3
        learn.show_results(max_n=2); dls.show_batch(max_n=2); learn.dls.valid.show_batch(max_n=2); plt.close('all')
        learn.export(tmp_path/'x.pkl')
        again = load_learner(tmp_path/'x.pkl')
        with again.no_bar(): assert torch.allclose(again.predict(image)[2], probs, atol=1e-6)
    assert (tmp_path/'x.pkl').stat().st_size < 50_000 and str(cache.path).encode() not in (tmp_path/'x.pkl').read_bytes(), 'no data and no cache in an exported learner'


def test_fastais_mixup_is_for_plain_learners_and_refused_where_stored_answers_cannot_follow(blocked):
    from fastai.callback.mixup import MixUp
    from libkd.learner import distill_learner
    _, cache, dls = blocked
    plain = Learner(dls, tiny.Linear(4), cbs=MixUp())
    with plain.no_bar(), plain.no_logging(): plain.fit(1)
    taught = distill_learner(dls, tiny.Linear(4), cache, method='kd', cbs=MixUp(), verbose=False)
    with taught.no_bar(), taught.no_logging(), pytest.raises(CacheMismatch, match='mix=Mix'): taught.fit(1)


def paired(cache, loader, teacher, stats=((0, 0, 0), (1, 1, 1))):
    "Whether the cache says of each batch what the teacher says of its pixels; the rows that came"
    rows = []
    for x, y in loader:
        want = teacher.logits(x.as_subclass(torch.Tensor), stats=stats)
        assert torch.allclose(cache.gather(y.ride.row, y.ride.view)['a'], want, atol=4e-3*want.abs().max()) and (cache.labels[y.ride.row] == y.cpu().numpy()).all()
        rows += y.ride.row.tolist()
    return rows


def test_the_block_pairs_subsets_weighted_and_distributed_samples(blocked, monkeypatch):
    from fastai.distributed import DistributedDL
    monkeypatch.setattr(DistributedDL, '_broadcast', lambda self, t, rank: t)
    root, cache, dls = blocked
    t, one = tiny.teacher('a', 1), block(cache)
    assert sorted(paired(cache, dls.train.new(drop_last=False), t)) == list(range(18))
    some = block(cache); some.get_items = lambda p: get_image_files(p)[::2]
    assert 0 < len(set(paired(cache, some.dataloaders(root, bs=3, num_workers=0).train, t))) < 12
    weights = (cache.labels == 2).astype(float)
    heavy = one.dataloaders(root, bs=3, num_workers=0, dl_kwargs=({'wgts': [weights[r] for r in dls.train.rows]}, {})).train
    assert set(cache.labels[paired(cache, heavy, t)]) == {2}
    shares = [paired(cache, DistributedDL(dls.train.new(drop_last=False, shuffle=False), rank=r, world_size=2), t) for r in (0, 1)]
    assert sorted(shares[0] + shares[1]) == list(range(18))


@pytest.mark.parametrize('mix', [None, Mix()])
def test_the_block_shows_the_views_that_were_answered_and_refuses_others(tmp_path, mix):
    from fastai.vision.augment import RandomResizedCrop
    from libkd.views import TrainTfm
    crop = [v2.RandomCrop(8, padding=2)]
    root, t = folder(tmp_path/'images'), tiny.teacher('a', 1)
    dls = image_dls(root, bs=4, tfms=crop, mix=mix, seed=3)
    cache = LogitCache.build(tmp_path/'c', dls, t, views=2, check=False)
    own = block(cache).new(item_tfms=TrainTfm(crop)).dataloaders(root, bs=4, num_workers=0)
    for e in range(2): own.train.epoch = e; assert sorted(paired(cache, own.train.new(drop_last=False, after_batch=dls.train.after_batch), t, dls.stats)) == list(range(18))
    for other in ([], [TrainTfm([v2.RandomCrop(8, padding=1)])], [RandomResizedCrop(8)]):
        with pytest.raises(CacheMismatch, match=r'views\.item_tfms'): block(cache).new(item_tfms=other).dataloaders(root, bs=4, num_workers=0)


@pytest.mark.parametrize('mix', [None, Mix()])
def test_the_block_makes_light_views_in_batches_with_the_same_bits(tmp_path, mix):
    root, t = folder(tmp_path/'images'), tiny.teacher('a', 1)
    dls = image_dls(root, bs=4, mix=mix, seed=3, tfms=LightViews(flip=True))
    cache = LogitCache.build(tmp_path/'c', dls, t, views=2, check=False)
    own, bound = block(cache).dataloaders(root, bs=4, num_workers=0).train, cache.bind(dls).train
    rows, at = np.arange(18), [[bound.id_of(i) for i in range(18)].index(own.id_of(j)) for j in range(18)]
    for e in range(2):
        assert torch.equal(own.pixels(rows, rows*0 + e), bound.pixels(at, rows*0 + e))
        own.epoch = e
        assert sorted(paired(cache, own.new(drop_last=False, after_batch=dls.train.after_batch), t, dls.stats)) == list(range(18))
    from fastai.vision.augment import Resize
    with pytest.raises(CacheMismatch, match=r'views\.item_tfms(.|\n)*leave out tfms= and item_tfms='): block(cache).new(item_tfms=Resize(8)).dataloaders(root, bs=4, num_workers=0)


def test_an_old_cache_asked_with_new_defaults_names_the_line_that_binds_it(tmp_path):
    old, new = tiny.loaders(tfms=light_tfms((8, 8))), tiny.loaders()
    cache = build(tmp_path/'c', old, tiny.teacher())
    for rewrite in (lambda views: None, lambda views: views.pop('light')):             # as it is written now, and before there was a choice
        rewrite(cache.plan['views'])
        with pytest.raises(CacheMismatch, match=r'views\.light(.|\n)*made one by one.*tfms=light_tfms\(size\)'): cache.bind(new)
        assert len(cache.bind(old).train.rows) == 18


def test_every_cache_finds_its_own_rows(tmp_path):
    from libkd.learner import distill_learner
    whole, part = tiny.loaders(), tiny.loaders(data=tiny.samples().subset(per_class=3), bs=4)
    a, b = tiny.teacher('a', 1), tiny.teacher('b', 2)
    big, small, both = build(tmp_path/'big', whole, a), build(tmp_path/'small', part, b), build(tmp_path/'both', part, [a, b])
    assert (small.bind(part).train.rows == np.arange(9)).all() and not (big.bind(part).train.rows == np.arange(9)).all()
    losses = []
    for t in (both, [big, small], [small, big]):
        learn = distill_learner(part, tiny.Linear(4), t, method='lib-kd', seed=0, check=False, verbose=False, metrics=[])
        with learn.no_bar(), learn.no_logging(): learn.fit(2)
        losses.append(list(map(float, learn.recorder.losses)))
    assert losses[1] == losses[2] and np.allclose(losses[0], losses[1], rtol=1e-3)


def test_batches_of_another_cache_never_serve_as_ours(tmp_path):
    from libkd.distill import MultiTeacherDistill
    whole, part = tiny.loaders(), tiny.loaders(data=tiny.samples().subset(per_class=3), bs=4)
    small = build(tmp_path/'small', part, tiny.teacher('b', 2))
    for dls in (build(tmp_path/'big', whole, tiny.teacher('a', 1)).bind(whole), whole):        # samples that it lacks; no rows at all
        learn = Learner(dls, tiny.Linear(4), cbs=MultiTeacherDistill(small))
        with pytest.raises(CacheMismatch, match='do not carry the rows'), learn.no_bar(), learn.no_logging(): learn.fit(1)


def test_caches_of_other_views_are_not_used_together(tmp_path):
    dls = tiny.loaders()
    one, two = (build(tmp_path/str(v), dls, tiny.teacher(f't{v}', v), views=v) for v in (1, 2))
    with pytest.raises(CacheMismatch, match=r'finite\(2\).*finite\(1\)'): two.bind(one.bind(dls))


def test_a_test_loader_of_the_block_needs_no_rows(blocked):
    root, _, dls = blocked
    files = get_image_files(root/'valid')
    test = dls.test_dl(files, with_labels=True)
    assert all(not hasattr(y, 'ride') for _, y in test) and sum(len(b[0]) for b in test) == 6
    plain = dls.test_dl(files)
    assert sum(len(b[0]) for b in plain) == 6


def test_an_ordinary_learner_works_on_bound_loaders(made):
    dls, _, cache = made
    learn = Learner(cache.bind(dls), tiny.Linear(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert len(learn.validate()) == 2


def test_show_batch_tells_what_each_teacher_said(made):
    import matplotlib.pyplot as plt
    dls, _, cache = made
    cache.bind(dls).show_batch(max_n=4)
    titles = [ax.get_title() for ax in plt.gcf().axes if ax.get_title()]; plt.close('all')
    assert len(titles) == 4 and all('a: ' in t and 'b: ' in t and '%' in t for t in titles)


@given(st.integers(1, 40), st.integers(0, 100))
def test_rows_are_found_by_id_even_if_halves_collide(n, seed):
    rng = np.random.default_rng(seed)
    cache = LogitCache.__new__(LogitCache)
    cache.ids = np.concatenate([rng.integers(0, 2, (n, 8), dtype=np.uint8), rng.integers(0, 255, (n, 8), dtype=np.uint8)], 1)
    cache.ids = np.unique(cache.ids, axis=0)[rng.permutation(len(np.unique(cache.ids, axis=0)))]
    assert (cache.rows(cache.ids) == np.arange(len(cache.ids))).all()
    stranger = cache.ids.copy(); stranger[:, 15] ^= 1
    known = {bytes(i) for i in cache.ids}
    assert all((r >= 0) == (bytes(s) in known) for r, s in zip(cache.rows(stranger), stranger))


# -- proof by behaviour --------------------------------------------------------------------------------------------------

STRENGTH = 0
def by_a_global(im): return im.point(lambda v: min(255, v + STRENGTH))
class Same:
    "A transform whose description says nothing of what it does"
    def __init__(self, more): self.more = [more]
    def __call__(self, im): return im.point(lambda v: min(255, v + self.more[0]))
    def __repr__(self): return 'Same()'


def test_pixels_are_compared_where_descriptions_are_equal(tmp_path, monkeypatch):
    import libkd.cache as m
    dls, t = tiny.loaders(tfms=[Same(0)]), tiny.teacher()
    cache = build(tmp_path/'c', dls, [t])
    monkeypatch.setattr(m, '_check_views', lambda *a: None)              # whatever a description may leave out
    assert cache.bind(dls).train.proof == '18 of 18 samples and labels match, 36 views made again, files proved when they are read'
    with pytest.raises(CacheMismatch, match='36 of 36 views have other pixels'): cache.bind(tiny.loaders(tfms=[Same(1)]))


@pytest.mark.parametrize('light', [True, False])
def test_training_compares_the_views_that_it_makes(tmp_path, monkeypatch, light):
    import libkd.views as m
    kw = {} if light else dict(tfms=[])
    cache = build(tmp_path/'c', tiny.loaders(**kw), [tiny.teacher()])
    learn = distill_learner(tiny.loaders(**kw), tiny.student(heads=('cls', 'conv')), teachers=cache, verbose=False)
    for name in ('view_seed', 'view_keys'):
        monkeypatch.setattr(m, name, lambda seed, *a, f=getattr(m, name): f(seed + 1, *a))
    if not light: monkeypatch.setattr(m, 'open_image', lambda s, f=m.open_image: f(s).point(lambda v: 255 - v))
    with learn.no_bar(), learn.no_logging(), pytest.raises(CacheMismatch, match='other pixels'): learn.fit(16)


def test_a_teacher_that_minds_its_company_is_refused(tmp_path):
    class Batchy(tiny.Linear):
        def forward(self, x): return super().forward(x - x.mean(0, keepdim=True))
    t = Teacher(Batchy(), tiny.CLASSES, name='b', bias='conv')
    with pytest.raises(CacheError, match='Teacher b gives the same pictures other answers'): build(tmp_path/'c', tiny.loaders(), [t])


def test_a_teacher_that_answers_otherwise_is_noticed_when_the_cache_is_found(tmp_path):
    dls, t = tiny.loaders(), tiny.teacher()
    build(tmp_path/'c', dls, [t])
    t.logits = lambda x, stats=None, f=t.logits: f(x, stats=stats) + torch.tensor([1., 0, 0])
    with pytest.raises(CacheMismatch, match='answers differently now'): build(tmp_path/'c', dls, [t])


@pytest.mark.parametrize('folder', ['logits/a', 'views'])
def test_a_damaged_shard_is_noticed_when_it_is_first_read(copied, folder):
    dls, teachers, path = copied
    file = sorted((path/folder).glob('*.safetensors'))[0]
    data = bytearray(file.read_bytes()); data[-1] ^= 1; file.write_bytes(data)
    cache = LogitCache.open(path)                                        # reads no shard
    with pytest.raises(CacheCorrupt, match=f'{file.name} is damaged'):
        cache.gather(torch.arange(18), 0)
        cache.bind(dls)
    assert LogitCache.open(path, verify='never').gather(torch.arange(18), 0)
    with pytest.raises(CacheCorrupt, match=f'1 damaged: {folder}'): LogitCache.open(path, verify='all')


def test_a_build_that_goes_on_blesses_nothing(made, tmp_path, monkeypatch, capsys):
    import libkd.cache as m
    dls, teachers, cache = made
    monkeypatch.setattr(m.CacheBuilder, 'finish', lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): build(tmp_path/'c', dls, teachers)
    monkeypatch.undo()
    files = sorted((tmp_path/'c'/'logits').rglob('*.safetensors'))[:2]
    for f in files: data = bytearray(f.read_bytes()); data[-1] ^= 1; f.write_bytes(data)
    build(tmp_path/'c', dls, teachers)
    assert '2 files' in capsys.readouterr().out and contents(tmp_path/'c') == contents(cache.path)


def test_the_advice_of_verify_is_safe(copied, made):
    "Two shards are damaged; one is deleted, as advised; the other one is found while it is made again"
    dls, teachers, path = copied
    files = sorted((path/'logits').rglob('*.safetensors'))[:2]
    for f in files: data = bytearray(f.read_bytes()); data[-1] ^= 1; f.write_bytes(data)
    with pytest.raises(CacheCorrupt, match='2 damaged') as e: LogitCache.open(path).verify()
    assert all(f.name in str(e.value) for f in files)
    files[0].unlink()
    build(path, dls, teachers)
    assert contents(path) == contents(made[2].path)


def test_a_reader_notices_that_the_cache_was_changed(copied):
    import libkd.sharing                    # which brings `drop`
    dls, teachers, path = copied
    cache = LogitCache.open(path)
    cache.drop('b')
    with pytest.raises(CacheMismatch, match='was changed since it was opened'): cache.gather(torch.arange(3), 1)


@pytest.mark.parametrize('field, value', [('policy', 7), ('n', -1), ('n', 1.5), ('n', True), ('dtype', 'int8'), ('classes', ['a', 'a']), ('classes', []),
                                          ('teachers', []), ('schema', 99), ('shard_rows', 0), ('samples', 'x'), ('extra', 1), ('views', None)])
def test_a_plan_with_a_wrong_field_is_refused_by_name(copied, field, value):
    path = copied[2]
    plan = json.loads((path/'plan.json').read_text()) | {field: value}
    (path/'plan.json').write_text(json.dumps(plan))
    with pytest.raises(CacheCorrupt, match=field): LogitCache.open(path)


def test_a_deeply_nested_or_strange_plan_is_a_sentence(copied):
    path = copied[2]
    for text in ('['*100000, '7', 'null', '"x"'):
        (path/'plan.json').write_text(text)
        with pytest.raises(CacheCorrupt, match='plan.json'): LogitCache.open(path)


@pytest.mark.parametrize('spoil, said', [(lambda z: z.double(), 'float64'), (lambda z: z[:, :2].clone(), r'\(7, 2\)'), (lambda z: z[:3].clone(), r'\(3, 3\)'), (lambda z: z*torch.nan, 'NaN')])
def test_a_shard_of_another_kind_is_refused(copied, spoil, said):
    import hashlib, safetensors.torch as st
    path = copied[2]
    rel = 'logits/a/v0000-s00000.safetensors'
    data = st.save({'logits': spoil(st.load((path/rel).read_bytes())['logits'])})
    (path/rel).write_bytes(data)
    manifest = json.loads((path/'manifest.json').read_text())
    manifest['files'][rel] = dict(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    (path/'manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(CacheCorrupt, match=said): LogitCache.open(path).gather(torch.arange(3), 0)


def test_another_data_set_is_called_so(made):
    with pytest.raises(CacheMismatch, match='0 of .* images are the cache'): made[2].verify(tiny.loaders(data=tiny.samples(seed=9)))


def test_verify_says_how_much_it_compared(made, capsys):
    dls, _, cache = made
    cache.verify(dls)
    assert '18 of 18 images and 36 views' in capsys.readouterr().out


# -- payloads that change places -------------------------------------------------------------------------------------------

def exchanged():
    "Ways in which whole, undamaged files end up in each other's place, and single bytes that flip"
    shard = 'logits/{}/v{:04}-s{:05}.safetensors'.format
    one = [(t, v) for t in 'ab' for v in range(2)]
    for t, v in one:
        for s, other in ((0, 1), (0, 2), (1, 2)): yield f'shards {s} and {other} of {t}, view {v}', shard(t, v, s), shard(t, v, other)
    for t in 'ab':
        for s in range(3): yield f'views of {t}, shard {s}', shard(t, 0, s), shard(t, 1, s)
    for v in range(2):
        for s in range(3): yield f'teachers, view {v}, shard {s}', shard('a', v, s), shard('b', v, s)
    yield 'folders of the teachers', 'logits/a', 'logits/b'
    for t, v in one:
        for s in range(3): yield f'a byte of {t}, view {v}, shard {s}', shard(t, v, s), None


EXCHANGED = list(exchanged())


def exchange(path, a, b):
    if b is None: data = bytearray((path/a).read_bytes()); data[-3] ^= 16; (path/a).write_bytes(data)
    else: (path/a).rename(path/'kept'); (path/b).rename(path/a); (path/'kept').rename(path/b)


def test_there_are_37_exchanges(): assert len({e[0] for e in EXCHANGED}) == 37


@pytest.mark.parametrize('a, b', [e[1:] for e in EXCHANGED], ids=[e[0] for e in EXCHANGED])
def test_training_notices_exchanged_answers(copied, a, b):
    dls, teachers, path = copied
    exchange(path, a, b)
    learn = distill_learner(dls, 'vit_nano', teachers=LogitCache.open(path), seed=0, verbose=False, student_kw=dict(depth=1, embed_dim=32, num_heads=2))
    with pytest.raises(CacheCorrupt, match='is damaged'), learn.no_bar(), learn.no_logging(): learn.fit(2)


@pytest.mark.parametrize('a, b', [('views/v0000-s00000.safetensors', 'views/v0001-s00000.safetensors'), ('views/v0000-s00001.safetensors', None),
                                  ('samples.safetensors', None), ('reference.safetensors', None)])
def test_binding_notices_exchanged_proofs(copied, a, b):
    dls, teachers, path = copied
    exchange(path, a, b)
    with pytest.raises(CacheCorrupt, match='is damaged'):
        cache = LogitCache.open(path)
        cache.bind(dls)
        cache.ask_again(dls.train, teachers)


# -- another libkd ---------------------------------------------------------------------------------------------------------

def test_a_cache_of_another_result_number_is_refused_and_says_whose_it_is(copied, monkeypatch):
    import libkd.cache as m, libkd.sharing                    # which brings `add`
    dls, teachers, path = copied
    manifest = json.loads((path/'manifest.json').read_text())
    (path/'manifest.json').write_text(json.dumps(manifest | dict(libkd='0.0.7')))
    monkeypatch.setattr(m, 'RESULT', 2)
    with pytest.raises(CacheMismatch, match=r'(?s)made by libkd 0\.0\.7.*result: the cache has 1, asked for 2'): build(path, dls, teachers)
    with pytest.raises(CacheMismatch, match=r'made by libkd 0\.0\.7.*result: the cache has 1, now 2'): LogitCache.open(path).bind(dls)
    with pytest.raises(CacheMismatch, match='result: the cache has 1, here 2'): LogitCache.open(path).add(dls, tiny.teacher('c', 3), check=False)
    build(path, dls, teachers, overwrite=True)
    assert json.loads((path/'plan.json').read_text())['result'] == 2 and LogitCache.open(path).bind(dls)
    monkeypatch.setattr(m, 'RESULT', 1)
    with pytest.raises(CacheMismatch, match='result: the cache has 2, now 1'): LogitCache.open(path).bind(dls)


def test_other_versions_that_make_equal_views_may_extend(copied, monkeypatch):
    import libkd.cache as m, libkd.sharing
    dls, teachers, path = copied
    other = dict(m.pixel_versions(), pillow='99.0')
    monkeypatch.setattr(m, 'pixel_versions', lambda: other)
    assert LogitCache.open(path).extend(dls, teachers, 3).policy.n == 3
    dls.train.pixels, shown = lambda at, views, f=dls.train.pixels: f(at, views) ^ 8, dls.train.pixels
    try:
        with pytest.raises(CacheMismatch, match='versions.pillow'): LogitCache.open(path).extend(dls, teachers, 4)
    finally: dls.train.pixels = shown


@pytest.mark.parametrize('views', [1, 2, 4])
def test_in_sixteen_epochs_every_picture_has_had_its_turn(made, tmp_path, monkeypatch, views):
    "However many views there are: with two of them, every second row was never looked at"
    dls, teachers, _ = made
    cache = LogitCache.build(tmp_path/'c', dls, teachers[:1], views=views, check=False)
    compared = []
    monkeypatch.setattr(LogitCache, 'compare', lambda self, now, rows, views, dl, at=None: compared.append((rows.tolist(), views.tolist())))
    train = cache.bind(dls).train
    compared.clear()
    for _ in range(32): list(train)
    rows = [r for batch, _ in compared for r in batch]
    assert sorted(rows) == sorted(list(range(18))*2)
    assert len({p for pair in compared for p in zip(*pair)}) == (18 if views == 1 else 36)


def test_a_picture_that_bind_does_not_meet_is_met_by_training(tmp_path):
    "One of 90 is exchanged after the store was made, at a place that is not among the 64 that are made again"
    data = tiny.samples(n=120)
    dls = tiny.loaders(data=data)
    cache = LogitCache.build(tmp_path/'c', dls, tiny.teacher(), views=2, check=False)
    images = [np.array(o) for o in data.items]
    train = np.flatnonzero(data.parts == 'train')
    images[train[np.setdiff1d(np.arange(90), np.linspace(0, 89, 64).astype(int))[0]]][4, 4] ^= 255
    from libkd.data import Samples
    other = tiny.loaders(data=Samples(images, data.labels, data.classes, data.parts, data.ids))
    assert cache.bind(other)
    learn = distill_learner(other, 'vit_nano', teachers=LogitCache.open(tmp_path/'c'), seed=0, verbose=False, check=False, student_kw=dict(depth=1, embed_dim=32, num_heads=2))
    with pytest.raises(CacheMismatch, match='1 of .* views have other pixels'), learn.no_bar(), learn.no_logging(): learn.fit(16)


# -- where nobody can write, and where no cache is -----------------------------------------------------------------------------

def test_a_whole_cache_is_opened_by_build_where_nobody_can_write(copied, monkeypatch):
    "A lecturer's share: the notebook that built the cache runs again for everybody, who may only read"
    import filelock
    dls, teachers, path = copied
    (path/'.lock').unlink(missing_ok=True)
    def refuse(self, *a, **kw): raise OSError(errno.EROFS, 'Read-only file system')
    monkeypatch.setattr(filelock.FileLock, 'acquire', refuse)
    before = contents(path)
    assert build(path, dls, teachers).verify() and contents(path) == before
    with pytest.raises(CacheError, match='can only be read'): build(path.parent/'new', dls, teachers)


def test_the_folder_of_something_else_is_no_unfinished_cache(tmp_path):
    (tmp_path/'thesis.txt').write_text('precious')
    with pytest.raises(CacheError, match='There is no cache in') as e: LogitCache.open(tmp_path)
    assert not isinstance(e.value, CacheUnfinished)
    with pytest.raises(CacheError, match='A file is in the way.*another path'): build(tmp_path/'thesis.txt', tiny.loaders(), tiny.teacher())


@pytest.mark.parametrize('kw, said', [(dict(shard_rows=0), 'shard_rows=0'), (dict(shard_rows=2.5), 'shard_rows=2.5'), (dict(top_k='2'), "top_k='2'")])
def test_sizes_that_are_none(tmp_path, kw, said):
    with pytest.raises(CacheError, match=said): build(tmp_path/'c', tiny.loaders(), tiny.teacher(), check=False, **kw)
