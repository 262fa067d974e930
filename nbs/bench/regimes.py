"""The regimes: sixteen sets of pictures, labels and teachers, and in each the question whether a taught one is better.

`python nbs/bench/regimes.py --cifar cifar10-train.tgz` does the jobs that are not done yet; a job that is done is
a small JSON file in `nbs/bench/regimes/<study>/`, so that another machine goes on where this one stopped, and
`nbs/bench/regimes.ipynb` draws what there is without training anything. Pictures, teachers and stored answers lie in
libkd's data folder and are made again where they are missing.

`--pilot` asks on validation images, one change at a time, what the defaults should be; the studies themselves ask on
test images, and only what was fixed before.
"""
import argparse, shutil, tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np, torch
from fastai.torch_core import default_device
from joblib import Parallel, delayed
from libkd.arms import (Job, StoreJob, TeacherJob, arm_dls, finished, prepare_cache, run_samples, run_teacher,
                        split_arms, train_arm)
from libkd.diagnose import accuracy, predictions
from libkd.evidence import Protocol, answers_of_study, do_study
from libkd.files import data_home, write_once
from libkd.price import How
from libkd.runs import run_jobs
from libkd.sets import cluttered_digits

ROWS, HOME = Path(__file__).parent/'regimes', 'regimes'
READY, INV, CONV = 'efficientnet_lite0', 'rednet_mini', 'resnet_mini'


# -- the pictures -----------------------------------------------------------------------------------

def cifar(archive, train=1000, valid=200, test=500):
    "A part of CIFAR-10's training images as an image folder: so many of each class, drawn with a fixed seed"
    def write(tmp):
        with tarfile.open(archive) as tar: tar.extractall(tmp/'all', filter='data')
        for k, c in enumerate(sorted((tmp/'all'/'cifar10-train').iterdir())):
            files = sorted(c.iterdir())
            order = np.random.default_rng([0, k]).permutation(len(files))
            cuts = np.split(order[:train + valid + test], [train, train + valid])
            for part, some in zip(('train', 'valid', 'test'), cuts):
                (tmp/part/c.name).mkdir(parents=True)
                for i in some: files[i].rename(tmp/part/c.name/files[i].name)
        shutil.rmtree(tmp/'all')
    return write_once(data_home()/HOME/f'cifar-{train}-{valid}-{test}', write)


def strays(archive, **kw):
    "The six animals of `cifar`; 4,000 more pictures without a label show machines, which are of no class"
    source = cifar(archive, **kw)
    machines = 'airplane', 'automobile', 'ship', 'truck'
    def write(tmp):
        for c in sorted(source.glob('*/*')):
            to = tmp/c.relative_to(source) if c.name not in machines else tmp/'unlabelled'/c.name
            if c.name not in machines or c.parent.name == 'train': shutil.copytree(c, to)
    return write_once(source.with_name(source.name.replace('cifar', 'strays')), write)


def pictures_of(name, archive):
    "What `run_samples` takes as `data`"
    if name == 'digits': return str(cluttered_digits(train=3000, unlabelled=0))     # 300 a class; labels are hidden
    if name == 'clothes': return name
    if archive is None:
        raise SystemExit(f'{name} is cut from CIFAR-10: --cifar PATH of the archive with its training images')
    return str(dict(cifar=cifar, strays=strays)[name](archive))


# -- the cells --------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Cell:
    "Pictures, how many labels a class are known (0: all), and who teaches"
    pictures: str
    labels: int
    teachers: tuple
    @property
    def name(self):
        return f"{self.pictures}-{self.labels or 'all'}-{'pretrained' if READY in self.teachers else 'mini'}"
    @property
    def photos(self): return self.pictures != 'digits'

MINI = CONV, INV
CELLS = {c.name: c for c in (
    *(Cell('digits', n, MINI) for n in (10, 30, 100, 0)),
    *(Cell('cifar', n, (READY,)) for n in (10, 30, 100, 0)), Cell('cifar', 100, MINI),
    *(Cell('clothes', n, (READY,)) for n in (10, 30, 100, 0)), Cell('clothes', 30, MINI),
    *(Cell('strays', n, (READY,)) for n in (30, 100)))}
assert len(CELLS) == 16

# as `libkd run` takes them for such pictures and teachers
STUDENT = dict(student='civt_nano', args=dict(depth=2, embed_dim=64), size=32, bs=32, lr=.004, wd=.05, fresh=50)
SMALL = dict(STUDENT, args=dict(depth=2, embed_dim=64, patch_size=4), size=16, lr=.002)
TEACHING = dict(mini=dict(views=4, T=2., label_weight=.25), pretrained=dict(T=2., label_weight=.1))
VIEWS = dict(cifar=5, strays=4, clothes=8)      # about 50,000 answers of a published teacher, as `run_defaults` asks
SPLIT = split_arms(READY, CONV, INV, weights=1., **TEACHING['pretrained'])      # those of `libkd run -p arms=split`


def teaching_of(cell):
    "How a student of this cell is taught"
    ready = READY in cell.teachers
    views = dict(views=VIEWS[cell.pictures]) if ready else {}
    return dict(TEACHING['pretrained' if ready else 'mini'], **views, teachers=list(cell.teachers))


# -- one job ----------------------------------------------------------------------------------------

def places_of(cell, archive):
    "Where the pictures, teachers and stored answers of a cell are; nothing of it is in the repository"
    out = data_home()/HOME/'work'/cell.name
    pictures = out.with_name(f'{out.name}-pictures')
    return dict(data=pictures_of(cell.pictures, archive), out=str(out), pictures=str(pictures))


def setting_of(cell, size, bs, mix):
    "Arguments of `run_samples` and `arm_dls`"
    return dict(samples=dict(labels=cell.labels, valid=.2, seed=0, size=0),
                dls=dict(size=size, bs=bs, mix=mix, flip=cell.photos, seed=0))


def answers_of(cell, names, views, steps, setting, archive):
    "(`places` with a store of what these teachers say, its key, the teachers), made where it is not there yet"
    places = places_of(cell, archive)
    images = run_samples(places['data'], **setting['samples']).identity()
    teachers = [run_teacher(places, TeacherJob(n, setting, images, steps, STUDENT['fresh'])) for n in names]
    store = StoreJob(setting, images, views, tuple(t.fingerprint for t in teachers))
    places, _ = prepare_cache(places, teachers, store, How(1))
    return places, store.key, teachers


def judged(places, teachers, setting, part):
    "{teacher: accuracy on a part}, each asked once"
    def judge(fingerprint, part):
        one = next(t for t in teachers if t.fingerprint == fingerprint)
        samples = run_samples(places['data'], **setting['samples'])
        dls = arm_dls(samples, curve=0, keep=places['pictures'], **setting['dls'])
        said, y = predictions({'it': one}, dls, part)
        return dict(accuracy=accuracy(said['it'], y))
    jobs = [dict(fingerprint=t.fingerprint, part=part) for t in teachers]
    rows = finished(run_jobs(judge, jobs, Path(places['out'])/'judged', progress=lambda *a: None))
    return {t.name: round(float(a), 5) for t, a in zip(teachers, rows['accuracy'])}


def train(archive, part, cell, arm, seed, student, args, size, bs, lr, wd, fresh, steps, mix=0., teaching=None):
    "One student of a study; of `part` 'valid', nothing that was seen on the test part is kept"
    torch.set_num_threads(1)
    cell = CELLS[cell]
    places, setting, key, distill, known = places_of(cell, archive), setting_of(cell, size, bs, mix), '', None, {}
    if teaching:
        places, key, teachers, distill = taught_by(archive, cell, setting, steps, teaching)
        known = dict(teacher_accuracy=judged(places, teachers, setting, part))
    images = run_samples(places['data'], **setting['samples']).identity()
    row = train_arm(places, Job(arm, seed, student, args, setting, images, steps, lr, wd, fresh, distill, key))
    kept = ('valid_accuracy', 'seconds', *(('accuracy', 'macro_accuracy', 'ece', 'nll') if part == 'test' else ()))
    return {**{k: round(float(row[k]), 5) for k in kept}, 'device': default_device().type, **known}


def taught_by(archive, cell, setting, steps, teaching):
    "(`places` with the store, its key, the teachers, how the student is taught); teachers learn for so many steps"
    how = dict(weights=1.) | teaching
    places, key, teachers = answers_of(cell, how.pop('teachers'), how.pop('views'), steps, setting, archive)
    return places, key, teachers, SPLIT[how['split']] if 'split' in how else how


# -- the studies ------------------------------------------------------------------------------------

def student_of(cell):
    "Student, steps and learning rate, as `libkd run` takes them for such pictures and teachers"
    if not cell.photos: return dict(SMALL, steps=700)
    return dict(STUDENT, steps=6250 if READY in cell.teachers else 2000)


def protocol(cell, seeds=None):
    "The study of a cell, on the test part: the taught student against the untaught one"
    # three seeds; a fourth on the clothes, which have 372 test images, in the three cells that were planned first
    many = cell.pictures == 'clothes' and cell.labels not in (10, 100)
    seeds = seeds or ((0, 1, 2, 3) if many else (0, 1, 2))
    base = dict(cell=cell.name, **student_of(cell))
    arms = dict(untaught=base, taught=dict(base, teaching=teaching_of(cell)))
    asks = f'{cell.name}: is the taught student more accurate than the untaught one, in equally many steps?'
    return Protocol(cell.name, asks, arms, (('taught', 'untaught', 'teaching'),), seeds, effect=1.,
                    budget=f'{len(seeds)} seeds of {base["steps"]} steps of {base["bs"]} pictures, each on one thread')


def split(cell, seeds=(0, 1, 2)):
    "The study of where a gain comes from, on the test part: each arm differs in one thing from the one before it"
    base = dict(cell=cell.name, **student_of(cell))
    told = dict(teachers=[READY, CONV, INV], views=VIEWS[cell.pictures])
    arms = dict(untaught=base) | {a: dict(base, teaching=dict(told, split=a)) for a in SPLIT}
    first, *steps = zip(arms, [*arms][1:])
    one_by_one = ((*first[::-1], 'teaching'), *((b, a, 'teaching.split') for a, b in steps))
    asks = f'{cell.name}: is a student of published weights and an involution more accurate than the untaught one?'
    pairs = ('taught', 'untaught', 'teaching'), *one_by_one
    return Protocol(f'split-{cell.name}', asks, arms, pairs, seeds, effect=1.,
                    budget=f'{len(seeds)} seeds of {base["steps"]} steps of {base["bs"]} pictures, each on one thread')


def pilot(cell, seeds=(0,)):
    "What the defaults should be: one change at a time, on validation images, the cheapest and most promising first"
    if cell.teachers == MINI: return length_pilot(cell, seeds)
    told = teaching_of(cell)
    base = dict(cell=cell.name, **student_of(cell))
    both = {'short ': dict(steps=2000), '': {}, 'deep ': dict(args=dict(depth=6, embed_dim=64)), 'mixed ': dict(mix=.5)}
    said = {'views 2': dict(views=2), 'labels .25': dict(label_weight=.25), 'T 1': dict(T=1.), 'T 4': dict(T=4.),
            'two teachers': dict(teachers=[READY, INV])}
    arms = {}
    for name, change in both.items():
        arms |= {f'{name}taught': base | dict(teaching=told) | change, f'{name}untaught': base | change}
    for name, change in said.items():
        if change.get('views') != told['views']: arms[name] = dict(base, teaching=told | change)
    one = dict(short='steps', deep='args.depth', mixed='mix')
    pairs = [('taught', 'untaught', 'teaching'), *((f'{n} taught', f'{n} untaught', 'teaching') for n in one)]
    pairs += [(f'{n} taught', 'taught', setting) for n, setting in one.items()]
    pairs += [(n, 'taught', f'teaching.{key}') for n, change in said.items() if n in arms for key in change]
    question = f'{cell.name}: which setting teaches best?'
    budget = f'{len(seeds)} seed, as many jobs as an evening allows'
    return Protocol(f'pilot-{cell.name}', question, arms, tuple(pairs), seeds, effect=1., metric='valid_accuracy',
                    part='valid', budget=budget)


def length_pilot(cell, seeds):
    "How long, and how fast, students of small teachers should learn; these train as long as their students"
    base = dict(cell=cell.name, **STUDENT)
    told, arms, pairs = dict(teaching=teaching_of(cell)), {}, []
    for steps, lr in ((700, .002), (700, .004), (2000, .002), (2000, .004)):
        name, one = f'{steps} at {lr}', base | dict(steps=steps, lr=lr)
        arms |= {f'taught, {name}': one | told, f'untaught, {name}': one}
        pairs.append((f'taught, {name}', f'untaught, {name}', 'teaching'))
    question = f'{cell.name}: how long and how fast should students of small teachers learn?'
    return Protocol(f'pilot-{cell.name}', question, arms, tuple(pairs), seeds, effect=1., metric='valid_accuracy',
                    part='valid', budget=f'{len(seeds)} seed of {len(arms)} arms')


def prepare(p, archive, jobs):
    """Teachers and stores of a study, before processes share them: the first brings the teacher that the others ask.
    One that has to be trained is left to the job that asks for it"""
    def store(v):
        cell = CELLS[v['cell']]
        setting = setting_of(cell, v['size'], v['bs'], v.get('mix', 0.))
        places, _, teachers, _ = taught_by(archive, cell, setting, v['steps'], v['teaching'])
        return judged(places, teachers, setting, p.part)
    asked = [v for v in p.arms.values() if v.get('teaching', {}).get('teachers') == [READY]]
    if not asked: return
    first, *others = {(v.get('mix'), v['teaching']['views']): v for v in asked}.values()
    store(first)
    Parallel(jobs)(delayed(store)(v) for v in others)


def main(argv=None):
    "The command of this file"
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument('cells', nargs='*', help=f"which of {', '.join(CELLS)}; none: all")
    ask.add_argument('--cifar', help="the archive of CIFAR-10's training images, cifar10-train/<class>/<image>, "
                                     'for cifar and strays')
    what = ask.add_mutually_exclusive_group()
    what.add_argument('--pilot', action='store_true', help='choose defaults on validation images')
    what.add_argument('--split', action='store_true', help='ask where the gain of a published teacher comes from')
    ask.add_argument('--most', type=int, help='stop after so many jobs of each study')
    ask.add_argument('--jobs', type=int, default=1, help='trainings at the same time')
    said = ask.parse_args(argv)
    for name in said.cells or CELLS:
        p = (pilot if said.pilot else split if said.split else protocol)(CELLS[name])
        print(f'{p.study}: {len(p.jobs)} jobs', flush=True)
        if said.jobs > 1: prepare(p, said.cifar, said.jobs)
        folder = ROWS/'trials'/p.study if said.pilot else ROWS/p.study
        rows = do_study(p, partial(train, said.cifar, p.part), folder, said.most, said.jobs)
        print(answers_of_study(p, rows).round(2).to_string(), flush=True)


if __name__ == '__main__': main()
