"""The matrix of reuse: every place where something is found again, against everything that may have changed meanwhile.

The truth of a cell is the thing made anew under the change, compared bit for bit with the one before. Finding it again is
right only where the two are equal, refusing it only where they differ; making an equal thing anew is needless. `PLACES` and
`CHANGES` are the rows and columns; a field of `World` without a change, or a place without a probe, fails
(`tests/test_reuse.py`). `nbs/bench/reuse.ipynb` shows the table. Pictures have 8 pixels, so all of it takes a minute or two.
"""
import contextlib, hashlib, io, os, shutil, tempfile, warnings
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np, torch
from PIL import Image
from fastai.callback.core import Callback
from torch import nn
from torchvision.transforms import v2
from libkd.all import *

CLASSES = ['circle', 'square', 'star']


@dataclass(frozen=True)
class World:
    "All that a result may depend on; each field has a change in `CHANGES`"
    # the images
    pixel: int = 0             # of the first picture
    quiet_pixel: int = 0       # the same, but the file keeps its size and its times
    label: int = 0             # of the first picture: its class folder
    file_name: str = 'p'       # of all pictures
    order: int = 1             # -1: back to front
    class_order: int = 1       # -1: the list of classes reversed
    split: int = 0             # seed of the split
    moved: int = 0             # the folder lies elsewhere
    touched: int = 0           # the files have other times
    size: int = 8              # pixels
    # the views
    view_seed: int = 0
    shift: float = .25         # of `LightViews`
    mix: float = 0.            # share of mixed views
    transform: str = 'light'   # see `TRANSFORMS`
    # the teachers
    net_weight: float = 0.     # added to one weight of a ready teacher
    net_scale: float = 1.      # a number that is no tensor
    net_mean: float = .485     # what a ready teacher normalises with
    fit_seed: int = 0          # of a teacher that is trained
    fit_epochs: int = 1
    fit_lr: float = .01
    fit_wd: float = .01
    fit_arch: str = 'resnet_mini'
    fit_callback: float = 0.   # an argument of a callback of the user's
    # the student
    T: float = 2.
    weight: float = 1.         # of the teacher
    label_weight: float = .5
    loss: str = 'kd'
    schedule: float = 1.       # of the teachers' part: the end of a straight line
    method: str = 'kd'
    lr: float = .01
    curve: str = 'cosine'      # or 'flat'
    wd: float = .01
    epochs: int = 1
    bs: int = 6
    seed: int = 0
    depth: int = 1


DATA  = ('pixel', 'quiet_pixel', 'label', 'file_name', 'order', 'class_order', 'split', 'moved', 'touched', 'size')
VIEWS = ('view_seed', 'shift', 'mix', 'transform')
NET   = ('net_weight', 'net_scale', 'net_mean')
FIT   = ('fit_seed', 'fit_epochs', 'fit_lr', 'fit_wd', 'fit_arch', 'fit_callback')
STUDENT = ('T', 'weight', 'label_weight', 'loss', 'schedule', 'method', 'lr', 'curve', 'wd', 'epochs', 'bs', 'seed', 'depth')


def by(number):
    "A function whose number lies in its closure"
    return lambda im: im.point(lambda v: min(255, int(v*number)))


TRANSFORMS = {
    'light': None,
    'apply .1': [v2.RandomApply([v2.ColorJitter(.5)], p=.1)],
    'apply .9': [v2.RandomApply([v2.ColorJitter(.5)], p=.9)],
    'choice .2': [v2.RandomChoice([v2.ColorJitter(.5), v2.RandomInvert(1.)], p=[.8, .2])],
    'choice .7': [v2.RandomChoice([v2.ColorJitter(.5), v2.RandomInvert(1.)], p=[.3, .7])],
    'closure .5': [v2.Lambda(by(.5))],
    'closure .9': [v2.Lambda(by(.9))]}

# field -> pairs (before, after)
CHANGES = {f.name: [(f.default, new)] for f, new in (
    (f, dict(pixel=1, quiet_pixel=1, label=1, file_name='q', order=-1, class_order=-1, split=1, moved=1, touched=1, size=10,
             view_seed=1, shift=.125, mix=1., net_weight=.1, net_scale=2., net_mean=.4, fit_seed=1, fit_epochs=2, fit_lr=.02,
             fit_wd=.3, fit_arch='rednet_mini', fit_callback=.5, T=3., weight=.5, label_weight=.2, loss='dist', schedule=0.,
             method='lib-kd', lr=.02, curve='flat', wd=.3, epochs=2, bs=9, seed=1, depth=2).get(f.name))
    for f in fields(World)) if new is not None}
CHANGES['transform'] = [('light', 'apply .1'), ('apply .1', 'apply .9'), ('choice .2', 'choice .7'), ('closure .5', 'closure .9')]


# -- a world on disk and in memory -----------------------------------------------------------------

def write_pictures(w, root):
    "The folder of 24 pictures; the same in every world but for what was changed"
    rng, labels = np.random.default_rng(0), np.arange(24) % 3
    for i, y in enumerate(labels):
        a = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
        a[:3, y*2:y*2+3, y] = 255
        if i == 0: a[4, 4, 0] = 200 if w.pixel or w.quiet_pixel else 100
        c = CLASSES[(y + w.label) % 3 if i == 0 else y]
        path = root/c/f'{w.file_name}{i:02}.bmp'                   # uncompressed: one pixel leaves the size alone
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(a).save(path)
        os.utime(path, (2e9 if w.touched else 1e9,)*2)


def samples(w, folder):
    "The samples of a world, whose pictures lie in `folder`; made again in place, as people change a folder"
    root = folder/('elsewhere' if w.moved else 'pictures')
    shutil.rmtree(folder/'pictures', ignore_errors=True)
    write_pictures(w, root)
    s = Samples.from_folder(root, classes=CLASSES[::w.class_order])
    return s[np.arange(len(s))[::w.order]].split(valid=.25, seed=w.split)


def loaders(w, folder, **kwargs):
    "Loaders of a world"
    tfms = TRANSFORMS[w.transform] or LightViews(shift=w.shift)
    mix = Mix(prob=w.mix) if w.mix else None
    return image_dls(samples(w, folder), size=w.size, tfms=tfms, mix=mix, seed=w.view_seed, bs=w.bs, device='cpu', **kwargs)


class Bright(nn.Module):
    "Knows where each class is bright; `scale` is a number and no tensor"
    def __init__(self, w):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.scale = nn.Conv2d(3, 3, 8), w.net_scale
        with torch.no_grad():
            for y in range(3): self.conv.weight[y, y, :3, y*2:y*2+3] += .5
            self.conv.weight[0, 0, 0, 0] += w.net_weight
    def forward(self, x): return self.conv(x).mean((2, 3))*self.scale


def teacher(w): return Teacher(Bright(w), CLASSES[::w.class_order], name='bright', bias='conv', mean=(w.net_mean, .456, .406))


class Slower(Callback):
    "A callback of the user's: its number matters"
    def __init__(self, by=0.): self.by = by
    def before_step(self):
        for p in self.learn.model.parameters():
            if p.grad is not None: p.grad.mul_(1 - self.by)


def digest(tensors):
    "SHA-256 of named tensors"
    h = hashlib.sha256()
    for k in sorted(tensors): h.update(k.encode() + np.ascontiguousarray(tensors[k].detach().cpu().numpy()).tobytes())
    return h.hexdigest()


# -- the places: (world, folder) -> (digest of the result, whether it was found) ------------------------

def teacher_on_disk(w, folder):
    "`fit_teacher` finds a trained teacher"
    dls, kept = loaders(w, folder), folder/'teachers'
    before = set(kept.glob('*')) if kept.exists() else set()
    t = fit_teacher(w.fit_arch, dls, epochs=w.fit_epochs, lr=w.fit_lr, wd=w.fit_wd, seed=w.fit_seed, folder=kept, check=False,
                    cbs=[Slower(w.fit_callback)], verbose=False)
    return digest(t.model.state_dict()), before == set(kept.glob('*'))


def _answers(cache, samples):
    "Digest of what a cache says about the training samples, by their labels' names and in their order"
    train = samples.train
    rows = torch.as_tensor(cache.rows(train.ids))
    z = {f'{n}{v}': a for v in range(cache.policy.n) for n, a in cache.gather(rows, v).items()}
    return digest({**z, 'ids': torch.from_numpy(train.ids.copy()), 'labels': torch.from_numpy(train.labels)})


def cache_build(w, folder):
    "`LogitCache.build` opens a finished cache"
    dls, path = loaders(w, folder), folder/'cache'
    stamp = (path/'manifest.json').stat().st_mtime_ns if path.exists() else None
    cache = LogitCache.build(path, dls, [teacher(w)], views=2, check=False)
    return _answers(cache, dls.samples), stamp == (path/'manifest.json').stat().st_mtime_ns


def cache_bind(w, folder):
    "An open cache is bound to loaders"
    dls, path = loaders(w, folder), folder/'cache'
    if (found := path.exists()): cache = LogitCache.open(path)
    else: cache = LogitCache.build(path, dls, [teacher(w)], views=2, check=False)
    return _answers(cache, cache.bind(dls).samples), found


def cache_extended(w, folder):
    "A cache of one view gets the second one; the one view was made before the change"
    dls, path = loaders(w, folder), folder/'cache'
    found = path.exists()
    if not found: LogitCache.build(path, dls, [teacher(w)], views=1, check=False)
    two = folder/'two'
    shutil.rmtree(two, ignore_errors=True)
    shutil.copytree(path, two)
    cache = LogitCache.open(two).extend(dls, views=2, teachers=[teacher(w)])
    return _answers(cache, dls.samples), found


class Steps(Callback):
    "Counts optimiser steps"
    n = 0
    def after_step(self): self.n += 1


def resume(w, folder):
    "A fit with `resume=` goes on, or is all there"
    dls, steps = loaders(w, folder), Steps()
    schedule = partial(torch.lerp, torch.tensor(1.), torch.tensor(w.schedule))
    taught = dict(T=w.T, weights=w.weight, label_weight=w.label_weight, loss=w.loss) if w.method == 'kd' else {}
    taught |= dict(method=w.method, schedule=lambda p: float(schedule(torch.tensor(float(p)))))
    learn = distill_learner(dls, 'vit_nano', teachers=teacher(w), seed=w.seed, check=False, verbose=False, cbs=steps, wd=w.wd,
                            student_kw=dict(depth=w.depth, embed_dim=32, num_heads=2), resume=folder/'resume', **taught)
    with learn.no_bar(), learn.no_logging():
        if w.curve == 'flat': learn.fit(w.epochs, w.lr)
        else: learn.fit_flat_cos(w.epochs, w.lr, pct_start=0.)
    return digest(learn.model.state_dict()), not steps.n


def pixel_file(w, folder):
    "Decoded pictures in a file that all processes of a run share"
    kept = folder/'pixels'
    before = set(kept.glob('*.u8')) if kept.exists() else set()
    dls = loaders(w, folder, keep=kept)
    x = dls.train.pixels(range(len(dls.train_ds)), [0]*len(dls.train_ds))
    return digest(dict(x=x)), before == set(kept.glob('*.u8'))


PLACES = {
    'teacher on disk': (teacher_on_disk, DATA + VIEWS + FIT + ('bs',)),
    'cache, built again': (cache_build, DATA + VIEWS + NET + ('bs',)),
    'cache, bound': (cache_bind, DATA + VIEWS + ('bs',)),
    'cache, extended': (cache_extended, DATA + VIEWS + NET),
    'resume': (resume, DATA + VIEWS + NET + STUDENT),
    'file of pixels': (pixel_file, DATA + VIEWS)}


# -- a cell ----------------------------------------------------------------------------------------

@contextlib.contextmanager
def quietly():
    "No prints and no warnings"
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def cell(probe, before, after):
    "(verdict, what was said) of a place after a change: 'found', 'anew', 'refused', or 'WRONG: …'"
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b, quietly():
        old, new = probe(before, Path(a))[0], probe(after, Path(b))[0]
        try: got, found = probe(after, Path(a))
        except Exception as e:
            if not isinstance(e, (UserError, ValueError, FileNotFoundError)): return f'WRONG: {type(e).__name__}', str(e)
            return ('WRONG: needless refusal' if old == new else 'refused'), str(e)
    if got != new: return 'WRONG: silent', ''
    if old == new: return ('found' if found else 'WRONG: needlessly anew'), ''
    return 'anew', ''


def matrix(places=PLACES, changes=CHANGES, told=print):
    "[(place, field, before, after, verdict, said)] of all cells"
    rows = []
    for name, (probe, reach) in places.items():
        for field in (f for f in changes if f in reach):
            for old, new in changes[field]:
                verdict, said = cell(probe, replace(World(), **{field: old}), replace(World(), **{field: new}))
                rows.append((name, field, old, new, verdict, said))
                if verdict.startswith('WRONG'): told(name, field, old, new, verdict, said[:200], sep=' · ')
    return rows
