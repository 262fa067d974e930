"Caches that are passed on: from arrays, changed later, packed; whatever is interrupted or tampered with."
import errno
import json
import os
import shutil
import signal
import stat
import sys
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

import tiny
from libkd.cache import CacheCorrupt, CacheError, CacheMismatch, LogitCache
from libkd.files import WriteError
from libkd.sharing import _Answers
from libkd.teachers import AnswersError, ChanceError
from libkd.views import replay
from test_cache import build, contents

A, B, C = tiny.teacher('a', 1), tiny.teacher('b', 2, bias='inv'), tiny.teacher('c', 3, bias='attn')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "Caches of one to three teachers and one to three views, built at once"
    home, dls, made = tmp_path_factory.mktemp('built'), tiny.loaders(), {}
    def get(names, views=2, **kw):
        key = names, views, *kw.values()
        if key not in made: made[key] = build(home/f'{len(made)}', dls, [dict(a=A, b=B, c=C)[n] for n in names], views=views, **kw)
        return made[key]
    return get


def copy(cache, to): shutil.copytree(cache.path, to); return LogitCache.open(to)


# -- answers from anywhere -----------------------------------------------------------------------------------------------

def test_answers_from_anywhere_are_paired_by_sample(tmp_path):
    dls, z = tiny.loaders(), np.random.default_rng(0).normal(size=(2, 18, 3)).astype('f4')
    cache = LogitCache.from_arrays(tmp_path/'c', dls, {'people': z}, bias={'people': 'human'}, dtype='float32', shard_rows=7, check=False)
    assert cache.teachers['people']['bias'] == 'human' and str(cache.policy) == 'finite(2)' and cache.verify() == 2 + 2*3 + 2*3
    for x, y in cache.bind(dls).train:
        where = [[dls.train.id_of(i) for i in range(18)].index(cache.ids[r].tobytes()) for r in y.ride.row]
        assert torch.equal(cache.gather(y.ride.row, y.ride.view)['people'], torch.tensor(z[y.ride.view, where]))


def test_answers_to_all_samples_serve_every_split_of_them(tmp_path):
    s = tiny.samples()
    z = np.random.default_rng(0).normal(size=(24, 3)).astype('f4')
    cache = LogitCache.from_arrays(tmp_path/'c', s, {'x': z[:, ::-1]}, bias={'x': 'conv'}, classes=tiny.CLASSES[::-1], dtype='float32', check=False)
    assert len(cache) == 24 and (cache.ids == s.ids).all() and torch.allclose(cache.gather(torch.arange(24))['x'], torch.tensor(z)), 'columns are put into the order of the data'
    y = cache.bind(tiny.loaders(data=s)).one_batch()[1]
    assert (cache.labels[y.ride.row] == y.numpy()).all()


def test_top_k_of_answers_from_anywhere(tmp_path):
    z = np.random.default_rng(0).normal(size=(18, 3))
    cache = LogitCache.from_arrays(tmp_path/'c', tiny.loaders(), {'x': z}, bias={'x': 'conv'}, top_k=2, check=False)
    assert (cache.gather(torch.arange(18))['x'].indices[:, 0].numpy() == z.argmax(1)).all() and cache.info()['lost']['x'] < 1e-3, 'a tail of one class loses nothing'


def test_the_fingerprint_of_answers_is_that_of_the_numbers():
    z = np.zeros((4, 3)); same, other = z.copy(), z.copy(); other[3, 2] = 1e-3
    print_of = lambda z, classes=tiny.CLASSES: _Answers('x', z, 'conv', classes, tiny.CLASSES).fingerprint
    assert print_of(z) == print_of(same.astype('f4')) != print_of(other) and print_of(z) != print_of(z, tiny.CLASSES[::-1])


@pytest.mark.parametrize('answers, bias, kw, said', [
    ({'x': np.zeros((18, 3))}, {}, {}, 'What inductive bias has x'),
    ({'x': np.zeros((17, 3))}, {'x': 'conv'}, {}, r'x has answers \(17, 3\); 18 samples and 3 classes need'),
    ({'x': np.zeros((18, 4))}, {'x': 'conv'}, {}, r'18 samples and 3 classes need'),
    ({'x': np.zeros(18)}, {'x': 'conv'}, {}, r'arrays \(n, C\)'),
    ({'x': np.zeros((18, 3)), 'y': np.zeros((2, 18, 3))}, {'x': 'conv', 'y': 'conv'}, {}, r'arrays \(n, C\)'),
    ({'x': np.zeros((4, 18, 3)), 'y': np.zeros((2, 18, 3))}, {'x': 'conv', 'y': 'conv'}, {}, r'same V views; these are x: \(4, 18, 3\), y: \(2, 18, 3\)'),
    ({'x': [[1., 2.], [1.]]}, {'x': 'conv'}, {}, 'answers of x make no array'),
    ({'x': [['1', '2', '3']]*18}, {'x': 'conv'}, {}, 'answers of x are of type <U1: logits are needed'),
    (np.zeros((18, 3)), {'x': 'conv'}, {}, r"answers=\{'name': logits\}"),
    ({'x': np.zeros((18, 3))}, 'conv', {}, 'What inductive bias has x'),
    ({'x': np.zeros((18, 3))}, {'x': 'conv'}, {'classes': ['circle', 'square', 'cat']}, 'exactly these classes'),
    ({'x': np.full((18, 3), np.nan)}, {'x': 'conv'}, {}, 'NaN'),
    ({'x': np.full((18, 3), -4e38)}, {'x': 'conv'}, {}, 'beyond ±3.4e38'),
    ({'x': torch.full((18, 3), -4e38, dtype=torch.float64)}, {'x': 'conv'}, {}, 'beyond ±3.4e38'),
    ({}, {}, {}, 'No teacher')])
def test_arrays_that_are_no_answers(tmp_path, answers, bias, kw, said):
    with pytest.raises(CacheError, match=said): LogitCache.from_arrays(tmp_path/'c', tiny.loaders(), answers, bias=bias, **kw)


@pytest.mark.parametrize('as_given', [np.ndarray.tolist, pd.DataFrame, lambda z: torch.tensor(z, requires_grad=True), lambda z: torch.tensor(z)[None]],
                         ids=['list', 'table', 'tensor', 'tensor of views'])
def test_answers_may_be_whatever_holds_numbers(tmp_path, as_given):
    dls, z = tiny.loaders(), np.random.default_rng(0).normal(size=(18, 3)).astype('f4')
    cache = LogitCache.from_arrays(tmp_path/'c', dls, {'x': as_given(z)}, bias={'x': 'conv'}, dtype='float32', check=False)
    assert cache.teachers['x']['fingerprint'] == _Answers('x', z, 'conv', tiny.CLASSES, tiny.CLASSES).fingerprint
    assert torch.equal(cache.gather(torch.arange(18))['x'], torch.tensor(z))


@pytest.mark.parametrize('said, error, words', [
    (lambda z: z.exp()/z.exp().sum(1, keepdim=True), AnswersError, r'each row sums to 1\).*np.log'),
    (lambda z: 100*z.softmax(1), AnswersError, 'each row sums to 100'),
    (lambda z: z[:, [1, 2, 0]], ChanceError, 'columns in another order'), (lambda z: z[torch.randperm(24, generator=torch.Generator().manual_seed(1))], ChanceError, 'Does row i answer'),
    (lambda z: torch.zeros_like(z), ChanceError, 'guessing gives 33%')], ids=['probabilities', 'percentages', 'columns', 'rows', 'constant'])
def test_answers_from_anywhere_are_checked_like_a_teacher(tmp_path, said, error, words):
    "Other orders of rows or columns, and a softmax too many, look like any other numbers, and teach nonsense"
    s = tiny.samples()
    z = 5*torch.nn.functional.one_hot(torch.tensor(s.labels).long(), 3) + torch.rand(24, 3, generator=torch.Generator().manual_seed(0))
    make = lambda z, to, **kw: LogitCache.from_arrays(tmp_path/to, s, {'x': z}, bias={'x': 'conv'}, **kw)
    with pytest.raises(error, match=words): make(said(z), 'odd')
    assert not (tmp_path/'odd').exists() and len(make(said(z), 'all the same', check=False)) == len(make(z, 'fine')) == 24
    some = z.clone(); some[:, 2] = -torch.inf
    assert len(make(some, 'a class less')) == 24


def test_views_of_samples_need_the_loaders(tmp_path):
    with pytest.raises(CacheError, match='need the loaders'): LogitCache.from_arrays(tmp_path/'c', tiny.samples(), {'x': np.zeros((2, 24, 3))}, bias={'x': 'conv'})


# -- changes -------------------------------------------------------------------------------------------------------------

CHANGES = {                      # name -> (before, change, after)
    'add': (('a', 2), lambda c, d: c.add(d, [B], check=False), ('ab', 2)),
    'add before': (('b', 2), lambda c, d: c.add(d, A, check=False), ('ab', 2)),
    'drop': (('ab', 2), lambda c, d: c.drop('b'), ('a', 2)),
    'extend': (('ab', 2), lambda c, d: c.extend(d, [B, A], 3), ('ab', 3)),
    'all': (('a', 1), lambda c, d: c.add(d, [B, C], check=False).extend(d, [A, B, C], 2).drop('c'), ('ab', 2))}


@pytest.mark.parametrize('what', CHANGES)
def test_a_change_gives_the_bytes_of_a_cache_built_so(built, tmp_path, what):
    before, change, after = CHANGES[what]
    cache = change(copy(built(*before), tmp_path/'c'), tiny.loaders())
    assert contents(cache.path) == contents(built(*after).path) and cache.verify() and not (cache.path/'next').exists()
    assert cache.spot_check(tiny.loaders(), [t for t in (A, B) if t.name in cache.teachers]) < 2e-3


def test_a_top_k_cache_is_changed_like_any_other(built, tmp_path):
    kw = dict(top_k=2)
    cache = copy(built('a', 1, **kw), tmp_path/'c').add(tiny.loaders(), B, check=False).extend(tiny.loaders(), [A, B], 2)
    assert contents(cache.path) == contents(built('ab', 2, **kw).path)


def test_a_teacher_is_replaced(built, tmp_path):
    cache, other = copy(built('ab'), tmp_path/'c'), tiny.teacher('b', 9, bias='inv')
    with pytest.raises(CacheMismatch, match='another teacher called b.*replace=True'): cache.add(tiny.loaders(), other, check=False)
    cache = cache.add(tiny.loaders(), other, replace=True, check=False)
    assert contents(cache.path) == contents(build(tmp_path/'d', tiny.loaders(), [A, other]).path)
    same = cache.add(tiny.loaders(), other, check=False)
    assert same is cache, 'a teacher that is there already is not asked again'


def test_only_what_is_new_is_computed(built, tmp_path, monkeypatch):
    asked, before = [], copy(built('a'), tmp_path/'c')
    for t in (A, B): monkeypatch.setattr(t, 'logits', lambda x, stats=None, t=t, f=t.logits: asked.append((t.name, len(x))) or f(x, stats=stats), raising=False)
    cache = before.add(tiny.loaders(), B, check=False)
    assert {n for n, _ in asked} == {'b'} and sum(k for _, k in asked) == 2*18 + 16 + 8, 'the views, the check of company, the reference views'
    asked.clear(); cache.extend(tiny.loaders(), [A, B], 3)
    assert sum(k for _, k in asked) == 2*(18 + 16 + 8), 'one more view, two teachers'


def test_what_cannot_be_changed(built, tmp_path):
    cache, dls = copy(built('ab'), tmp_path/'c'), tiny.loaders()
    before = contents(cache.path)
    for said, call in {'has no teacher': lambda: cache.drop('z'), 'delete the folder': lambda: cache.drop('a', 'b'), 'extended to finite of more views': lambda: cache.extend(dls, [A, B], 1),
                       'not to replay': lambda: cache.extend(dls, [A, B], replay(3)), 'All teachers of the cache': lambda: cache.extend(dls, [A], 3),
                       r'views\.seed': lambda: cache.add(tiny.loaders(seed=1), C), r'\bn: the cache has 18': lambda: cache.add(tiny.loaders(data=tiny.samples(n=30)), C)}.items():
        with pytest.raises(CacheError, match=said): call()
    assert contents(cache.path) == before


def events(work):
    "Kill a forked child at the n-th call within libkd.cache and libkd.sharing; returns how many there are if it is never reached"
    def run(n=None):
        r, w = os.pipe()
        if (pid := os.fork()) == 0:
            count = 0
            def count_calls(frame, event, arg):
                nonlocal count
                if event in ('c_call', 'c_return') and frame.f_code.co_filename.endswith(('libkd/cache.py', 'libkd/sharing.py')):
                    count += 1
                    if count == n: os.kill(os.getpid(), signal.SIGKILL)
            sys.setprofile(count_calls)
            try: work()
            finally: sys.setprofile(None); os.write(w, str(count).encode()); os._exit(0)
        os.close(w); os.waitpid(pid, 0)
        said = os.read(r, 20); os.close(r)
        return int(said or 0)
    return run


@pytest.mark.slow
@pytest.mark.parametrize('what', ['add', 'replace', 'drop', 'extend'])
def test_a_change_killed_at_any_moment_leaves_the_old_cache_or_is_completed(built, tmp_path, what):
    other, dls = tiny.teacher('b', 9, bias='inv'), tiny.loaders()
    before, change, after = {**CHANGES, 'replace': (('ab', 2), lambda c, d: c.add(d, other, replace=True, check=False), None)}[what]
    old = contents(built(*before).path)
    new = contents(built(*after).path if after else build(tmp_path/'new', dls, [A, other]).path)
    run, rng = events(lambda: change(copy(built(*before), tmp_path/'dry'), dls)), np.random.default_rng(0)
    total, seen = run(), set()
    for k, n in enumerate(sorted(rng.integers(total//4, total, 8).tolist()) + [total - 1]):
        path = tmp_path/f'c{k}'
        copy(built(*before), path)
        events(lambda: change(LogitCache.open(path), dls))(n)
        cache = LogitCache.open(path)                     # whole: the old one, or the new one completed
        cache.verify()
        state = {f: h for f, h in contents(path).items() if not f.startswith('next/') and not f.endswith('.tmp')}
        assert state in (old, new) or {f: state.get(f) for f in old} == old
        if state != new: change(cache, dls)
        assert {f: h for f, h in contents(path).items() if not f.endswith('.tmp')} == new
        seen.add(state == new)
    assert total > 100 and False in seen


def test_another_change_does_not_continue_a_killed_one(built, tmp_path, monkeypatch):
    import libkd.sharing as m
    cache, dls = copy(built('a'), tmp_path/'c'), tiny.loaders()
    monkeypatch.setattr(m, 'make_manifest', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): cache.add(dls, B, check=False)
    monkeypatch.undo()
    assert list(LogitCache.open(cache.path).teachers) == ['a'] and cache.verify()
    with pytest.raises(CacheMismatch, match='Another change of this cache was begun'): cache.add(dls, C, check=False)
    assert contents(cache.add(dls, B, check=False).path) == contents(built('ab').path)


def test_a_killed_change_is_completed_before_a_build_looks_at_the_folder(built, tmp_path, monkeypatch):
    "Between the old manifest and the new one, a build of the old plan must not take new files for old ones"
    import libkd.cache as m, libkd.sharing as n
    cache, dls, other = copy(built('ab'), tmp_path/'c'), tiny.loaders(), tiny.teacher('b', 9, bias='inv')
    replace, left = os.replace, [10_000]
    def stop(a, b):
        left[0] -= 1
        if left[0] < 0: raise KeyboardInterrupt
        return replace(a, b)
    adopt = m.adopt_change
    def armed(path): left[0] = 2; adopt(path)             # two shards are in place, the others not
    monkeypatch.setattr(n, 'adopt_change', armed); monkeypatch.setattr(m.os, 'replace', stop)
    with pytest.raises(KeyboardInterrupt): cache.add(dls, other, replace=True, check=False)
    monkeypatch.undo()
    assert not (cache.path/'manifest.json').exists()
    with pytest.raises(CacheMismatch, match=r'teachers\[1\]\.fingerprint'): build(cache.path, dls, [A, B])
    assert contents(LogitCache.open(cache.path).path) == contents(build(tmp_path/'d', dls, [A, other]).path)


def test_a_cache_of_before_is_added_to_and_extended(tmp_path):
    dls = tiny.loaders()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(type(A), 'fingerprint', type(A).old_fingerprint)
        cache = build(tmp_path/'c', dls, [A])
    cache = cache.add(dls, [A, B], check=False)
    assert [cache.teachers[n]['fingerprint'] for n in 'ab'] == [A.old_fingerprint, B.fingerprint]
    assert cache.extend(dls, [A, B], cache.policy.n + 1).policy.n == cache.policy.n + 1
    with pytest.raises(CacheMismatch): cache.add(dls, tiny.teacher('a', 7), check=False)


# -- a table -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kw', [{}, {'top_k': 2}])
def test_the_table_has_the_answers(built, kw):
    cache = built('ab', 2, **kw)
    frame, z = cache.to_frame(view=1), cache.gather(torch.arange(18), 1)
    assert list(frame.columns) == ['label'] + [f'{t}/{c}' for t in 'ab' for c in tiny.CLASSES] and frame.index[3] == cache.ids[3].tobytes().hex()
    assert np.allclose(frame.filter(like='b/').to_numpy(), z['b'].dense() if kw else z['b']) and (frame.label == cache.labels).all()


def test_the_table_goes_through_parquet(built, tmp_path):
    pytest.importorskip('pyarrow', reason="to_parquet needs pyarrow: pip install 'libkd[scale]'")
    frame = built('ab').to_frame()
    frame.to_parquet(tmp_path/'answers.parquet')
    assert pd.read_parquet(tmp_path/'answers.parquet').equals(frame)


# -- one file ------------------------------------------------------------------------------------------------------------

def test_packed_and_unpacked_is_the_same(built, tmp_path):
    cache = built('ab')
    one, two = (cache.pack(tmp_path/f, licence='CC0-1.0', about='Noise.') for f in ('1.zip', '2.zip'))
    assert one.read_bytes() == two.read_bytes()
    got = LogitCache.unpack(one, tmp_path/'got', tiny.loaders())
    assert contents(got.path) == contents(cache.path) and contents(LogitCache.unpack(one, tmp_path/'got').path) == contents(cache.path)


def test_the_card_says_data_teachers_licence_size_checksum(built, tmp_path):
    import hashlib
    cache = built('ab', 2, top_k=2)
    with zipfile.ZipFile(cache.pack(tmp_path/'c.zip', licence='CC-BY-4.0', about='Noise with a bright corner.')) as z: card = z.read('README.md').decode()
    for part in ('18 samples', 'circle', '| a | conv |', '| b | inv |', cache.teachers['b']['fingerprint'][:16], 'license: cc-by-4.0', 'Noise with a bright corner.', f'{cache.nbytes:,} bytes',
                 hashlib.sha256((cache.path/'manifest.json').read_bytes()).hexdigest(), 'top 2 logits', str(cache.manifest['lost']['a'])): assert part in card, part


def test_a_full_disk_leaves_the_zip_of_before(built, tmp_path, monkeypatch):
    file, before = tmp_path/'c.zip', b'of before'
    file.write_bytes(before)
    def full(z, *a): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(zipfile.ZipFile, 'writestr', full)
    with pytest.raises(WriteError, match='The disk is full: .*c.zip could not be written. The cache is as it was'): built('a').pack(file, 'CC0-1.0')
    assert file.read_bytes() == before and os.listdir(tmp_path) == ['c.zip']


def test_a_damaged_cache_is_not_packed(built, tmp_path):
    cache = copy(built('ab'), tmp_path/'c')
    f = cache.path/'logits'/'a'/'v0000-s00001.safetensors'
    f.write_bytes(f.read_bytes()[:-1] + b'\x01')
    with pytest.raises(CacheCorrupt, match='a/v0000-s00001'): cache.pack(tmp_path/'c.zip', licence='CC0-1.0')
    assert not (tmp_path/'c.zip').exists()


def link(name): i = zipfile.ZipInfo(name); i.external_attr = (stat.S_IFLNK | 0o777) << 16; return i


EVIL = {'up': '../x', 'absolute': '/tmp/x', 'drive': 'C:\\x', 'deep': 'logits/a/../../../x', 'unknown': 'setup.py', 'other shard': 'logits/a/v0099-s00000.safetensors', 'link': link('logits/a/v0000-s00000.safetensors'),
        'link outside': link('next')}


@pytest.mark.parametrize('what', EVIL)
def test_a_zip_cannot_write_elsewhere(built, tmp_path, what):
    good, bad = built('ab').pack(tmp_path/'good.zip', licence='CC0-1.0'), tmp_path/'bad.zip'
    with zipfile.ZipFile(good) as a, zipfile.ZipFile(bad, 'w') as b:
        for i in a.infolist():
            if i.filename != getattr(EVIL[what], 'filename', None): b.writestr(i, a.read(i))
        b.writestr(EVIL[what], '/etc/passwd')
    before = {p for p in tmp_path.rglob('*')}
    with pytest.raises(CacheCorrupt, match='holds a link' if 'link' in what else 'disagree about'): LogitCache.unpack(bad, tmp_path/'in'/'got')
    assert {p for p in tmp_path.rglob('*')} - before <= {tmp_path/'in'}, 'a refused zip leaves nothing'


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_a_zip_holds_no_name_twice(built, tmp_path):
    good = built('ab').pack(tmp_path/'good.zip', licence='CC0-1.0')
    with zipfile.ZipFile(good, 'a') as z: z.writestr('plan.json', '{}')
    with pytest.raises(CacheCorrupt, match='one name twice'): LogitCache.unpack(good, tmp_path/'got')


def repacked(good, bad, change):
    "A zip whose plan and manifest agree after `change(plan, manifest)`, as somebody with bad intentions would make it"
    import hashlib
    with zipfile.ZipFile(good) as a, zipfile.ZipFile(bad, 'w') as b:
        plan, manifest = json.loads(a.read('plan.json')), json.loads(a.read('manifest.json'))
        change(plan, manifest)
        text = json.dumps(plan)
        manifest['plan'] = hashlib.sha256(text.encode()).hexdigest()
        for i in a.infolist(): b.writestr(i.filename, {'plan.json': text, 'manifest.json': json.dumps(manifest)}.get(i.filename) or a.read(i))
    return bad


@pytest.mark.parametrize('change', [
    lambda p, m: p['teachers'][0].update(name='../../x'), lambda p, m: p['teachers'][0].update(name='a/b'), lambda p, m: p.update(n_views=10**12), lambda p, m: p.update(n='18'),
    lambda p, m: p.update(shard_rows=1), lambda p, m: m['files'].pop('samples.safetensors'), lambda p, m: m['files'].update({'../x': dict(bytes=1, sha256='0')}), lambda p, m: m.pop('files')])
def test_a_plan_with_bad_intentions_is_refused(built, tmp_path, change):
    bad = repacked(built('ab').pack(tmp_path/'good.zip', licence='CC0-1.0'), tmp_path/'bad.zip', change)
    with pytest.raises(CacheError): LogitCache.unpack(bad, tmp_path/'got')
    assert not (tmp_path/'x').exists() and not (tmp_path/'got'/'logits').exists()


@pytest.mark.parametrize('spoil', [lambda d: d[:-30], lambda d: b'', lambda d: b'PK' + d[2:200], lambda d: d.replace(b'\x00\x3c', b'\x00\x3d', 1)])
def test_a_damaged_zip_is_noticed(built, tmp_path, spoil):
    data = built('ab').pack(tmp_path/'good.zip', licence='CC0-1.0').read_bytes()
    (tmp_path/'bad.zip').write_bytes(spoil(data))
    if spoil(data) == data: pytest.fail('this spoils nothing')
    with pytest.raises(CacheCorrupt, match='Fetch it again|no packed cache|is no whole zip'): LogitCache.unpack(tmp_path/'bad.zip', tmp_path/'got')


def test_any_flipped_answer_in_a_zip_is_noticed(built, tmp_path):
    good = built('ab').pack(tmp_path/'good.zip', licence='CC0-1.0')
    with zipfile.ZipFile(good) as a, zipfile.ZipFile(tmp_path/'bad.zip', 'w') as b:
        for i in a.infolist():
            data = a.read(i)
            b.writestr(i, data[:-1] + bytes([data[-1] ^ 4]) if 'b/v0001-s00002' in i.filename else data)
    with pytest.raises(CacheCorrupt, match=r'b/v0001-s00002.* is damaged'): LogitCache.unpack(tmp_path/'bad.zip', tmp_path/'got')
    assert not (tmp_path/'got').exists(), 'a refused zip leaves nothing'
    with pytest.raises(CacheError, match='holds something else'): LogitCache.unpack(good, built('a').path)
    assert contents(LogitCache.unpack(good, tmp_path/'got').path) == contents(built('ab').path), 'the whole zip goes on where the damaged one stopped'


@pytest.mark.parametrize('more, warned', [(0, False), (1, False), (2, True)])
def test_the_receiver_is_warned_of_other_pixels(tmp_path, monkeypatch, more, warned):
    import libkd.views as m
    build(tmp_path/'c', tiny.loaders(tfms=[]), A)
    import libkd.cache as c
    real = m.open_image
    monkeypatch.setattr(m, 'open_image', lambda s: real(s).point(lambda v: min(255, v + more)))
    monkeypatch.setattr(c, 'pixel_versions', lambda: dict(pillow='0.0'))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        assert LogitCache.open(tmp_path/'c').check_views(tiny.loaders(tfms=[])) == pytest.approx(more/255)
    assert any('look otherwise here' in str(w.message) for w in seen) == warned


def test_the_receivers_own_data_are_compared(built, tmp_path):
    file = built('ab').pack(tmp_path/'c.zip', licence='CC0-1.0')
    with pytest.raises(CacheMismatch, match=r'views\.seed'): LogitCache.unpack(file, tmp_path/'got', tiny.loaders(seed=1))
    with pytest.raises(CacheMismatch, match='are not in the cache'): LogitCache.unpack(file, tmp_path/'got', tiny.loaders(data=tiny.samples(n=30)))


# -- the command -----------------------------------------------------------------------------------------------------------

def command(capsys, *words):
    from libkd.cli import main
    with pytest.raises(SystemExit) as e: main(['cache', *map(str, words)])
    return e.value.code, *capsys.readouterr()


def test_the_command_builds_verifies_informs_and_packs(tmp_path, capsys):
    from test_cache import folder
    root, cache = folder(tmp_path/'images'), tmp_path/'mine'/'cache'
    code, out, _ = command(capsys, 'build', cache, root, '--teachers', 'resnet_mini', '--epochs', 30, '--views', 2, '--top-k', 2)
    assert code == 0 and 'finite(2)' in out and 'top_k' in out and 'lost' in out and LogitCache.open(cache).verify() == 6
    code, out, _ = command(capsys, 'verify', cache, root)
    assert code == 0 and '6 files, 18 of 18 images and 36 views are those of the cache' in out
    assert command(capsys, 'info', cache)[1].splitlines()[0].endswith('cache')
    code, out, _ = command(capsys, 'pack', cache, tmp_path/'c.zip', '--licence', 'CC0-1.0', '--about', 'Noise.')
    assert code == 0 and 'LogitCache.unpack' in out and contents(LogitCache.unpack(tmp_path/'c.zip', tmp_path/'got').path) == contents(cache)
    shard = cache/'logits'/'resnet_mini'/'v0001-s00000.safetensors'
    shard.write_bytes(shard.read_bytes()[:-1])
    for words in (('verify', cache), ('pack', cache, tmp_path/'d.zip', '--licence', 'CC0-1.0')):
        code, out, err = command(capsys, *words)
        assert code == 2 and 'v0001-s00000' in err and 'Traceback' not in err
    assert 'required: --licence' in command(capsys, 'pack', cache, tmp_path/'d.zip')[2]
