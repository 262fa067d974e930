"Data-free: the terms against published arithmetic, images that follow from teachers and seed alone, a folder that is whole or says why not."
import errno, json, math, os, re, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import timm, torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import libkd.datafree as D
from libkd import UserError
import tiny
from libkd.data import Samples
from libkd.files import LockedError, WriteError, locked
from libkd.learner import distill_learner
from libkd.teachers import Teacher
from libkd.views import image_dls

PUBLISHED = json.loads((Path(__file__).parent/'fixtures/published_inversion.json').read_text())
f64 = lambda o: torch.tensor(o, dtype=torch.float64)


class Net(nn.Module):
    "Two BatchNorm layers with statistics of their own; answers at once"
    def __init__(self, seed=0, classes=3):
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.n, self.b, self.m = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.out = nn.Linear(6, classes)
        self.out.weight.data *= 10
        for n in (self.n, self.m): n.running_mean.normal_(0, .3); n.running_var.uniform_(.3, 1.5); n.num_batches_tracked += 9
    def forward(self, x): return self.out(self.m(self.b(self.n(self.a(x)).relu())).relu().mean((2, 3)))


def teacher(name='net', seed=0, **kw): return Teacher(Net(seed), tiny.CLASSES, name, **kw)
def make(folder, teachers=None, **kw): return D.synthesize(folder, teacher() if teachers is None else teachers, **{'per_class': 4, 'size': 8, 'steps': 4, 'bs': 6, **kw})
def pixels(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*.png'))}
def hooks(model): return [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks)]


# -- the terms: published arithmetic -------------------------------------------------------------------------------------

def assert_published(name, f, *z):
    "`f` has the recorded value and gradients"
    z = [f64(o).requires_grad_() for o in z]
    v = f(*z)
    assert v.item() == pytest.approx(PUBLISHED[name]['value'], abs=1e-8)
    for g, want in zip(torch.autograd.grad(v, z), PUBLISHED[name]['gradients'], strict=True): torch.testing.assert_close(g, f64(want), atol=1e-8, rtol=0)


def layers():
    out = [nn.BatchNorm2d(len(m)).double() for m in PUBLISHED['mean']]
    for n, m, v in zip(out, PUBLISHED['mean'], PUBLISHED['var']): n.running_mean.copy_(f64(m)); n.running_var.copy_(f64(v))
    return out


def test_bn_loss_is_the_published_one(): assert_published('bn', lambda *m: D.bn_loss(m, layers()), *PUBLISHED['maps'])
def test_tv_loss_is_the_published_one():
    assert_published('tv_l2', D.tv_loss, PUBLISHED['images'])
    assert_published('tv_l1', lambda x: D.tv_loss(x, 1), PUBLISHED['images'])
def test_l2_loss_is_the_published_one(): assert_published('l2', D.l2_loss, PUBLISHED['images'])


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e/e.sum(1, keepdims=True)


def published_competition(s, t):
    "As released: KL(m‖p) and KL(m‖q) of probabilities clamped to [0.01, 0.99]"
    p, q = softmax(s/3), softmax(t/3)
    p, q, m = (o.clip(.01, .99) for o in (p, q, (p + q)/2))
    js = sum((m*np.log(m/o)).sum(1).mean()/2 for o in (p, q))
    return 1 - np.clip(js, 0, 1)


def test_the_published_competition_is_reversed_and_clamped():
    assert published_competition(*(np.array(PUBLISHED[k]) for k in ('student', 'teacher'))) == pytest.approx(PUBLISHED['competition']['value'], abs=1e-8)
    s = f64([[9., 0, 0, 0], [0, 9., 0, 0]])
    assert D.competition_loss(s, s.flip(0)).item() != pytest.approx(published_competition(s.numpy(), s.flip(0).numpy()), abs=.05)


def test_competition_is_the_divergence_of_the_textbook():
    from scipy.spatial.distance import jensenshannon          # its square is the divergence
    s, t = f64(PUBLISHED['student']).requires_grad_(), f64(PUBLISHED['teacher']).requires_grad_()
    want = 1 - np.mean(jensenshannon(softmax(s.detach().numpy()/3), softmax(t.detach().numpy()/3), axis=1)**2)
    assert D.competition_loss(s, t).item() == pytest.approx(want, abs=1e-12)
    assert torch.autograd.gradcheck(D.competition_loss, (s, t))
    far = f64([[5000., 0, 0, 0]])
    assert D.competition_loss(far, far.flip(1)).item() == pytest.approx(1 - math.log(2))


# -- our reading of the boundary-preserving term -------------------------------------------------------------------------

def reading_by_hand(f, y, m=.1, d_max=1.):
    "methods 3.5, image by image"
    f = [v/np.linalg.norm(v) for v in f]
    d, terms = lambda a, b: np.linalg.norm(f[a] - f[b]), []
    for a in range(len(y)):
        same = [d(a, p) for p in range(len(y)) if p != a and y[p] == y[a]]
        other = [d(a, n) for n in range(len(y)) if y[n] != y[a]]
        if same: terms.append(max(0., min(d_max, min(other, default=np.inf) - m) - min(same)))
    return np.mean(terms)


@pytest.mark.parametrize('y', [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 0, 0]], ids=['pairs', 'one alone', 'one class'])
@pytest.mark.parametrize('kw', [{}, dict(margin=.4, d_max=.6)], ids=['usual', 'other bounds'])
def test_intra_divergence_is_our_reading(y, kw):
    f = np.random.default_rng(3).normal(size=(6, 4))
    f[1], f[3] = f[0] + .05, f[2] + .1                         # neighbours that are near
    want = reading_by_hand(f, y, **{'m' if k == 'margin' else k: v for k, v in kw.items()})
    assert want > 0 and D.intra_divergence_loss(f64(f), torch.tensor(y), **kw).item() == pytest.approx(want, abs=1e-9)


def test_an_image_never_gains_by_moving_towards_another_class():
    angle = f64([0., .2, .9]).requires_grad_()
    f = lambda a: torch.stack([a.cos(), a.sin()], 1)
    g, = torch.autograd.grad(D.intra_divergence_loss(f(angle), torch.tensor([0, 0, 1])), angle)
    assert g[2] == 0 and g[0] > 0 and g[0] + g[1] == pytest.approx(0, abs=1e-12)      # only the distance within the class moves


def test_spread_ends_at_the_border_of_the_class():
    f = lambda *a: torch.stack([f64(a).cos(), f64(a).sin()], 1)
    y = torch.tensor([0, 0, 1, 1])
    assert D.intra_divergence_loss(f(0., .5, .3, .35), y) < D.intra_divergence_loss(f(0., .01, 1.5, 1.51), y)
    assert D.intra_divergence_loss(f(0., .5, .45, .95), y) == 0
    assert D.intra_divergence_loss(f(0., 1., 2., 3.), torch.arange(4)) == 0           # nobody has a partner


# -- what happens to the teacher: nothing --------------------------------------------------------------------------------

def test_teachers_stay_as_they_are_and_gradients_reach_the_images(tmp_path):
    t = teacher()
    before, buffers = t.fingerprint, {k: v.clone() for k, v in t.model.state_dict().items()}
    make(tmp_path/'a', t)
    assert t.fingerprint == before and not any(m.training for m in t.model.modules()) and not hooks(t.model)
    assert all(torch.equal(v, buffers[k]) for k, v in t.model.state_dict().items()) and all(p.grad is None for p in t.model.parameters())
    x = torch.randn(6, 3, 8, 8, requires_grad=True)
    with D.inside(t, D.bn_layers(t)) as read:
        for part in (read(x)[0].sum(), D.bn_loss(read(x)[1], D.bn_layers(t)), read(x)[2].sum()): assert torch.autograd.grad(part, x)[0].abs().sum() > 0


def test_what_is_read_is_what_enters(tmp_path):
    t, x = teacher(), torch.randn(5, 3, 8, 8)
    with D.inside(t, D.bn_layers(t)) as read: z, seen, f = read(x)
    torch.testing.assert_close(z, t.logits(x))
    torch.testing.assert_close(seen[0], t.model.a(x))
    torch.testing.assert_close(t.model.out(f), z)


def test_hooks_are_gone_after_an_exception(tmp_path, monkeypatch):
    t = teacher()
    monkeypatch.setattr(D, 'tv_loss', lambda *a: 1/0)
    with pytest.raises(ZeroDivisionError): make(tmp_path/'a', t)
    assert not hooks(t.model)
    with pytest.raises(RuntimeError), D.inside(t, D.bn_layers(t)) as read: read(torch.zeros(1, 2, 8, 8))
    assert not hooks(t.model)


# -- the images ----------------------------------------------------------------------------------------------------------

def test_the_terms_fall(tmp_path, monkeypatch):
    t, seen = teacher(), []
    monkeypatch.setattr(D._Watch, '__call__', lambda self, x, parts: seen.append({k: float(v) for k, v in parts.items()}))
    make(tmp_path/'a', t, steps=40, bs=12, terms=dict(bn=0.))
    assert len(seen) == 40 and set(seen[0]) == {'ce', 'tv', 'l2'} and seen[-1]['ce'] < .8*seen[0]['ce']
    make(tmp_path/'b', t, steps=40, bs=12, low=0., terms=dict(ce=0., bn=1., tv=0., l2=0.))
    assert set(seen[-1]) == {'bn'} and seen[-1]['bn'] < .5*seen[40]['bn']


def test_half_of_the_way_is_at_half_the_resolution(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(D, 'l2_loss', lambda x: sizes.append(x.shape[-1]) or x.sum()*0)
    make(tmp_path/'a', bs=12, size=16, steps=8, low=.25)
    assert sizes == [8]*2 + [16]*6


def test_images_are_moved_and_mirrored():
    g, x = torch.Generator().manual_seed(0), torch.arange(2*3*16*16.).view(2, 3, 16, 16)
    kept, turned = ({tuple(D._seen(x, 1, flip, g)[0, 0].diff(dim=1).sign().flatten().tolist()).count(-1.) for _ in range(40)} for flip in (False, True))
    assert len(turned) > len(kept)                             # mirrored rows fall where the others rise
    moved = {tuple(D._seen(x, 1, False, g)[0, 0].flatten().tolist()) for _ in range(300)}
    assert len(moved) == 25 and all(sorted(o) == sorted(x[0, 0].flatten().tolist()) for o in moved)    # up to two of sixteen pixels, in both directions


def test_an_ordinary_image_folder(tmp_path):
    folder = make(tmp_path/'a', per_class=5)
    s = Samples.from_folder(folder)
    assert s.classes == tiny.CLASSES and len(s) == 15 and s.check() is not None
    assert (s.counts()['train'] == 5).all()
    x, y = image_dls(folder, bs=4).one_batch()
    assert x.shape == (4, 3, 8, 8)
    assert {p.name for p in folder.iterdir()} == {'card.json', *tiny.CLASSES}


def test_the_card_says_how_and_that_they_are_synthetic(tmp_path):
    ts = [teacher('a', 1), teacher('b', 2)]
    text = (make(tmp_path/'a', ts, terms=dict(spread=.5))/'card.json').read_text()
    card = json.loads(text)
    assert card['about'].startswith('Synthetic images')
    assert sorted(card['plan']['teachers']) == sorted(f'{t.name} {t.fingerprint}' for t in ts)
    assert card['plan']['terms'] == D.TERMS | dict(spread=.5) and card['plan']['seed'] == 0 and card['versions']['torch'] == torch.__version__
    assert str(tmp_path) not in text and not re.search(r'20\d\d-|time|seconds', text)


def test_images_follow_from_teachers_and_arguments_alone(tmp_path):
    ts = [teacher('a', 1), teacher('b', 2)]
    one = pixels(make(tmp_path/'a', ts))
    torch.manual_seed(5); torch.randn(9)
    state = torch.get_rng_state()
    assert pixels(make(tmp_path/'b', ts[::-1])) == one         # nor from the order of the teachers
    assert make(tmp_path/'a', ts[::-1]) == tmp_path/'a'        # which is no other set
    assert torch.equal(torch.get_rng_state(), state)
    assert pixels(make(tmp_path/'c', ts, seed=1)) != one


def test_every_teacher_counts(tmp_path):
    a, b = teacher('a', 1), teacher('b', 2)
    assert len({tuple(pixels(make(tmp_path/str(i), ts)).values()) for i, ts in enumerate(([a], [b], [a, b]))}) == 3
    assert pixels(make(tmp_path/'twice', [a, Teacher(a.model, a.classes, 'again')])) == pixels(tmp_path/'0')


@pytest.mark.parametrize('term', [t for t in D.TERMS if t != 'compete'])
def test_every_term_moves_the_images(tmp_path, term):
    others = {t: 0. for t in D.TERMS if t != 'ce'}
    base = dict(per_class=2, bs=6, low=0.)
    without, with_it = (make(tmp_path/k, terms=others | v, **base) for k, v in (('0', dict(ce=0. if term == 'ce' else 1., l2=1e-9)), ('1', {'l2': 1e-9, term: 2.})))
    assert pixels(without) != pixels(with_it)


def test_competition_makes_images_where_the_student_errs(tmp_path):
    t, student = teacher(), Net(7)
    plain = make(tmp_path/'a', t, steps=40, bs=12)
    harder = make(tmp_path/'b', t, steps=40, bs=12, terms=dict(compete=20.), student=student)
    def agreement(folder):
        x, y = D._loaded_images(folder, t.classes, 9, None)
        return D.competition_loss(Teacher(student, t.classes).logits(x), t.logits(x))
    assert agreement(harder) < agreement(plain)
    assert not hooks(student) and student.training
    rival = Teacher(student, t.classes)
    before = rival.fingerprint
    make(tmp_path/'c', t, terms=dict(compete=20.), student=rival)
    assert rival.fingerprint == before
    with pytest.raises(ValueError, match='student = '): make(tmp_path/'b', t, steps=40, bs=12, terms=dict(compete=20.), student=Net(8))


def test_a_batch_has_partners_of_each_class():
    for n, per, bs in ((10, 100, 100), (3, 7, 6), (1000, 5, 64), (2, 1, 100)):
        cut = D._batches_of_classes(n, per, bs)
        assert sorted((c, j) for cs, js in cut for c, j in zip(cs, js)) == [(c, j) for c in range(n) for j in range(per)]
        assert max(len(c) for c, _ in cut) <= bs
    assert (np.bincount(D._batches_of_classes(10, 100, 100)[3][0]) == 10).all()
    assert np.bincount(D._batches_of_classes(1000, 8, 64)[0][0]).max() == 4


# -- killed, continued, refused ------------------------------------------------------------------------------------------

KILLED = """
import sys, os, torch; sys.path.insert(0, {tests!r}); torch.set_num_threads(1)
import libkd.datafree as D, test_datafree as T
save, n = D._save, 0
def die(im, path):
    global n
    n += 1
    if n == after: os._exit(9)
    save(im, path)
D._save = die
for after in (1, 8, 12):
    if not os.fork(): T.make(D.Path({folder!r})/str(after))
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 9
"""

@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_images(tmp_path):
    whole = pixels(make(tmp_path/'whole'))
    subprocess.run([sys.executable, '-W', 'ignore', '-c', KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))], check=True)
    for after in (1, 8, 12):
        folder, part = tmp_path/str(after), tmp_path/f'{after}.unfinished'
        assert not folder.exists() and len(pixels(part)) == after - 1
        assert pixels(make(folder)) == whole and not part.exists()


@pytest.mark.parametrize('after', [1, 8, 12])
def test_stopped_at_any_moment_it_ends_with_the_same_images(tmp_path, monkeypatch, after):
    whole, save, calls = pixels(make(tmp_path/'whole')), D._save, []
    def stop(im, path):
        calls.append(path)
        if len(calls) == after: raise KeyboardInterrupt
        save(im, path)
    monkeypatch.setattr(D, '_save', stop)
    with pytest.raises(KeyboardInterrupt): make(tmp_path/'a')
    assert not (tmp_path/'a').exists() and len(pixels(tmp_path/'a.unfinished')) == after - 1
    monkeypatch.undo()
    assert pixels(make(tmp_path/'a')) == whole and not (tmp_path/'a.unfinished').exists()


def test_whole_batches_are_not_made_again(tmp_path, monkeypatch):
    made, dream = [], D._dream
    monkeypatch.setattr(D, '_dream', lambda plan, k, *a: made.append(k) or dream(plan, k, *a))
    monkeypatch.setattr(D, '_save', lambda im, path, save=D._save: 1/0 if len(made) == 2 and path.parent.name == 'star' else save(im, path))
    with pytest.raises(ZeroDivisionError): make(tmp_path/'a')
    monkeypatch.undo()
    monkeypatch.setattr(D, '_dream', lambda plan, k, *a: made.append(k) or dream(plan, k, *a))
    make(tmp_path/'a'); make(tmp_path/'a')
    assert made == [0, 1, 1]


def test_no_half_written_image_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'replace', lambda *a: 1/0 if str(a[1]).endswith('.png') else os.rename(*a))
    with pytest.raises(ZeroDivisionError): make(tmp_path/'a')
    assert not [p for p in (tmp_path/'a.unfinished').rglob('*') if '.png' in p.name]


def test_a_full_disk_is_said_and_what_was_made_goes_on(tmp_path, monkeypatch):
    whole, save, calls = pixels(make(tmp_path/'whole')), Image.Image.save, []
    def full(im, f, *a):
        calls.append(f)
        if len(calls) < 5: return save(im, f, *a)
        f.write(b'half')
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(Image.Image, 'save', full)
    with pytest.raises(WriteError, match=r'The disk is full: .*\.png could not be written'): make(tmp_path/'a')
    monkeypatch.undo()
    assert [len(pixels(tmp_path/'a.unfinished')), *(tmp_path/'a.unfinished').rglob('*.tmp')] == [4]
    (tmp_path/'a.unfinished'/'.card.json.0123abcd.tmp').write_text('{')           # of a call that was killed
    assert pixels(make(tmp_path/'a')) == whole and not [*(tmp_path/'a').rglob('.*')]


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_card_that_was_never_whole_is_no_card(tmp_path, overwrite):
    (tmp_path/'a.unfinished').mkdir()
    (tmp_path/'a.unfinished'/'.card.json.0123abcd.tmp').write_text('{')
    assert len(pixels(make(tmp_path/'a', overwrite=overwrite))) == 12


CHANGES = [(dict(seed=1), 'seed = 0', 'seed = 1'), (dict(terms=dict(tv=0.)), 'terms.tv = 0.0001', 'terms.tv = 0.0'), (dict(per_class=5), 'per_class = 4', 'per_class = 5'),
           (dict(teachers=teacher(seed=3)), 'teachers = ', teacher(seed=3).fingerprint)]

@pytest.mark.parametrize('change,was,asked', CHANGES, ids=['seed', 'terms', 'per_class', 'teachers'])
@pytest.mark.parametrize('whole', [True, False], ids=['whole', 'unfinished'])
def test_other_arguments_are_refused_by_name(tmp_path, change, was, asked, whole):
    before = pixels(make(tmp_path/'a'))
    if not whole: (tmp_path/'a').rename(tmp_path/'a.unfinished')
    with pytest.raises(ValueError, match='overwrite=True') as e: make(tmp_path/'a', **change)
    assert was in str(e.value) and asked in str(e.value)
    assert pixels(tmp_path/('a' if whole else 'a.unfinished')) == before
    new = pixels(make(tmp_path/'a', **change, overwrite=True))
    assert new != before and not (tmp_path/'a.unfinished').exists()


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_folder_of_somebody_else_is_not_touched(tmp_path, overwrite):
    (tmp_path/'a').mkdir(); (tmp_path/'a'/'thesis.txt').write_text('…')
    with pytest.raises(FileExistsError, match='not touched'): make(tmp_path/'a', overwrite=overwrite)
    assert (tmp_path/'a'/'thesis.txt').read_text() == '…' and os.listdir(tmp_path) == ['a']
    (tmp_path/'a'/'thesis.txt').rename(tmp_path/'a'/'.thesis')
    with pytest.raises(FileExistsError, match='not touched'): make(tmp_path/'a', overwrite=overwrite)
    (tmp_path/'a'/'card.json').write_text('{"about": "my business card", "plan": {}}')
    with pytest.raises(FileExistsError, match='not touched'): make(tmp_path/'a', overwrite=overwrite)
    assert len(os.listdir(tmp_path/'a')) == 2
    (tmp_path/'b').mkdir()
    assert len(pixels(make(tmp_path/'b'))) == 12               # an empty folder is nobody's


def test_images_that_were_removed_are_missed(tmp_path):
    next(make(tmp_path/'a').rglob('*.png')).unlink()
    with pytest.raises(ValueError, match='holds 11 images and its card says 12'): make(tmp_path/'a')


def test_two_writers_are_one_too_many(tmp_path):
    said = r'Another process is making .*a\.unfinished\. Wait for it to end'
    with locked(tmp_path/'a.unfinished'), pytest.raises(LockedError, match=said): make(tmp_path/'a')


@pytest.mark.parametrize('whole', [True, False], ids=['whole', 'unfinished'])
def test_nothing_is_cleared_while_another_writes(tmp_path, whole):
    before = pixels(make(tmp_path/'a'))
    if not whole: (tmp_path/'a').rename(tmp_path/'a.unfinished')
    with locked(tmp_path/'a.unfinished'), pytest.raises(LockedError): make(tmp_path/'a', seed=1, overwrite=True)
    assert pixels(tmp_path/('a' if whole else 'a.unfinished')) == before
    assert pixels(make(tmp_path/'a', seed=1, overwrite=True)) != before and os.listdir(tmp_path) == ['a']


def test_what_another_has_made_meanwhile_is_opened(tmp_path, monkeypatch):
    def late(part, **kw):
        monkeypatch.undo()
        make(tmp_path/'a')                                     # between our look and our lock
        monkeypatch.setattr(D, '_dream', lambda *a: 1/0)
        return locked(part, **kw)
    monkeypatch.setattr(D, 'locked', late)
    assert len(pixels(make(tmp_path/'a'))) == 12 and os.listdir(tmp_path) == ['a']


def test_both_folders_are_ours_before_one_is_cleared(tmp_path):
    before = pixels(make(tmp_path/'a'))
    (tmp_path/'a.unfinished').mkdir(); (tmp_path/'a.unfinished'/'thesis.txt').write_text('…')
    with pytest.raises(FileExistsError, match='not touched'): make(tmp_path/'a', seed=1, overwrite=True)
    assert pixels(tmp_path/'a') == before and (tmp_path/'a.unfinished'/'thesis.txt').read_text() == '…'


# -- bad input -----------------------------------------------------------------------------------------------------------

def broken(**kw):
    t = teacher()
    for n in D.bn_layers(t): [setattr(n, k, v) if v is None else getattr(n, k).fill_(v) for k, v in kw.items()]
    return t


def bad():
    vit = Teacher(timm.create_model('vit_tiny_patch16_224', num_classes=3, depth=1), tiny.CLASSES, 'vit')
    odd = Teacher(Net(), ['a/b', 'square', 'star'], 'odd')
    part = Teacher(Net(), tiny.CLASSES, 'part', class_map={'circle': 'circle', 'star': 'star'}, answers=tiny.CLASSES)
    return dict(layernorm=(dict(teachers=vit), 'LayerNorm.*fit_teacher'), none=(dict(teachers=tiny.teacher()), 'norms: none'),
                never=(dict(teachers=broken(running_mean=0., running_var=1.)), '2 of 2 BatchNorm layers have never seen'),
                untracked=(dict(teachers=broken(running_mean=None, running_var=None)), 'track_running_stats'),
                module=(dict(teachers=Net()), 'as_teacher'), nobody=(dict(teachers=[]), 'at least one'), other=(dict(teachers=[teacher(), Teacher(Net(), 'abc', 'abc')]), 'must be the same'),
                unmapped=(dict(teachers=part), "does not know \\['square'\\]"), folder=(dict(teachers=odd), "'a/b'.*names of folders"), size=(dict(size=None), 'size=32'), flat=(dict(size=(8, 16)), 'square'),
                few=(dict(per_class=0), 'per_class=0: at least 1'), bs=(dict(bs=1), 'two images'), steps=(dict(steps=-1), 'steps=-1'), low=(dict(low=2.), 'from 0 to 1'),
                term=(dict(terms=dict(spred=1.)), "Did you mean 'spread'"), minus=(dict(terms=dict(tv=-1.)), 'from 0 up'), nan=(dict(terms=dict(tv=float('nan'))), 'from 0 up'),
                nostudent=(dict(terms=dict(compete=1.)), 'give student='), notcompeting=(dict(student=Net()), 'terms=dict\\(compete=1.\\)'),
                strange=(dict(terms=dict(compete=1.), student=Teacher(Net(), 'abc')), "'a', 'b', 'c'"))

BAD = bad()

@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_sentence_before_any_work(tmp_path, case):
    change, words = BAD[case]
    with pytest.raises((ValueError, TypeError), match=words): make(tmp_path/'a', **change)
    assert not os.listdir(tmp_path)


def test_images_that_became_nothing_are_not_written(tmp_path):
    t = teacher()
    t.model.out.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match='batch 0 became NaN'): make(tmp_path/'a', t)
    assert not pixels(tmp_path)


def test_converted_statistics_are_statistics():
    t = teacher()
    for n in D.bn_layers(t): n.num_batches_tracked.zero_()      # as in weights that came from another framework
    assert len(D.bn_layers(t)) == 2


# -- how varied they are -------------------------------------------------------------------------------------------------

def test_diversity_by_hand(tmp_path):
    t, s = teacher(), tiny.samples()
    x, y = D._loaded_images(s, t.classes, 100, None)
    f = F.normalize(_features(t, x), dim=1)
    said = t.logits(x).argmax(1)
    apart = [np.mean([(f[i] - f[j]).norm().item() for i in range(len(y)) for j in range(i) if y[i] == y[j] == c]) for c in range(3)]
    p = np.bincount(said, minlength=3)/len(said)
    row = D.image_diversity({'real': s}, t).loc['real']
    assert row['images'] == 24 and row['distance'] == pytest.approx(np.mean(apart), abs=1e-4)
    assert row['agrees'] == pytest.approx((said == y).float().mean().item()) and row['coverage'] == pytest.approx((p > 0).mean())
    assert row['entropy'] == pytest.approx(-sum(v*math.log(v) for v in p if v)/math.log(3), abs=1e-6)


def _features(t, x):
    with torch.no_grad(): return t.model.m(t.model.b(t.model.n(t.model.a(x)).relu())).relu().mean((2, 3))


def test_noise_is_always_in_the_table(tmp_path):
    table = D.image_diversity({'synthetic': make(tmp_path/'a'), 'real': tiny.samples()}, teacher())
    assert list(table.index) == ['noise', 'synthetic', 'real'] and table.loc['noise', 'images'] == 12
    assert table.loc['real', 'images'] == 24
    assert D.image_diversity({'x': tiny.samples()}, teacher(), per_class=2).loc['x', 'images'] == 6
    with pytest.raises(ValueError, match='must be the same'): D.image_diversity({'x': tiny.samples()}, Teacher(Net(), 'abc'))


def test_classes_in_another_order_are_compared_by_name():
    s = tiny.samples()
    turned = Samples(s.items, (s.labels - 1) % 3, s.classes[1:] + s.classes[:1], s.parts, s.ids)
    known = [{im.numpy().tobytes(): int(c) for im, c in zip(*D._loaded_images(o, s.classes, 9, None))} for o in (s, turned)]
    assert len(known[0]) == 24 and known[0] == known[1]


# -- a student -----------------------------------------------------------------------------------------------------------

def test_a_student_without_data_is_a_student_like_any_other(tmp_path):
    t = teacher()
    learn = D.datafree_learner(tmp_path/'a', t, 'vit_nano', images=dict(per_class=8, size=8, steps=3, bs=12), loaders=dict(bs=6), method='kd', check=False, seed=0,
                               student_kw=dict(depth=1, embed_dim=32, num_heads=2), verbose=False)
    assert json.loads((tmp_path/'a'/'card.json').read_text())['plan']['terms']['spread'] == 1.
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn.model.reset_classifier(2)
    s = tiny.samples()
    two = Samples(s.items, s.labels.clip(0, 1), ['round', 'angular'], s.parts, s.ids)
    tuned = distill_learner(image_dls(two, bs=6), learn.model, verbose=False)
    before = [p.detach().clone() for p in tuned.model.parameters()]
    with tuned.no_bar(), tuned.no_logging(): tuned.fit(1)
    assert not all(torch.equal(a, b) for a, b in zip(before, tuned.model.parameters()))
    assert tuned.get_preds()[0].shape[1] == 2


def test_the_order_of_classes_is_the_teachers(tmp_path):
    t = Teacher(Net(), ['star', 'circle', 'square'], 'turned')
    learn = D.datafree_learner(tmp_path/'a', t, 'vit_nano', images=dict(per_class=8, size=8, steps=1, bs=12), method='kd', check=False, student_kw=dict(depth=1, embed_dim=32, num_heads=2), verbose=False)
    assert list(learn.dls.vocab) == t.classes


# -- what one sees meanwhile ---------------------------------------------------------------------------------------------

def test_logs_stay_quiet(tmp_path, capfd):
    make(tmp_path/'a')
    out = capfd.readouterr()
    assert out.out == '' and out.err == ''


def test_a_live_notebook_shows_a_grid_with_a_text(tmp_path, monkeypatch):
    import IPython.display
    class Page:
        pages = []
        def update(self, o): self.pages.append(o.data)
    monkeypatch.setenv('LIBKD_WIDGETS', 'live')
    monkeypatch.setattr(IPython.display, 'display', lambda *a, **kw: Page())
    make(tmp_path/'a', steps=25)
    assert Page.pages and all(re.search(r'<img alt="[^"]*synthetic', o) for o in Page.pages)


def test_a_grid_shows_every_image():
    x = torch.rand(7, 3, 8, 8)
    im = np.asarray(D.image_grid(x, cols=4, zoom=2))
    assert im.shape == (2*18 + 2, 4*18 + 2, 3)
    np.testing.assert_array_equal(im[2:18:2, 2:18:2], (x[0]*255).round().byte().permute(1, 2, 0))


def test_a_teacher_of_one_size_says_what_to_do_about_half_of_it(tmp_path):
    "A flat layer behind the convolutions, as in many a first network: synthesis begins with pictures of half the size"
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4*64, 3))
    net[1].running_mean += .1
    flat = Teacher(net, tiny.CLASSES, name='flat', bias='conv')
    with pytest.raises(UserError, match=r'flat does not take pictures of 4×4 pixels.*size=8.*or low=0'): make(tmp_path/'a', flat)
    with pytest.raises(UserError, match=r'flat does not take pictures of 16×16 pixels.*training images'): make(tmp_path/'a', flat, size=16, low=0.)
    assert not (tmp_path/'a').exists()
    for to, t, kw in (('b', flat, dict(low=0.)), ('c', Teacher(net, tiny.CLASSES, name='flat', bias='conv', size=8), {})):
        assert len(list(make(tmp_path/to, t, **kw).rglob('*.png'))) == 12
