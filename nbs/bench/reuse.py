"""The matrix of reuse: every place where something is found again, against everything that may have changed meanwhile.

The truth of a cell is the thing made anew under the change, compared bit for bit with the one before. Finding it again
is right only where the two are equal, refusing it only where they differ; making an equal thing anew is needless.
`PLACES` and `CHANGES` are the rows and columns; a field of `World` without a change, or a place without a probe, fails
(`tests/test_reuse.py`). `nbs/bench/reuse.ipynb` shows the table. Pictures have 8 pixels, so all of it takes a minute or
two.
"""
import contextlib, hashlib, importlib, io, json, os, shutil, tempfile, warnings
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Callable
from unittest import mock

import nbformat, numpy as np, PIL, torch
from PIL import Image
from fastai.callback.core import Callback
from papermill.engines import Engine, papermill_engines
from torch import nn
from torchvision.transforms import v2
from libkd.all import *
from libkd.arms import Job, StoreJob, TeacherJob, do_jobs, prepare_cache, run_teacher
from libkd.price import How

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
    transform: str = 'light'   # see `KINDS`
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
    callback: float = 0.       # an argument of a callback of the user's
    # a notebook that is run for every value of a parameter
    code: int = 0              # another line in it
    # what is installed
    libkd: str = 'this one'    # its version; nothing is computed otherwise
    pillow: str = 'this one'   # its version; the same pixels
    decoder: int = 0           # its version; other pixels from the same files
    result: int = 0            # raised by hand: this libkd computes otherwise

PLACED = ('moved', 'touched')                                     # nothing that anybody sees
DATA  = ('pixel', 'quiet_pixel', 'label', 'file_name', 'order', 'class_order', 'split', 'size', *PLACED)
SHOWN = ('pixel', 'quiet_pixel', 'label', 'file_name', 'split')
VIEWS = ('view_seed', 'shift', 'mix', 'transform')
NET   = ('net_weight', 'net_scale', 'net_mean')
FIT   = ('fit_seed', 'fit_epochs', 'fit_lr', 'fit_wd', 'fit_arch', 'fit_callback')
STUDENT = ('T', 'weight', 'label_weight', 'loss', 'schedule', 'method',
           'lr', 'curve', 'wd', 'epochs', 'bs', 'seed', 'depth', 'callback')
HERE  = ('libkd', 'pillow', 'decoder', 'result')


# -- transforms that keep their number in every way there is -----------------------------------------------

def darker(im, by): return im.point(lambda v: min(255, int(v*float(by))))
def closed_over(number): return lambda im: darker(im, number)
def by_default(number):
    def f(im, by=number): return darker(im, by)
    return f

class Attribute:
    "A callable object whose number is an attribute: plain, in a dict, in an array, in a tensor"
    def __init__(self, number): self.number = number
    def __call__(self, im):
        n = self.number['by'] if isinstance(self.number, dict) else self.number
        return darker(im, np.asarray(n).reshape(-1)[0])

class Slot:
    "A callable object without `__dict__`"
    __slots__ = 'number',
    def __init__(self, number): self.number = number
    def __call__(self, im): return darker(im, self.number)

def global_number(number):
    "A function that reads a global, in a module of its own"
    there = dict(darker=darker, BY=number, __name__='__main__')
    exec('def f(im): return darker(im, BY)', there)
    return there['f']

KINDS = {'RandomApply': lambda n: v2.RandomApply([v2.ColorJitter(.5)], p=n),
         'RandomChoice': lambda n: v2.RandomChoice([v2.ColorJitter(.5), v2.RandomInvert(1.)], p=[n, 1 - n]),
         'closure': lambda n: v2.Lambda(closed_over(n)), 'default': by_default, 'global': global_number, 'slot': Slot,
         'twice partial': lambda n: partial(partial(darker), by=n), 'numpy number': lambda n: Attribute(np.float32(n)),
         'dict': lambda n: Attribute(dict(by=n)), 'array': lambda n: Attribute(np.full(3, n))}

def transforms(name):
    "'light' is `LightViews`; else a kind and its number, as in 'closure .5'"
    kind, number = name.rsplit(' ', 1)
    return [KINDS[kind](float(number))]

# field -> pairs (before, after)
CHANGES = {f.name: [(f.default, new)] for f, new in (
    (f, dict(pixel=1, quiet_pixel=1, label=1, file_name='q', order=-1, class_order=-1, split=1, moved=1, touched=1,
             size=10, view_seed=1, shift=.125, mix=1., net_weight=.1, net_scale=2., net_mean=.4,
             fit_seed=1, fit_epochs=2, fit_lr=.02, fit_wd=.3, fit_arch='rednet_mini', fit_callback=.5,
             T=3., weight=.5, label_weight=.2, loss='dist', schedule=0., method='lib-kd',
             lr=.02, curve='flat', wd=.3, epochs=2, bs=9, seed=1, depth=2, callback=.5, code=1,
             libkd='99.0', pillow='99.0', decoder=1, result=1).get(f.name))
    for f in fields(World)) if new is not None}
CHANGES['transform'] = [('light', 'RandomApply .1'), *((f'{k} .3', f'{k} .8') for k in KINDS)]


# -- a world on disk and in memory -----------------------------------------------------------------

@lru_cache
def picture(i, y, pixel):
    """Bytes of picture `i` of class `y`: a bright place that tells the class, on noise; uncompressed, so that one pixel
    leaves the size alone"""
    a = np.random.default_rng(i).integers(0, 120, (8, 8, 3), dtype=np.uint8)
    a[:3, y*2:y*2+3, y] = 255
    if i == 0: a[4, 4, 0] = 200 if pixel else 100
    Image.fromarray(a).save(out := io.BytesIO(), 'bmp')
    return out.getvalue()


def write_pictures(w, root):
    "The folder of 24 pictures, the same in every world but for what was changed"
    held_out = np.random.default_rng(w.split).permutation(8)[:2]
    for i in range(24):
        y, part = i % 3, 'valid' if i//3 in held_out else 'train'
        path = root/part/CLASSES[(y + w.label) % 3 if i == 0 else y]/f'{w.file_name}{i:02}.bmp'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i, y, w.pixel or w.quiet_pixel))
        os.utime(path, (2e9 if w.touched or w.pixel and i == 0 else 1e9,)*2)


def placed(w, folder):
    "The folder of a world's pictures; written again in place, as people change a folder"
    root = folder/('elsewhere' if w.moved else 'pictures')
    shutil.rmtree(folder/'pictures', ignore_errors=True)
    write_pictures(w, root)
    return root


def samples(w, folder):
    "The samples of a world"
    s = Samples.from_folder(placed(w, folder), classes=CLASSES[::w.class_order])
    return s[np.arange(len(s))[::w.order]]


def loaders(w, folder, **kwargs):
    "Loaders of a world"
    tfms = LightViews(shift=w.shift) if w.transform == 'light' else transforms(w.transform)
    mix = Mix(prob=w.mix) if w.mix else None
    return image_dls(samples(w, folder), size=w.size, tfms=tfms, mix=mix, seed=w.view_seed, bs=w.bs, device='cpu',
                     check=False, **kwargs)


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


def teacher(w):
    mean = w.net_mean, .456, .406
    return Teacher(Bright(w), CLASSES[::w.class_order], name='bright', bias='conv', mean=mean)


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


# -- the places: (world, folder) -> (digest of the result, whether it was found; None: nobody can tell) -----------

def stamps(folder, pattern='*'):
    "When the files of a folder were written"
    return {p.name: p.stat().st_mtime_ns for p in folder.glob(pattern)} if folder.exists() else {}


def teacher_on_disk(w, folder):
    "`fit_teacher` finds a trained teacher"
    dls, kept = loaders(w, folder), folder/'teachers'
    before = stamps(kept)
    t = fit_teacher(w.fit_arch, dls, epochs=w.fit_epochs, lr=w.fit_lr, wd=w.fit_wd, seed=w.fit_seed, folder=kept,
                    cbs=[Slower(w.fit_callback)], check=False, verbose=False)
    return digest(t.model.state_dict()), before == stamps(kept)


def _answers(cache, samples):
    "Digest of what a cache says about the training samples, by their labels' names and in their order"
    train = samples.train
    rows = torch.as_tensor(cache.rows(train.ids))
    z = {f'{n}{v}': a for v in range(cache.policy.n) for n, a in cache.gather(rows, v).items()}
    return digest({**z, 'ids': torch.from_numpy(train.ids.copy()), 'labels': torch.from_numpy(train.labels)})


def cache_build(w, folder):
    "`LogitCache.build` opens a finished cache"
    dls, path = loaders(w, folder), folder/'cache'
    before = stamps(path, 'manifest.json')
    cache = LogitCache.build(path, dls, [teacher(w)], views=2, check=False)
    return _answers(cache, dls.samples), before == stamps(path, 'manifest.json')


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


def cache_added(w, folder):
    "A cache gets the answers of a second teacher; those of the first one were there before the change"
    dls, path = loaders(w, folder), folder/'cache'
    other = Teacher(Bright(World(net_weight=.3)), CLASSES[::w.class_order], name='other', bias='inv')
    found = path.exists()
    if not found: LogitCache.build(path, dls, [teacher(w)], views=1, check=False)
    both = folder/'both'
    shutil.rmtree(both, ignore_errors=True)
    shutil.copytree(path, both)
    cache = LogitCache.open(both).add(dls, [teacher(w), other], check=False)
    return _answers(cache, dls.samples), found


def cache_unpacked(w, folder):
    "A cache that somebody packed is unpacked beside the receiver's own pictures"
    dls, zipped = loaders(w, folder), folder/'cache.zip'
    if not (found := zipped.exists()):
        LogitCache.build(folder/'cache', dls, [teacher(w)], views=2, check=False).pack(zipped, 'CC0-1.0')
    shutil.rmtree(folder/'there', ignore_errors=True)
    return _answers(LogitCache.unpack(zipped, folder/'there', dls), dls.samples), found


class Steps(Callback):
    "Counts optimiser steps"
    only_looks, n = True, 0
    def after_step(self): self.n += 1


def resume(w, folder):
    "A fit with `resume=` goes on, or is all there"
    dls, steps = loaders(w, folder), Steps()
    schedule = partial(torch.lerp, torch.tensor(1.), torch.tensor(w.schedule))
    taught = dict(T=w.T, weights=w.weight, label_weight=w.label_weight, loss=w.loss) if w.method == 'kd' else {}
    taught |= dict(method=w.method, schedule=lambda p: float(schedule(torch.tensor(float(p)))))
    small = dict(depth=w.depth, embed_dim=32, num_heads=2)
    learn = distill_learner(dls, 'vit_nano', teachers=teacher(w), student_kw=small, seed=w.seed, wd=w.wd,
                            cbs=[steps, Slower(w.callback)], resume=folder/'resume', check=False, verbose=False,
                            **taught)
    with learn.no_bar(), learn.no_logging():
        if w.curve == 'flat': learn.fit(w.epochs, w.lr)
        else: learn.fit_flat_cos(w.epochs, w.lr, pct_start=0.)
    return digest(learn.model.state_dict()), not steps.n


def run_job(w, folder):
    "The jobs of a run: its teacher, its store and the student that is taught from it"
    out, setting = folder/'run', dict(samples={}, dls=dict(size=w.size, bs=w.bs, mix=w.mix, seed=w.view_seed))
    places, how = dict(data=str(placed(w, folder)), out=str(out), pictures=str(out/'pixels')), How(1, 1)
    about, before = dict(setting=setting, images=run_samples(places['data']).identity()), stamps(out/'jobs', '*.json')
    asked = TeacherJob(w.fit_arch, **about, steps=2*w.fit_epochs, fresh=2, seed=w.fit_seed, check=False)
    do_jobs(places, [asked], how)
    net = run_teacher(places, asked)
    store = StoreJob(**about, views=2, teachers=(net.fingerprint,), check=False)
    places, _ = prepare_cache(places, [net], store, how)
    advice = dict(T=w.T, weights=w.weight, label_weight=w.label_weight, loss=w.loss) if w.method == 'kd' else {}
    small = dict(depth=w.depth, embed_dim=32, num_heads=2)
    job = Job('taught', w.seed, 'vit_nano', small, **about, steps=3*w.epochs, lr=w.lr, wd=w.wd,
              fresh=2, distill=dict(method=w.method, **advice), cache=store.key)
    row = do_jobs(places, [job], how).iloc[0]
    if 'error' in row: raise UserError(row['error'])
    said = np.load(out/'answers'/f"{row['files']}.npz")
    return digest({k: torch.from_numpy(v) for k, v in said.items()}), before == stamps(out/'jobs', '*.json')


NOTEBOOK = '''from libkd.all import Samples, open_image
from libkd.runs import Run
import hashlib, json
samples = Samples.from_folder(data)
seen = [(open_image(s.source).tobytes().hex(), s.label, s.id.hex(), str(p)) for s, p in zip(samples, samples.parts)]
run = Run(folder, 'what is seen', dict(seed=seed))
with run.phase('all'): number = int(hashlib.sha256(json.dumps([seen, seed]).encode()).hexdigest()[:12], 16)
run.done(metrics=dict(number=number));'''

class InThisProcess(Engine):
    "Cells of a notebook, run here: a kernel for each cell of this matrix would take most of its time"
    @classmethod
    def execute_managed_notebook(cls, manager, kernel_name, **kwargs):
        names = {}
        for cell in manager.nb.cells:
            if cell.cell_type == 'code': exec(cell.source, names)


def sweep_cell(w, folder):
    "A notebook is run for a value of a parameter"
    source = NOTEBOOK.replace('number)', f'number + {w.code})')
    given = "data = ''    # where\nfolder = ''  # where to\nseed = 0     # a number"
    cells = [nbformat.v4.new_code_cell(given, metadata=dict(tags=['parameters'])), nbformat.v4.new_code_cell(source)]
    kernel = dict(kernelspec=dict(name='python3', language='python', display_name='Python'))
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder/'seen.ipynb')
    before, kept = stamps(folder/'sweep'/'jobs', '*.json'), papermill_engines._engines.get(None)
    papermill_engines.register(None, InThisProcess)
    try: rows = sweep(folder/'seen.ipynb', dict(seed=[w.seed]), folder=folder/'sweep', progress=lambda *a: None,
                      data=str(placed(w, folder)))
    finally: papermill_engines.register(None, kept)
    return str(rows.iloc[0]['number']), before == stamps(folder/'sweep'/'jobs', '*.json')


def pixel_file(w, folder):
    "Decoded pictures in a file that all processes of a run share"
    kept = folder/'pixels'
    before = stamps(kept, '*.u8')
    dls = loaders(w, folder, keep=kept)
    return digest(dict(x=dls.train.pictures.take(range(len(dls.train_ds))))), before == stamps(kept, '*.u8')


def view_memory(w, folder):
    "What a process remembers of views when it makes loaders a second time"
    dls = loaders(w, folder)
    n = len(dls.train_ds)
    views = [dls.train.pixels(range(n), [v]*n) for v in range(2)]
    ids, y = torch.from_numpy(dls.train.ids().copy()), torch.from_numpy(dls.train.labels())
    return digest(dict(x=torch.stack(views), ids=ids, y=y)), None


LIVING = {}                                                        # folder -> loaders

def pixel_memory(w, folder):
    "Loaders that live on while the files change under them"
    if folder in LIVING: placed(w, folder)
    else: LIVING[folder] = loaders(w, folder)
    return digest(dict(x=torch.cat([b[0] for b in LIVING[folder].valid]))), None


@dataclass
class Place:
    "Where something is found again"
    probe: Callable     # (world, folder) -> (digest, whether it was found)
    reach: tuple        # fields of `World` on which what is found may depend, or that must not matter
    number: str         # where its result number stands: module:name
    living: bool=False  # what is found lies in the process, so that a copy of the folder is not the same

PLACES = {
    'teacher on disk': Place(teacher_on_disk, DATA + VIEWS + FIT + ('bs',) + HERE, 'teachers:TEACHER_RESULT'),
    'cache, built again': Place(cache_build, DATA + VIEWS + NET + ('bs',) + HERE, 'cache:RESULT'),
    'cache, bound': Place(cache_bind, DATA + VIEWS + ('bs',) + HERE, 'cache:RESULT'),
    'cache, extended': Place(cache_extended, DATA + VIEWS + NET + HERE, 'cache:RESULT'),
    'cache, added to': Place(cache_added, DATA + VIEWS + NET + HERE, 'cache:RESULT'),
    'cache, unpacked': Place(cache_unpacked, DATA + VIEWS + ('bs',) + HERE, 'cache:RESULT'),
    'resume': Place(resume, DATA + VIEWS + NET + STUDENT + HERE, 'handover:RESULT'),
    'run job': Place(run_job, (*SHOWN, 'size', *PLACED, 'view_seed', 'mix', 'fit_seed', 'fit_epochs', 'fit_arch',
                               'T', 'weight', 'label_weight', 'loss', 'method', 'lr', 'wd', 'epochs', 'bs', 'seed',
                               'depth', *HERE), 'arms:RESULT'),
    'sweep cell': Place(sweep_cell, (*SHOWN, *PLACED, 'seed', 'code', *HERE), 'runs:RESULT'),
    'file of pixels': Place(pixel_file, DATA + ('shift', 'view_seed') + HERE, 'views:PIXELS'),
    'memory of views': Place(view_memory, DATA + VIEWS + HERE, 'views:ALGORITHM'),
    'memory of pixels': Place(pixel_memory, ('pixel', 'quiet_pixel', 'file_name', *PLACED), 'views:PIXELS',
                              living=True)}


# -- a cell ----------------------------------------------------------------------------------------

@contextlib.contextmanager
def quietly():
    "No prints and no warnings"
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@contextlib.contextmanager
def installed(w, number):
    "What is installed in a world: versions, result numbers, decoders"
    with contextlib.ExitStack() as changed:
        def put(module, name, value): changed.enter_context(mock.patch.object(module, name, value))
        if w.libkd != World.libkd:
            for room in ('cache', 'handover', 'runs', 'teachers'):
                put(importlib.import_module(f'libkd.{room}'), '__version__', w.libkd)
        if w.pillow != World.pillow or w.decoder: put(PIL, '__version__', '99.0')
        opened = Image.open
        if w.decoder: put(Image, 'open', lambda source: opened(source).point(lambda v: v^8))
        room, name = number.split(':')
        room = importlib.import_module(f'libkd.{room}')
        if w.result: put(room, name, getattr(room, name) + 1)
        yield


def asked(place, w, folder, made=0):
    """(result, found) of a place in a world; another result number means another result, by what it says, and what is
    found is of the number under which it was made"""
    with installed(w, place.number): result, found = place.probe(w, folder)
    return f'{result} {made if found else w.result}', found


class Bench:
    "A folder in which a place finds what was made before the change; made once for all cells that begin alike"
    def __init__(self, place): self.place, self.begun = place, {}
    def __enter__(self):
        self.home = tempfile.TemporaryDirectory()
        self.at, self.kept = Path(self.home.name)/'at', Path(self.home.name)/'kept'
        return self
    def __exit__(self, *_): self.home.cleanup()

    def before(self, w):
        "The result before the change; `at` is then as it was left"
        shutil.rmtree(self.at, ignore_errors=True)
        LIVING.pop(self.at, None)
        if w in self.begun and not self.place.living: shutil.copytree(self.kept/str(self.begun[w][0]), self.at)
        else:
            self.at.mkdir()
            self.begun[w] = len(self.begun), asked(self.place, w, self.at)[0]
            shutil.copytree(self.at, self.kept/str(self.begun[w][0]), dirs_exist_ok=True)
        return self.begun[w][1]


def cell(bench, before, after):
    "(verdict, what was said) of a place after a change: 'found', 'anew', 'refused', or 'WRONG: …'"
    with tempfile.TemporaryDirectory() as fresh, quietly():
        new, old = asked(bench.place, after, Path(fresh))[0], bench.before(before)
        LIVING.pop(Path(fresh), None)
        try: got, found = asked(bench.place, after, bench.at, before.result)
        except Exception as e:
            expected = isinstance(e, (UserError, ValueError, FileNotFoundError))
            if not expected: return f'WRONG: {type(e).__name__}', str(e)
            return ('WRONG: needless refusal' if old == new else 'refused'), str(e)
    if got != new: return 'WRONG: silent', ''
    if old == new: return ('WRONG: needlessly anew' if found is False else 'found'), ''
    return ('found' if found else 'anew'), ''


def matrix(places=PLACES, changes=CHANGES, told=print):
    "[(place, field, before, after, verdict, said)] of all cells"
    rows = []
    for name, place in places.items():
        with Bench(place) as bench:
            for field in (f for f in changes if f in place.reach):
                for old, new in changes[field]:
                    verdict, said = cell(bench, replace(World(), **{field: old}), replace(World(), **{field: new}))
                    rows.append((name, field, old, new, verdict, said))
                    if verdict.startswith('WRONG'): told(name, field, old, new, verdict, said[:200], sep=' · ')
    return rows
