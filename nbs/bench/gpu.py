"""Measures on a GPU: `make gpu DATA=<folder of class folders>`, or `python nbs/bench/gpu.py --data FOLDER`.

Cases stand in slices, the most valuable first. Each is written as soon as it is measured, to one JSON and one Markdown
file, so that the command may be stopped at any time and goes on where it was; a case that failed keeps its error and is
tried again. `--tiny` takes numbers small enough for a CPU, to rehearse: its times say nothing. Needs libkd and no
network; `nbs/bench/gpu.ipynb` shows what came out.
"""
import argparse, json, multiprocessing, platform, statistics, tempfile, time, traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np, timm, torch, torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from libkd.all import *
from libkd.views import MIX, draws, mixed, view_keys


@dataclass(frozen=True)
class Setting:
    "Where and how large"
    device: torch.device        # 'cuda', or 'cpu' to rehearse
    tiny: bool=False            # small numbers
    data: Path | None=None      # folder of `<class>/<photograph>`, 32 pixels, for the slice 'student'
    work: Path | None=None      # folder for caches and teachers

    def size(self, full, tiny): return tiny if self.tiny else full


class Clock:
    "Milliseconds of a call: CUDA events after the cache was emptied on a GPU, the clock on the wall on a CPU"
    def __init__(self, device):
        self.cuda = device.type == 'cuda'
        self.junk = torch.empty(2**31 if self.cuda else 1, dtype=torch.uint8, device=device)

    def __call__(self, f):
        if not self.cuda:
            start = time.perf_counter(); f()
            return 1000*(time.perf_counter() - start)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(4): self.junk.zero_()       # no input is left in the cache, and Python gets ahead of the GPU
        start.record(); f(); end.record(); end.synchronize()
        return start.elapsed_time(end)


def turns(device, n, **calls):
    "`{name: [milliseconds]}` of `n` rounds in which the `calls` take turns, after two that do not count"
    clock = Clock(device)
    rounds = [{name: clock(f) for name, f in calls.items()} for _ in range(n + 2)][2:]
    return {name: [r[name] for r in rounds] for name in calls}


def ratio(a, b):
    "Median and quartiles of the pairs' ratios"
    low, mid, high = statistics.quantiles([x/y for x, y in zip(a, b, strict=True)], n=4)
    return {'ratio': round(mid, 3), 'quartiles': f'{low:.3f} to {high:.3f}'}


# -- (a) involution --------------------------------------------------------------------------------

def rednet_shapes(batch, size):
    "`(x's shape, K, stride)` of RedNet-50's involutions: the stem, then each stage's first block and the others"
    yield (batch, 32, size//2, size//2), 3, 1
    for stage in range(4):
        C, side = 64*2**stage, size//4//2**max(0, stage - 1)
        if stage: yield (batch, C, side, side), 7, 2
        yield (batch, C, side//(2 if stage else 1), side//(2 if stage else 1)), 7, 1


def copier(nbytes, device):
    "A copy that moves `nbytes` through memory, half of them read and half written"
    a, b = (torch.ones(nbytes//2, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: b.copy_(a)


def involution(shape, K, stride, dtype, s):
    "One shape: our kernels, the unfold, and a copy of the bytes that must be read or written once"
    (B, C, H, W), (h, w) = shape, (shape[2]//stride, shape[3]//stride)
    make = partial(torch.randn, device=s.device, dtype=dtype)
    x, k, g = make(shape, requires_grad=True), make(B, C//16, K*K, h, w, requires_grad=True), make(B, C, h, w)
    def forward(backend):
        with torch.no_grad(): involution2d(x, k, stride, backend)
    def both(backend): torch.autograd.grad(involution2d(x, k, stride, backend), (x, k), g)
    steps = dict(forward=(forward, x.nbytes + k.nbytes + g.nbytes), both=(both, 3*x.nbytes + 3*k.nbytes + 2*g.nbytes))
    row = {}
    for name, (step, nbytes) in steps.items():
        arms = dict(ours=partial(step, 'auto'), unfold=partial(step, 'reference'), copy=copier(nbytes, s.device))
        t = turns(s.device, s.size(20, 1), **arms)
        ours, unfold, copy = (statistics.median(o) for o in t.values())
        row |= {f'{name}, ms': round(ours, 4), f'{name}, % of copied bytes': round(100*copy/ours, 1),
                f'{name}, times faster than unfold': round(unfold/ours, 2)}
    return row


def involutions(s):
    for dtype in (torch.float32, torch.bfloat16):
        for shape, K, stride in rednet_shapes(s.size(64, 1), s.size(224, 32)):
            name = f'{shape} K {K} stride {stride} {str(dtype).removeprefix("torch.")}'
            yield name, partial(involution, shape, K, stride, dtype, s)


# -- (b) networks ----------------------------------------------------------------------------------

def training_step(name, batch, s):
    "A function that makes one training step of a timm model: bf16 autocast, channels last, AdamW"
    torch.manual_seed(0)
    side = s.size(224, 32)
    kw = dict(img_size=side) if name.startswith('vit') else {}
    model = timm.create_model(name, **kw).to(s.device, memory_format=torch.channels_last).train()
    if hasattr(model, 'set_distilled_training'): model.set_distilled_training()
    opt = torch.optim.AdamW(model.parameters(), fused=s.device.type == 'cuda')
    x = torch.randn(batch, 3, side, side, device=s.device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(model.num_classes, (batch,), device=s.device)
    def step():
        with torch.autocast(s.device.type, torch.bfloat16, enabled=not s.tiny):
            out = model(x)
            loss = sum(F.cross_entropy(z, y) for z in (out.values() if isinstance(out, dict) else [out]))
        loss.backward(); opt.step(); opt.zero_grad()
    return step


def network(ours, other, batch, s):
    "A training step of `ours` against one of `other`"
    steps = {n: training_step(n, batch, s) for n in (ours, other)}
    t = turns(s.device, s.size(12, 2), **steps)
    a, b = (statistics.median(o) for o in t.values())
    row = {'batch': batch, 'ours, ms': round(a, 2), 'other, ms': round(b, 2), 'images a second': round(1000*batch/a)}
    return row | ratio(*t.values())


def networks(s):
    deit = 'vit_deit_tiny_patch16_224'
    full = [('rednet50', 'resnet50', 128), ('vit_civt_tiny_patch16_224', deit, 256),
            ('vit_civt_tiny_light_patch16_224', deit, 256)]
    for ours, other, batch in s.size(full, [('rednet_mini', 'resnet_mini', 2)]):
        yield f'{ours} against {other}', partial(network, ours, other, batch, s)


# -- (c) stored against live answers ---------------------------------------------------------------

def noise(n, side):
    "`n` pictures of noise in ten classes: what is in them does not change a step's time"
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (n, side, side, 3), dtype=np.uint8)
    samples = Samples.from_arrays(list(pictures), np.arange(n) % 10, [str(i) for i in range(10)])
    return samples.split(valid=.25, seed=0)


class Steps(Callback):
    "Times `n` training steps on one batch where an epoch would begin, and ends the fit"
    order = 100                          # after everybody else's `before_train`
    def __init__(self, clock, n): self.clock, self.n = clock, n
    def before_train(self):
        self.learn.n_iter, batch = self.n, self.dls.train.one_batch()
        self.ms = [self.clock(lambda: self.learn.one_batch(0, batch)) for _ in range(self.n)]
        raise CancelFitException


def step_times(learners, s):
    "`{name: milliseconds of a step}`: the learners take turns, the first round does not count"
    clock, times = Clock(s.device), {name: [] for name in learners}
    for learn in learners.values(): s.tiny or learn.to_bf16()
    for r in range(s.size(5, 3)):
        for name, learn in learners.items():
            steps = Steps(clock, s.size(4, 1))
            with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=steps)
            times[name] += steps.ms if r else []
    return times


def stored_and_live(s):
    "A student's step with stored answers, with live teachers, and with none"
    batch, side = s.size(128, 4), s.size(224, 32)
    names = s.size(('regnety_040', 'rednet101'), ('resnet_mini', 'rednet_mini'))
    dls = image_dls(noise(s.size(4*batch, 80), side), bs=batch, device=s.device)
    teachers = [as_teacher(timm.create_model(n, num_classes=10), dls, name=n).to(s.device) for n in names]
    cache = LogitCache.build(s.work/'noise', dls, teachers, views=1, check=False, overwrite=True)
    student = s.size('vit_civt_tiny_patch16_224', 'civt_nano')
    arms = dict(stored=cache, live=teachers, none=None)
    t = step_times({n: distill_learner(dls, student, teachers=o, seed=0, check=False) for n, o in arms.items()}, s)
    ms = {f'{n}, ms': round(statistics.median(o), 2) for n, o in t.items()}
    pairs = ('live', 'stored'), ('stored', 'none')
    ratios = {f'{a} over {b}, {k}': v for a, b in pairs for k, v in ratio(t[a], t[b]).items()}
    return {'teachers': ' and '.join(names), 'batch': batch} | ms | ratios


def cached(s): yield 'CivT-Ti with RegNetY-4GF and RedNet-101, 224 pixels', partial(stored_and_live, s)


# -- (d) views -------------------------------------------------------------------------------------

def viewed(x, partner, ids, light, mix, numbers):
    "Views of `x`, as a loader makes them: where its pixels are, from draws of the CPU"
    keys = view_keys(0, ids, numbers)
    x = light(x, keys)
    if mix is None: return x
    return mixed(x, light(partner, keys), *mix.lams_boxes(draws(keys, MIX, 5), *x.shape[2:]))[0]


def light_views(size, mix, s):
    "Views of whole batches on the device: the CPU's bits, and how many a second beside one thread of the CPU"
    n, rng = s.size(512, 8), np.random.default_rng(0)
    x, partner = (torch.from_numpy(rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8)) for _ in range(2))
    ids, light = rng.integers(0, 256, (n, 16), dtype=np.uint8), LightViews(flip=True, erase=.25)
    there = x.to(s.device), partner.to(s.device)
    same = all(torch.equal(viewed(x, partner, ids, light, mix, np.full(n, v)),
                           viewed(*there, ids, light, mix, np.full(n, v)).cpu()) for v in range(3))
    torch.set_num_threads(1)
    def rate(a, b):
        def once(v):
            start = time.perf_counter(); viewed(a, b, ids[:len(a)], light, mix, np.full(len(a), v))
            if a.is_cuda: torch.cuda.synchronize()
            return time.perf_counter() - start
        return len(a)/statistics.median([once(v) for v in range(20)][2:])
    here, on = rate(x[:64], partner[:64]), rate(*there)
    return {'batch': n, 'the same bits as on a CPU': same, 'views a second': round(on),
            'one thread of the CPU': round(here), 'times as many': round(on/here, 1)}


def views(s):
    for size in s.size((32, 96, 224), (16,)):
        for name, mix in (('plain', None), ('mixed', Mix())):
            yield f'{name}, {size} pixels', partial(light_views, size, mix, s)


# -- (e) a student on photographs ------------------------------------------------------------------

class EpochSeconds(Callback):
    "Seconds of each epoch, validation included"
    def before_fit(self): self.seconds = []
    def before_epoch(self): self.start = time.perf_counter()
    def after_epoch(self):
        if self.dls.device.type == 'cuda': torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def photographs(s):
    "Loaders of the photographs, or of a few pictures of noise to rehearse"
    samples = noise(80, 16) if s.tiny else Samples.from_folder(s.data).split(valid=.1, seed=0)
    return image_dls(samples, bs=s.size(512, 16), seed=0, device=s.device, check=False)


def taught(seed, s, cache, epochs):
    "`(seconds of each epoch, accuracy)` of one student, in a process of its own"
    dls = photographs(s)
    learn = distill_learner(dls, 'civt_nano', teachers=LogitCache.open(cache), seed=seed, check=False)
    clock = EpochSeconds()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 2e-3, cbs=clock)
    return clock.seconds, float(learn.validate()[1])


def students(seeds, s):
    "Co-advise students, `seeds` of them side by side on one device"
    if not s.tiny and s.data is None: raise NotThere('give the photographs: --data FOLDER')
    dls, epochs, began = photographs(s), s.size(4, 1), time.perf_counter()
    fit = partial(fit_teacher, dls=dls, epochs=epochs, folder=s.work/'teachers', check=False)
    teachers = [fit(n) for n in ('resnet_mini', 'rednet_mini')]
    after_teachers = time.perf_counter()
    LogitCache.build(s.work/'photographs', dls, teachers, views=epochs, check=False)
    after_cache = time.perf_counter()
    with ProcessPoolExecutor(seeds, multiprocessing.get_context('spawn')) as pool:
        rows = [*pool.map(partial(taught, s=s, cache=s.work/'photographs', epochs=epochs), range(seeds))]
    epoch = statistics.median(e for secs, _ in rows for e in secs[1:] or secs)      # the first one warms up
    return {'training photographs': len(dls.train.dataset), 'epochs': epochs,
            'teachers, s': round(after_teachers - began, 1), 'cache, s': round(after_cache - after_teachers, 1),
            'an epoch, s': round(epoch, 2), 'an epoch and seed, s': round(epoch/seeds, 2),
            'accuracy': [round(a, 3) for _, a in rows]}


def student(s):
    for seeds in s.size((1, 4), (2,)):
        yield f'civt_nano, co-advised, seeds side by side: {seeds}', partial(students, seeds, s)


# -- all of it -------------------------------------------------------------------------------------

class NotThere(Exception):
    "A case that cannot be measured here, and why"


SLICES = dict(involution=involutions, networks=networks, cached=cached, views=views, student=student)


def machine(s):
    "What the figures belong to"
    name = torch.cuda.get_device_name() if s.device.type == 'cuda' else 'a CPU, to rehearse'
    return dict(device=name, torch=torch.__version__, cuda=torch.version.cuda, timm=timm.__version__,
                python=platform.python_version(), tiny=s.tiny)


def measured(case):
    "The figures of a case, or its error in a sentence"
    start = time.perf_counter()
    try: row = case()
    except NotThere as e: return {'not measured': str(e)}
    except Exception as e:
        traceback.print_exc()
        return {'error': f'{type(e).__name__}: {e}'.splitlines()[0][:300]}
    return row | {'took, s': round(time.perf_counter() - start, 1)}


def table(rows):
    "Markdown of `{case: figures}`"
    heads = list(dict.fromkeys(k for row in rows.values() for k in row))
    body = [[name, *(str(row.get(h, '')) for h in heads)] for name, row in rows.items()]
    lines = [['case', *heads], ['---']*(len(heads) + 1), *body]
    return '\n'.join('| ' + ' | '.join(o.replace('|', '/') for o in line) + ' |' for line in lines)


def write(out, results):
    "One JSON and one Markdown file, each whole or not at all"
    text = [f'# Measured on {results["machine"]["device"]}', f'torch {results["machine"]["torch"]}']
    for name, rows in results['slices'].items(): text += [f'## {name}', table(rows)]
    for path, content in ((out, json.dumps(results, indent=1)), (out.with_suffix('.md'), '\n\n'.join(text))):
        part = path.with_suffix('.part')
        part.write_text(content + '\n', encoding='utf-8')
        part.replace(path)


def opened(out, s):
    "What was measured before on this machine, or an empty page"
    if not out.exists(): return dict(machine=machine(s), slices={})
    results = json.loads(out.read_text(encoding='utf-8'))
    if results['machine'] != machine(s):
        raise SystemExit(f'{out} was measured elsewhere, on {results["machine"]}; this is {machine(s)}. '
                         'Give another file: --out gpu-here.json')
    return results


def measure(out, s, minutes, slices):
    "Measure what is missing in `out`, as long as there is time"
    end, results = time.perf_counter() + 60*minutes, opened(out, s)
    for name in slices:
        rows = results['slices'].setdefault(name, {})
        for case, f in SLICES[name](s):
            if set(rows.get(case, {'error': ''})).isdisjoint({'error', 'not measured'}): continue
            if time.perf_counter() > end:
                return print(f'{minutes:g} minutes are over; the same command goes on with {name}: {case}')
            rows[case] = measured(f)
            print(f'{name}: {case}: {rows[case]}', flush=True)
            write(out, results)
    print(f'all there: {out} and {out.with_suffix(".md")}')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arg = p.add_argument
    arg('--out', type=Path, default=Path(__file__).with_name('gpu.json'), help='JSON; a Markdown file stands beside it')
    arg('--data', type=Path, help='folder of <class>/<photograph>, 32 pixels, such as CIFAR-10')
    arg('--minutes', type=float, default=8, help='no case begins later than that')
    arg('--slices', nargs='+', choices=SLICES, default=list(SLICES), help='all, the most valuable first')
    arg('--work', type=Path, help='folder for caches and teachers; default: a temporary one')
    arg('--tiny', action='store_true', help='rehearse on the CPU with tiny numbers')
    args = p.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit('No GPU is here, and a CPU would take days. Rehearse: --tiny --out rehearsal.json')
    device = torch.device('cpu' if args.tiny else 'cuda')
    with tempfile.TemporaryDirectory() as tmp:
        setting = Setting(device, args.tiny, args.data, args.work or Path(tmp))
        measure(args.out, setting, args.minutes, args.slices)


if __name__ == '__main__': main()
