"Data: identities that survive, embedded sets that are whole or absent, splits that keep together, and one sentence for each bad input."
import hashlib, multiprocessing, os, signal, subprocess, sys, time, unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from libkd import UserError
from libkd.sets import clothes
from libkd.views import image_dls
from libkd.data import Samples, array_id, cluttered_digits, content_digest, data_home, digits, open_image, sample_id, write_once


def noise(n, size=8, seed=0): return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)

@pytest.fixture
def folder(tmp_path):
    "Twelve images of three classes, some in folders below the class."
    for i, a in enumerate(noise(12)):
        p = tmp_path/'photos'/('cat', 'dog', 'owl')[i % 3]/('deep' if i > 8 else '')/f'{i}.png'
        p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(a).save(p)
    return tmp_path/'photos'

MANY = Samples.from_arrays(noise(1000, 4), np.arange(1000) % 10)      # a thousand samples of ten classes, in memory


# -- ids -----------------------------------------------------------------------------------------------------------------

@given(st.lists(st.text(st.characters(exclude_characters='/\\\0', exclude_categories=('Cs',)), min_size=1), min_size=1, max_size=4))
def test_id_is_the_same_for_every_spelling_of_a_path(parts):
    slash = '/'.join(parts)
    assert sample_id(slash) == sample_id('\\'.join(parts))
    assert sample_id(unicodedata.normalize('NFD', slash)) == sample_id(unicodedata.normalize('NFC', slash))
    assert len(sample_id(slash)) == 16

def test_id_is_sha256_of_the_relative_path():
    "A golden value: caches written today must be found in ten years."
    assert sample_id('cat/1.png').hex() == '6a3b843cf66c4612f3382ad8101c9add'
    assert sample_id('cafe\u0301/1.png') == hashlib.sha256('caf\u00e9/1.png'.encode()).digest()[:16], 'composed letters'

def test_ids_do_not_depend_on_where_the_folder_lies(folder, tmp_path):
    moved = tmp_path/'elsewhere'/'pictures'
    before = Samples.from_folder(folder)
    moved.parent.mkdir(); folder.rename(moved)
    after = Samples.from_folder(moved)
    assert (before.ids == after.ids).all() and before.digest() == after.digest()

def test_ids_are_the_same_in_another_process(folder):
    code = f'from libkd.data import Samples; print(Samples.from_folder({str(folder)!r}).digest())'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | dict(PYTHONHASHSEED='7'))
    assert out.stdout.strip() == Samples.from_folder(folder).digest()

@given(st.permutations(range(12)))
def test_order_changes_the_digest_but_no_id(order):
    s = Samples.from_arrays(noise(12), np.arange(12) % 3)
    t = s[list(order)]
    assert {o.id: o.label for o in t} == {o.id: o.label for o in s}
    assert (t.digest() == s.digest()) == (list(order) == sorted(order))

def test_digest_sees_labels_and_class_names():
    a = Samples.from_arrays(noise(4), [0, 1, 0, 1])
    assert len({a.digest(), Samples.from_arrays(noise(4), [0, 1, 1, 0]).digest(), Samples.from_arrays(noise(4), [0, 1, 0, 1], ['x', 'y']).digest()}) == 3

def test_content_digest_sees_one_pixel(folder):
    s = Samples.from_folder(folder)
    before, a = s.content_digests(), np.array(open_image(s.source(0)))
    a[0, 0, 0] ^= 1
    Image.fromarray(a).save(s.source(0))
    assert ((s.content_digests() != before).any(1) == (np.arange(len(s)) == 0)).all()
    assert (Samples.from_folder(folder).ids == s.ids).all()


# -- folders -------------------------------------------------------------------------------------------------------------

def test_folder_reads_nested_images_hidden_files_and_other_files(folder):
    (folder/'cat'/'notes.txt').write_text('no image')
    (folder/'cat'/'._1.png').write_bytes(b'resource fork')
    (folder/'.ipynb_checkpoints').mkdir()
    s = Samples.from_folder(folder)
    assert s.classes == ['cat', 'dog', 'owl'] and len(s) == 12 and s.counts()['train'].tolist() == [4, 4, 4]
    assert 'cat/deep/9.png' in s.items

def test_given_classes_fix_order_and_choice(folder):
    s = Samples.from_folder(folder, classes=['owl', 'cat'])
    assert s.classes == ['owl', 'cat'] and len(s) == 8
    assert all(s.classes[o.label] in str(o.source) for o in s)

def test_parts_are_read_and_val_is_valid(folder, tmp_path):
    root = tmp_path/'parted'
    root.mkdir(); folder.rename(root/'train')
    for c in ('cat', 'dog'): (root/'val'/c).mkdir(parents=True); (root/'train'/c/'0.png' if c == 'cat' else root/'train'/c/'1.png').rename(root/'val'/c/'x.png')
    s = Samples.from_folder(root)
    assert (len(s.train), len(s.valid), len(s.test)) == (10, 2, 0) and s.has('valid') and not s.has('test')
    assert s.counts()['valid'].tolist() == [1, 1, 0]

def test_unlabelled_inside_and_outside(folder, tmp_path):
    inside = folder/'unlabelled'
    inside.mkdir(); Image.fromarray(noise(1, seed=5)[0]).save(inside/'u.png')
    s = Samples.from_folder(folder)
    assert s.classes == ['cat', 'dog', 'owl'] and (s.labels == -1).sum() == 1 and s.parts[s.labels == -1] == ['train']
    assert len(Samples.from_folder(folder, unlabelled=False)) == 12
    outside = tmp_path/'more'; inside.rename(outside)
    t = Samples.from_folder(folder, unlabelled=outside)
    assert t.check() is t and len(t) == 13 and len(t.labelled) == 12
    assert (t.ids[-1] == s.ids[-1]).all(), 'the folder of unlabelled images names them alike wherever it lies'

BAD = {
    'missing':     (lambda f: Samples.from_folder(f/'nothing'), FileNotFoundError, ['nothing', 'one folder of images for each class']),
    'a file':      (lambda f: Samples.from_folder(f/'cat'/'0.png'), NotADirectoryError, ['0.png is a file']),
    'no classes':  (lambda f: Samples.from_folder(f/'cat'), ValueError, ['deep']),
    'empty class': (lambda f: ((f/'emu').mkdir(), Samples.from_folder(f)), ValueError, ["'emu'", 'classes=']),
    'one class':   (lambda f: Samples.from_folder(f, classes=['cat']), ValueError, ['1 class', 'at least two']),
    'unknown':     (lambda f: Samples.from_folder(f, classes=['cat', 'cow']), ValueError, ['cow', 'dog']),
    'valid only':  (lambda f: ((f/'valid').mkdir(), Samples.from_folder(f)), ValueError, ['no train/']),
    'no free':     (lambda f: ((f/'unlabelled').mkdir(), Samples.from_folder(f)), ValueError, ['unlabelled', 'no images']),
}
def pictures_below(root, *folders):
    for c in folders:
        (root/c).mkdir(parents=True)
        for i in range(2): Image.fromarray(noise(1, seed=sum(map(ord, c)) + i)[0]).save(root/c/f'{i}.png')
    return root

@pytest.mark.parametrize('a, b, call', [('seg_train', 'seg_test', 'train/, test/'), ('training_set', 'test_set', 'train/, test/'), ('train2017', 'val2017', 'train/, valid/'),
                                        ('trainset', 'testset', 'train/, test/'), ('Train_Images', 'Validation_Images', 'train/, valid/')])
def test_folders_that_look_like_parts_are_no_classes(tmp_path, a, b, call):
    root = pictures_below(tmp_path, *(f'{p}/{c}' for p in (a, b) for c in ('cat', 'dog')))
    with pytest.raises(UserError, match=f'{a}/.*look like parts and not like classes.*Call them {call}'): Samples.from_folder(root)

@pytest.mark.parametrize('names', [('test_tube', 'toy_train'), ('train', 'bus'), ('eval_kit/near', 'train_set/near', 'train_set/far'), ('pretrain/a', 'pretrain/b', 'testament/a')])
def test_classes_may_be_called_nearly_so(tmp_path, names):
    "Those that hold pictures, one that speaks of a part beside one that does not"
    if 'eval_kit/near' in names: (tmp_path/'eval_kit').mkdir(); Image.fromarray(noise(1, seed=1)[0]).save(tmp_path/'eval_kit'/'x.png')
    assert len(Samples.from_folder(pictures_below(tmp_path, *names)).classes) == 2

def test_a_folder_in_a_folder_is_named(tmp_path):
    root = pictures_below(tmp_path, 'photos/cat', 'photos/dog')
    with pytest.raises(UserError, match='holds the folder photos/ alone.*give .*photos'): Samples.from_folder(root)
    assert len(Samples.from_folder(root/'photos')) == 4

@pytest.mark.parametrize('name', BAD)
def test_bad_folder_is_one_sentence_with_names(name, folder):
    f, kind, words = BAD[name]
    with pytest.raises(kind) as e: f(folder)
    assert all(w in str(e.value) for w in words) and '\n' not in str(e.value)

def test_class_only_in_valid_is_named(folder, tmp_path):
    root = tmp_path/'parted'
    root.mkdir(); folder.rename(root/'train'); (root/'valid'/'yak').mkdir(parents=True)
    with pytest.raises(ValueError, match="yak.*not in train"): Samples.from_folder(root)


# -- check ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('damage', ['text', 'cut', 'empty'])
def test_check_names_unreadable_images(folder, damage):
    p = folder/'dog'/'1.png'
    p.write_bytes(dict(text=b'no image', cut=p.read_bytes()[:len(p.read_bytes())//2], empty=b'')[damage])
    with pytest.raises(ValueError, match=r'1 of 12 images cannot be read.*1\.png'): Samples.from_folder(folder).check()

@pytest.mark.parametrize('how, damage', [('check', 'text'), ('check', 'cut'), ('size', 'text'), ('decoded', 'text'), ('decoded', 'cut')])
def test_all_unreadable_images_are_named_at_once(folder, tmp_path, capsys, how, damage):
    "Whoever mends one file a try needs as many tries as files; and nobody is sent to a stack trace that is not there."
    for p in (folder/'dog'/'1.png', folder/'owl'/'2.png'):
        p.write_bytes(dict(text=b'no image', cut=p.read_bytes()[:len(p.read_bytes())//2])[damage])
    s = Samples.from_folder(folder)
    s.parts[[s.items.index(n) for n in ('cat/0.png', 'dog/4.png', 'owl/5.png')]] = 'valid'
    with pytest.raises(UserError, match=r'^2 of \d+ images cannot be read: .*1\.png, .*2\.png \(the first: [^()]*\)\. Remove or replace them\.$'):
        if how == 'check': s.check()
        else: image_dls(s, check=False, **(dict(size=8, keep=tmp_path/'kept') if how == 'decoded' else {}))
    assert 'stack trace' not in capsys.readouterr().out

def test_a_picture_in_two_classes_is_said(folder):
    (folder/'dog'/'copy.png').write_bytes((folder/'cat'/'0.png').read_bytes())
    with pytest.warns(UserWarning, match=r'in two classes, 1 in all: .*0\.png, .*copy\.png'): Samples.from_folder(folder).check()

def test_check_names_both_files_of_a_leak(folder):
    s = Samples.from_folder(folder)
    (folder/'dog'/'copy.png').write_bytes((folder/'cat'/'0.png').read_bytes())
    s = Samples.from_folder(folder)
    parts = np.where(np.array(s.items) == 'dog/copy.png', 'valid', 'train')
    assert s.check() is s                                             # twice in one part: allowed
    with pytest.raises(ValueError, match=r'two parts.*0\.png.*copy\.png.*train and valid'): s._take(np.arange(len(s)), parts=parts).check()

def test_two_spellings_of_one_name_are_a_duplicate(folder):
    a, b = 'caf\u00e9.png', 'cafe\u0301.png'
    for n, im in zip((a, b), noise(2, seed=9)): Image.fromarray(im).save(folder/'cat'/n)
    if len(list((folder/'cat').glob('caf*'))) < 2: pytest.skip('this file system makes the names one')
    with pytest.raises(ValueError, match='the same sample twice'): Samples.from_folder(folder)

def test_same_array_twice_is_named():
    a = noise(3)
    with pytest.raises(ValueError, match='image 1, image 3'): Samples.from_arrays([a[0], a[1], a[2], a[1]], [0, 1, 0, 1])

@pytest.mark.parametrize('labels, words', [(np.eye(4), 'multi-label'), ([.1, .2, .3, .4], 'regression'), ([[0, 1]]*4, 'multi-label'), ([0, 1, 2, 9], 'label 9')])
def test_labels_that_are_no_classes(labels, words):
    with pytest.raises(ValueError, match=words): Samples.from_arrays(noise(4), labels, classes=['a', 'b', 'c'] if words == 'label 9' else None)

def test_labels_by_name_number_and_none_agree():
    names = Samples.from_arrays(noise(4), ['b', 'a', None, 'b'])
    numbers = Samples.from_arrays(noise(4), [1, 0, -1, 1], classes=['a', 'b'])
    assert names.digest() == numbers.digest() and names.labels.tolist() == [1, 0, -1, 1]


@pytest.mark.parametrize('labels, classes', [(['b', 'a', -1, float('nan')], 'ab'), ([10, 9, None, -1], ['9', '10']), (np.array([10, 9, None, -1], object), ['9', '10'])])
def test_no_label_is_no_class_whatever_stands_beside_it(labels, classes):
    s = Samples.from_arrays(noise(4), labels)
    assert s.classes == list(classes) and s.labels.tolist() == [1, 0, -1, -1]


@pytest.mark.parametrize('label', [-2, 2, 2**32])
def test_numbers_of_no_class_are_refused_by_every_way_in(label):
    said, pictures, labels = f'label {label} in a list of 2 classes: labels count from 0 to 1, −1 is unlabelled', noise(4), [0, 1, -1, label]
    ways = [lambda: Samples(list(pictures), labels, 'ab'), lambda: Samples.from_arrays(pictures, labels, classes='ab'),
            lambda: Samples.from_dataset([*zip(pictures, labels)], classes='ab')]
    if label < 0: ways += [lambda: Samples.from_arrays(pictures, labels), lambda: Samples.from_dataset([*zip(pictures, labels)])]
    for way in ways:
        with pytest.raises(UserError, match=said): way()


@pytest.mark.parametrize('labels', [[0, .7, 1, 0], [[0, 1], [1, 0]], ['a', 'b', 'a', 'b']])
def test_columns_of_labels_are_whole_numbers(labels):
    with pytest.raises(UserError, match='one whole number for each sample is needed'): Samples(list(noise(4)), labels, 'ab')


# -- lots and splits -----------------------------------------------------------------------------------------------------

@given(st.integers(1, 99), st.integers(0, 2**31), st.integers(1, 98))
def test_subsets_are_nested_and_orderless(k, seed, j):
    ids = lambda s: {o.tobytes() for o in s.ids}
    a = MANY.subset(per_class=k, seed=seed)
    assert a.counts()['train'].tolist() == [k]*10
    assert ids(MANY.subset(per_class=min(j, k), seed=seed)) <= ids(a)
    assert ids(MANY[::-1].subset(per_class=k, seed=seed)) == ids(a)
def test_seeds_choose_differently():
    assert (MANY.subset(per_class=10, seed=0).ids != MANY.subset(per_class=10, seed=1).ids).any()

def test_hide_labels_keeps_everybody():
    h = MANY.hide_labels(7)
    assert (h.ids == MANY.ids).all() and h.counts()['train'].tolist() == [7]*10 + [930]
    kept = h.labels >= 0
    assert (h.labels[kept] == MANY.labels[kept]).all()
    with pytest.raises(ValueError, match='has 100 labelled.*101'): MANY.hide_labels(101)

@given(st.floats(.02, .6), st.floats(0, .35), st.integers(0, 100))
def test_split_is_stratified_and_whole(valid, test, seed):
    s = MANY.split(valid=valid, test=test, seed=seed)
    assert len(s) == 1000 and set(s.valid.counts()['valid']) == {max(1, round(100*valid))}
    assert (s.split(valid=0, test=.1, seed=1) if not s.has('test') else s).has('test')

def test_groups_stay_together_whatever_their_sizes():
    rng = np.random.default_rng(0)
    for seed in range(5):
        g = rng.integers(0, rng.integers(20, 300), 1000)
        s = MANY.split(valid=.2, test=.1, by=g, seed=seed)
        group = dict(zip([i.tobytes() for i in MANY.ids], g))
        sides = {}
        for o, p in zip(s, s.parts): sides.setdefault(group[o.id], set()).add(p)
        assert all(len(v) == 1 for v in sides.values())
        assert abs((s.parts == 'valid').mean() - .2) < .05 and abs((s.parts == 'test').mean() - .1) < .05

def test_unlabelled_image_of_a_held_out_group_is_left_out():
    s = MANY.hide_labels(50)
    g = np.arange(1000)//10
    with pytest.warns(UserWarning, match='left out'): t = s.split(.3, by=g)
    out = {g[i] for i, o in enumerate(s) if o.id in {v.id for v in t.valid}}
    assert not any(g[i] in out for i, o in enumerate(s) if o.id in {v.id for v in t.train})

@pytest.mark.parametrize('kw', [dict(by=lambda s: s.source.parent.name), dict(by='parent')])
def test_by_takes_functions_and_parent(tmp_path, kw):
    for i, a in enumerate(noise(60)):
        p = tmp_path/f'c{i % 2}'/f'scene{i//2 % 10}-{i % 2}'/f'{i}.png'
        p.parent.mkdir(parents=True, exist_ok=True); Image.fromarray(a).save(p)
    s = Samples.from_folder(tmp_path).split(.2, by=kw['by'])
    scenes = [{Path(i).parent.name for i in s.part(p).items} for p in ('train', 'valid')]
    assert not scenes[0] & scenes[1] and len(scenes[1]) == 4

@pytest.mark.parametrize('kw, words', [(dict(valid=1.), 'less than 1'), (dict(valid=0.), 'shares'), (dict(by=[1, 2]), 'one group for each'), (dict(by='folder'), "'parent'"), (dict(by=np.zeros(1000)), 'cannot be split')])
def test_impossible_splits(kw, words):
    with pytest.raises(ValueError, match=words): MANY.split(**kw)

def test_a_class_of_one_image_cannot_be_split():
    s = Samples.from_arrays(noise(5), [0, 0, 0, 0, 1], ['many', 'one'])
    with pytest.raises(ValueError, match="'one' has 1"): s.split(.2)


# -- embedded sets -------------------------------------------------------------------------------------------------------

def test_no_original_is_in_two_parts():
    from libkd.sets import _originals
    seen = [{d.tobytes() for d in X} for X, _ in _originals().values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 1797

def test_scenes_do_not_depend_on_how_many_there_are():
    a, b = cluttered_digits(20, 5, 10, 10), cluttered_digits(40, 10, 20, 10)
    for p in a.rglob('*.png'): assert content_digest(p) == content_digest(b/p.relative_to(a)), p

def test_scene_pixels_are_the_same_everywhere(monkeypatch, tmp_path):
    "A golden value: the embedded set is data, and data do not change with a library's version. A new recipe needs a new name of the folder."
    monkeypatch.setenv('LIBKD_HOME', str(tmp_path))
    a = np.stack([np.asarray(open_image(s.source)) for s in Samples.from_folder(cluttered_digits(20, 5, 10, 10))])
    assert array_id(a).hex() == GOLDEN_SCENES
GOLDEN_SCENES = '86cc5c4df040ec5c7764cee7d872a621'

def test_embedded_sets_are_valid_data():
    for path in (digits(), cluttered_digits(20, 5, 10, 10, size=24)):
        assert len(Samples.from_folder(path).check().test) > 0
    assert open_image(Samples.from_folder(path).source(0)).size == (24, 24)

@pytest.mark.parametrize('kw, words', [(dict(size=8), '12 to 64'), (dict(train=5), 'at least 20')])
def test_impossible_scenes(kw, words):
    with pytest.raises(ValueError, match=words): cluttered_digits(**kw)

def _write_slowly(path, ready):
    def write(tmp):
        (tmp/'first').write_text('x'); ready.set(); time.sleep(60)
    write_once(path, write)

@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_that_looks_whole(tmp_path):
    ctx = multiprocessing.get_context('spawn')
    ready = ctx.Event()
    p = ctx.Process(target=_write_slowly, args=(tmp_path/'set', ready))
    p.start(); assert ready.wait(60)
    os.kill(p.pid, signal.SIGKILL); p.join()
    assert not (tmp_path/'set').exists()
    write_once(tmp_path/'set', lambda t: (t/'first').write_text('y'))
    assert (tmp_path/'set'/'first').read_text() == 'y'

def test_a_failed_writer_cleans_up(tmp_path):
    def full(t): (t/'a').write_text('x'); raise OSError(28, 'No space left on device')
    with pytest.raises(UserError, match='The disk is full'): write_once(tmp_path/'set', full)
    assert list(tmp_path.iterdir()) == []

def test_the_second_of_two_writers_gives_way(tmp_path):
    def late(t):
        (t/'who').write_text('late')
        write_once(tmp_path/'set', lambda u: (u/'who').write_text('early'))   # the other comes first
    assert (write_once(tmp_path/'set', late)/'who').read_text() == 'early'
    assert [p.name for p in tmp_path.iterdir()] == ['set']

def test_home_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv('LIBKD_HOME', str(tmp_path/'here'))
    assert data_home() == tmp_path/'here' and digits().parent == tmp_path/'here'


# -- fastai --------------------------------------------------------------------------------------------------------------

def test_from_dls_follows_rows_of_a_table(folder):
    import pandas as pd
    from fastai.vision.data import ImageDataLoaders
    s = Samples.from_folder(folder)
    df = pd.DataFrame(dict(name=s.items, label=[s.classes[c] for c in s.labels], is_valid=[i % 4 == 0 for i in range(12)]))
    t = Samples.from_dls(ImageDataLoaders.from_df(df, folder, fn_col='name', label_col='label', valid_col='is_valid', bs=4))
    assert {o.id: o.label for o in t} == {o.id: o.label for o in s} and len(t.valid) == 3

def test_from_dls_refuses_multi_label_and_regression(folder):
    import pandas as pd
    from fastai.vision.data import ImageDataLoaders, RegressionBlock
    s = Samples.from_folder(folder)
    df = pd.DataFrame(dict(name=s.items, label=['a b', 'b', 'a']*4))
    with pytest.raises(ValueError, match='multi-label'): Samples.from_dls(ImageDataLoaders.from_df(df, folder, fn_col='name', label_col='label', label_delim=' ', bs=4))
    df = pd.DataFrame(dict(name=s.items, label=np.linspace(0, 1, 12)))
    with pytest.raises(ValueError, match='regression'): Samples.from_dls(ImageDataLoaders.from_df(df, folder, fn_col='name', label_col='label', y_block=RegressionBlock, bs=4))


# -- size ----------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_columns_stay_small():
    "Memory of a hundred thousand samples, beside the file names themselves: tens of bytes each, not a Python object each."
    import tracemalloc
    items = [f'c{i % 10}/{i:07d}.jpg' for i in range(100_000)]
    labels = np.arange(100_000) % 10
    tracemalloc.start()
    s = Samples(items, labels, list('abcdefghij'))._whole()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held/len(s) < 64


# -- pictures and folders as they are ----------------------------------------------------------------------------------
def picture(path, size=(8, 8), colour='red', **kw):
    from PIL import Image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, colour).save(path, **kw)


@pytest.mark.parametrize('names', [('train', 'validation'), ('Training', 'TEST'), ('train', 'dev'), ('TRAIN', 'holdout'), ('train', 'eval')])
def test_other_names_of_parts(tmp_path, names):
    for part in names:
        for c in 'ab': picture(tmp_path/part/c/'1.png')
    s = Samples.from_folder(tmp_path)
    assert s.classes == ['a', 'b'] and len(s) == 4 and len(set(s.parts)) == 2


def test_a_class_may_be_called_train(tmp_path):
    for c in ('train', 'bus'): picture(tmp_path/c/'1.png')
    assert Samples.from_folder(tmp_path).classes == ['bus', 'train']


def test_what_is_left_out_is_said(tmp_path, capsys):
    for c in 'ab': picture(tmp_path/'train'/c/'1.png'); picture(tmp_path/'valid'/c/'1.png')
    (tmp_path/'train'/'a'/'notes.txt').write_text('x')
    picture(tmp_path/'train'/'lost.png')
    (tmp_path/'old').mkdir()
    Samples.from_folder(tmp_path)
    out = capsys.readouterr().out
    assert 'left out: 3' in out and '1 .txt' in out and '1 .png' in out and '1 folder' in out
    Samples.from_folder(tmp_path, verbose=False)
    assert not capsys.readouterr().out


def test_a_flat_folder_is_told_how(tmp_path):
    picture(tmp_path/'1.png')
    with pytest.raises(UserError, match='nothing says what they show'): Samples.from_folder(tmp_path)


def test_linked_folders_are_followed_and_circles_end(tmp_path):
    for c in 'ab': picture(tmp_path/'there'/c/'1.png')
    (tmp_path/'data').mkdir()
    for c in 'ab': (tmp_path/'data'/c).symlink_to(tmp_path/'there'/c)
    (tmp_path/'there'/'a'/'up').symlink_to(tmp_path/'there'/'a')
    assert len(Samples.from_folder(tmp_path/'data')) == 2


def test_identity_is_content(tmp_path):
    for c in 'ab': picture(tmp_path/'one'/c/'1.png', colour='red' if c == 'a' else 'blue')
    same = Samples.from_folder(tmp_path/'one').identity()
    (tmp_path/'one').rename(tmp_path/'two')
    assert Samples.from_folder(tmp_path/'two').identity() == same
    picture(tmp_path/'two'/'a'/'1.png', colour='green')
    now = Samples.from_folder(tmp_path/'two').identity()
    assert {k for k in now if now[k] != same[k]} == {'pixels', 'decoded'}


def test_bursts_over_parts_are_counted(tmp_path):
    rng = np.random.default_rng(0)
    for i, part in enumerate(('train', 'train', 'valid')):
        for c in 'ab':
            a = rng.integers(0, 255, (32, 32, 3), np.uint8) if part == 'train' else a
            (tmp_path/part/c).mkdir(parents=True, exist_ok=True)
            Image.fromarray(a if part == 'train' else np.clip(a.astype(int) + 3, 0, 255).astype(np.uint8)).save(tmp_path/part/c/f'{i}.png')
    with pytest.warns(UserWarning, match='look like one in the training part'): Samples.from_folder(tmp_path).check()


def test_sixteen_bits_exif_and_glass(tmp_path):
    Image.fromarray(np.array([[0, 60000]], np.uint16)).save(tmp_path/'a.png')
    assert np.asarray(open_image(tmp_path/'a.png'))[0, :, 0].tolist() == [0, 234]
    exif = Image.Exif(); exif[0x0112] = 6
    Image.new('RGB', (8, 4)).save(tmp_path/'b.jpg', exif=exif)
    assert open_image(tmp_path/'b.jpg').size == (4, 8)
    Image.new('RGBA', (2, 2), (0, 0, 0, 0)).save(tmp_path/'c.png')
    assert np.asarray(open_image(tmp_path/'c.png')).min() == 255
    Image.fromarray(np.full((2, 2), 1e9, np.float32)).save(tmp_path/'d.tif')
    with pytest.raises(UserError, match='d.tif cannot be read as an image .*0 to 65535'): open_image(tmp_path/'d.tif')


def test_twelve_bits_in_sixteen_are_told(tmp_path):
    "Microscopes and X-ray machines write 10 to 14 bits: divided by 256 they are black, scaled one by one they would lose what they measured"
    for high, shades in ((4095, 16), (1023, 4)):
        Image.fromarray(np.linspace(0, high, 64).reshape(8, 8).astype(np.uint16)).save(tmp_path/'a.png')
        with pytest.warns(UserWarning, match=f'no value above {high}.*at most {shades} are left'): open_image(tmp_path/'a.png')
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(tmp_path/'b.png')
    assert np.asarray(open_image(tmp_path/'b.png'))[..., 0].ravel().tolist() == list(range(64)), 'eight bits in sixteen'


class Listed(list):
    "A data set as torch's are: (picture, label)"


@pytest.mark.parametrize('rows, words', [
    ([], 'train data set has no row'), ([(np.zeros((3, 8, 8), np.float32), 0)], r'row 0 of the Listed: .*float32.*transform=None'),
    ([(np.zeros((3, 8, 8), np.uint8), 0)], 'transform=None')], ids=['none', 'floats', 'channels first'])
def test_rows_that_cannot_be_had(rows, words):
    with pytest.raises(UserError, match=words): Samples.from_dataset(Listed(rows))
    with pytest.raises(UserError, match='no picture was given'): Samples.from_arrays([], [])


def test_pictures_that_change_are_found_among_the_first(monkeypatch):
    "Mirrored by chance, every second picture: the last one alone would tell in half of the cases"
    class Changing(Listed):
        def __getitem__(self, i):
            self.asked = {**getattr(self, 'asked', {}), i: getattr(self, 'asked', {}).get(i, 0) + 1}
            return (list.__getitem__(self, i)[0][::-1] if i == 12 and self.asked[i] > 1 else list.__getitem__(self, i)[0], i % 2)
    with pytest.raises(UserError, match='row 12 of the Changing is another picture than before'): Samples.from_dataset(Changing([(a, 0) for a in noise(16, seed=3)]))


@pytest.mark.parametrize('bad', [lambda s: s.hide_labels(-1), lambda s: s.subset(per_class=1.5), lambda s: s.subset(n=0), lambda s: s.subset(n=-3)])
def test_numbers_of_pictures_that_are_none(folder, bad):
    with pytest.raises(UserError, match='whole number|at least 1'): bad(Samples.from_folder(folder))


def test_a_listed_class_may_be_without_a_picture_and_no_picture_with_a_label():
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    with pytest.warns(UserWarning, match="'c'.*1 of 3 classes"):
        some = Samples.from_arrays(x, ['a', 'b']*20, classes=['a', 'b', 'c'])
    assert some.split(valid=.2).counts().loc['c'].sum() == 0
    with pytest.raises(UserError, match="no training image of 'b'"):      # found, not listed
        Samples.from_arrays(x, ['a', 'b']*20, parts=['train', 'valid']*20)
    with pytest.warns(UserWarning, match='3 of 3 classes'):
        none = Samples.from_arrays(x, [None]*40, classes=['a', 'b', 'c'])
    dls = image_dls(none, bs=8, device='cpu')
    assert (len(dls.train_ds), len(dls.valid_ds)) == (40, 0) and next(iter(dls.train))[1].eq(-1).all()


def test_a_test_part_without_a_valid_part_is_not_taken_for_one():
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    s = Samples.from_arrays(x, [None]*40, classes=['a', 'b'], parts=['train', 'test']*20)
    dls = image_dls(s, bs=8, device='cpu')
    assert [len(dl.dataset) for dl in dls.loaders] == [20, 0, 20]


@pytest.mark.slow
def test_clothes_hide_labels_and_lose_no_photograph(monkeypatch, tmp_path):
    monkeypatch.setenv('LIBKD_HOME', str(tmp_path))                 # written now, not found
    few, whole = Samples.from_folder(clothes(labels=10, seed=1)), Samples.from_folder(clothes())
    assert len(few) == len(whole) == 3781 and whole.parts.tolist().count('test') == 372
    assert few.train.labelled.counts()['train'].tolist() == [10]*10
    names = {s.id: s.label for s in whole}
    assert all(names[s.id] == s.label for s in few.labelled)
    assert sorted(few.content_digests().tolist()) == sorted(whole.content_digests().tolist())
    with pytest.raises(UserError, match='2 to 112'): clothes(labels=113)


class Rows:
    "Somebody's data set; `moved` is what a random transform would do"
    def __init__(self, n=24, moved=0):
        self.x, self.moved = np.random.default_rng(3).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), moved
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return Image.fromarray(np.roll(self.x[i], self.moved)), 'ab'[i % 2]


def test_a_data_set_of_another_package_has_the_ids_of_its_pixels_and_is_read_lazily():
    ours, theirs = Rows(), Samples.from_dataset({'training': Rows(), 'val': [dict(img=a, label='a') for a in 255 - Rows(4).x]})
    assert theirs.classes == ['a', 'b'] and theirs.parts.tolist() == ['train']*24 + ['valid']*4
    assert [o.tobytes() for o in theirs.ids[:24]] == [array_id(a) for a in ours.x]
    arrays = Samples.from_arrays([*ours.x, *(255 - Rows(4).x)], theirs.labels, classes=['a', 'b'], parts=theirs.parts)
    x = [image_dls(s, bs=8, device='cpu', seed=1).train.pixels([0, 5, 7], [0, 1, 2]) for s in (theirs, arrays)]
    assert x[0].equal(x[1])                                             # the same views as of arrays
    assert theirs.identity() == arrays.identity()


def test_a_copy_of_a_row_is_nobody_elses():
    "NumPy leaves copying to whoever makes the array"
    data = [(a, i % 2) for i, a in enumerate(Rows(4).x.copy())]
    row = Samples.from_dataset(data).source(0)
    assert np.shares_memory(np.asarray(row), data[0][0]) and np.asarray(row, 'f4').dtype == 'f4'
    np.array(row)[:] = 0
    assert np.array_equal(data[0][0], Rows(4).x[0])
    with pytest.raises(ValueError, match='copy'): np.asarray(row, 'f4', copy=False)


def test_a_data_set_that_changes_is_noticed():
    ds = Rows()
    s = Samples.from_dataset(ds)
    ds.moved = 1
    with pytest.raises(UserError, match='row 2 of the Rows is another picture'): open_image(s.source(2))
    with pytest.raises(UserError, match='another picture'): image_dls(s, bs=8, device='cpu').train.one_batch()


@pytest.mark.parametrize('given, words', [
    (iter([]), 'front to back'), ([3, 4], 'a row of this data set is a int'), ([dict(image=1)], "the keys \\['image'\\]"),
    ({'train': Rows(), 'extra': Rows()}, "\\['extra'\\] are no parts"), ([(np.zeros((3, 4, 4), np.float32), 0)]*2, 'uint8')])
def test_a_data_set_that_cannot_be_used_gets_a_sentence(given, words):
    with pytest.raises(UserError, match=words): Samples.from_dataset(given)


# -- memory ----------------------------------------------------------------------------------------------------------------

def test_looking_at_pictures_in_memory_leaves_nothing_behind():
    "numpy keeps what it told another library about an array for as long as the array lives: 88 bytes each"
    import tracemalloc
    pictures = list(noise(2000))
    for p in pictures[:10]: open_image(p)
    tracemalloc.start()
    for p in pictures: open_image(p)
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert left < 20*len(pictures), f'{left/len(pictures):.0f} bytes a picture'


@pytest.mark.parametrize('shape', [(4, 4, 3), (4, 4), (4, 4, 1)])
def test_pictures_of_one_array_are_no_objects_of_their_own(shape):
    import tracemalloc
    x = np.random.default_rng(0).integers(0, 255, (2000, *shape), dtype=np.uint8)
    tracemalloc.start()
    s = Samples.from_arrays(x, np.arange(2000) % 2, ['a', 'b'])
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 100*2000, f'{held/2000:.0f} bytes a picture'                  # id, label, part and place: 48
    some = s[[5, 3, 1999]][1:]
    assert [o.base is x for o in some.sources] == [True, True]
    assert all(np.array_equal(o, x[i].squeeze()) for o, i in zip(some.sources, (3, 1999)))
    assert np.array_equal(s.ids, Samples.from_arrays(list(x), np.arange(2000) % 2, ['a', 'b']).ids)


def test_loaders_hold_the_positions_of_their_parts_once():
    dls = image_dls(Samples.from_arrays(noise(40), np.arange(40) % 2), bs=8)
    lists = {id(tl.splits) for dl in dls.loaders for tl in dl.dataset.tls}
    assert len(lists) == 1
    assert [sorted(dls.train_ds.items.ids.tolist()), sorted(dls.valid_ds.items.ids.tolist())] == [
        sorted(o.tolist() for o in dls.train.samples.ids[list(rows)]) for rows in dls.train_ds.splits]
