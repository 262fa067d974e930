"""A folder of many JPEGs of which few have a label: seconds and memory until a run could begin.

`python nbs/bench/many_jpegs.py` draws 105,000 pictures of 128×96 pixels in ten classes, 5,000 of them with a label, and
watches processes that scan the folder, decode it once for a student at 96 pixels (killed twice on the way), make views
and plan a run. `--images 2100` rehearses. Figures go to `nbs/bench/many_jpegs.json`, shown by `many_jpegs.ipynb`.
Linux only: memory is what a process and its children hold of their own, without files that are mapped.
"""
import argparse, contextlib, io, json, os, resource, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np, psutil
from PIL import Image

FILE = Path(__file__).with_suffix('.json')
SIZE, CLASSES = 96, 10
LABELLED, VALID = 5, 1      # of 105 pictures so many have a label, and of these so many are for choosing
KILLED_AT = 1/3, 2/3        # share of the pixels that are written when the decoding process is killed


def picture(i, label):
    "JPEG of picture `i`: a blurred pattern, in the colour and with the stripes of its class"
    rng = np.random.default_rng(i)
    rough = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((128, 96), Image.BILINEAR)
    stripes = 40*np.sin(np.arange(128)*(label + 1)/6)[None, :, None]
    tint = np.linspace(-30, 30, CLASSES)[label]*np.array([1, 0, -1])
    x = (np.asarray(rough) + stripes + tint).clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(x).save(out, 'JPEG', quality=85)
    return out.getvalue()

def place(i):
    "Where picture `i` of class `i % CLASSES` lies"
    turn, label = i//CLASSES % 105, i % CLASSES
    if turn >= LABELLED: return f'unlabelled/{i//1000:03d}/{i:06d}.jpg'
    return f"{'valid' if turn < VALID else 'train'}/class{label}/{i:06d}.jpg"

def draw(folder, n):
    "Write the pictures that are not there yet"
    for i in range(n):
        path = folder/place(i)
        if path.exists(): continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i, i % CLASSES))


# What the watched processes do: each prints facts as JSON in its last line

def nothing(folder, keep):
    "What every process pays"
    import libkd.all
    return {}

def scan(folder, keep):
    "List the folder, then read all of it for what its pictures are, then once more"
    from libkd.all import Samples
    took = {}
    def timed(name, f):
        start = time.perf_counter()
        result = f()
        took[name] = round(time.perf_counter() - start, 2)
        return result
    samples = timed('listed', lambda: Samples.from_folder(folder))
    timed('read', samples.identity)
    timed('known', samples.identity)
    return dict(images=len(samples), took=took)

def decode(folder, keep):
    "All training pictures into one mapped file, or find it there; how many had to be decoded"
    import torch
    from libkd.all import Pictures, Samples, image_dls
    read, decoded, start = Pictures.read, [], time.perf_counter()
    def counted(pictures, i):
        decoded.append(i)
        return read(pictures, i)
    Pictures.read = counted
    dls = image_dls(Samples.from_folder(folder), size=SIZE, keep=keep, check=False, device=torch.device('cpu'))
    pictures = dls.train.pictures
    pictures.open()
    spent = round(time.perf_counter() - start, 1)
    return dict(pictures=len(pictures), decoded=len(decoded), pixels_MB=round(pictures.nbytes/1e6), opened=spent)

def views(folder, keep):
    "Two hundred batches of 64 views from all over the mapped file"
    import torch
    from libkd.all import Samples, image_dls
    torch.set_num_threads(1)
    dls = image_dls(Samples.from_folder(folder), size=SIZE, keep=keep, check=False, device=torch.device('cpu'))
    batches = iter(dls.train)
    next(batches)
    start = time.process_time()
    made = sum(len(x) for _, (x, y) in zip(range(200), batches))
    return dict(views=made, us_a_view=round(1e6*(time.process_time() - start)/made))


def processor():
    "Processor seconds of all children that have ended"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

def own_memory(process):
    "Bytes that a process and its children hold, without mapped files"
    total = 0
    for p in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            m = p.memory_info()
            total += m.rss - m.shared
    return total

def watched(command, stop=lambda: False):
    "Run a command until its end, or until it is killed: seconds, memory, longest silence, and what it said"
    with tempfile.TemporaryFile() as out:
        start, busy = time.perf_counter(), processor()
        spoke = start
        process, most, silence, said = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT), 0, 0., 0
        while process.poll() is None:
            now, size = time.perf_counter(), os.fstat(out.fileno()).st_size
            if size > said: said, spoke = size, now
            silence = max(silence, now - spoke)
            with contextlib.suppress(psutil.Error): most = max(most, own_memory(process))
            if stop(): process.kill()
            time.sleep(.1)
        seconds, busy = time.perf_counter() - start, processor() - busy
        out.seek(0)
        lines = out.read().decode().strip().splitlines()
    if process.returncode not in (0, -9): raise SystemExit('\n'.join(lines))
    found = dict(seconds=seconds, processor=busy, own_MB=most/1e6, silence=silence)
    return {k: round(v, 1) for k, v in found.items()}, lines

def step(f, folder, keep, **kw):
    "One of the functions above in a process of its own"
    found, lines = watched([sys.executable, __file__, '--step', f.__name__, folder, keep], **kw)
    return found | (json.loads(lines[-1]) if lines and lines[-1].startswith('{') else {})

def killed(folder, keep, share, total):
    "A decoding process that is killed when it has written `share` of the pixels; what it leaves behind"
    def written(): return sum(f.stat().st_size for f in Path(keep).glob('.pictures*') if f.suffix != '.lock')
    found = step(decode, folder, keep, stop=lambda: written() >= share*total)
    return found | dict(written_MB=round(written()/1e6))

def planned(folder, out, *more):
    "`libkd run FOLDER --plan` at the size of the student"
    run = [sys.executable, '-c', 'from libkd.cli import main; main()', 'run', folder, '--plan', '--folder', out]
    found, lines = watched([*run, '-p', f'size={SIZE}', *more])
    return found | dict(said=lines)


def main(n, work, out):
    "All figures, in their order; each is written as soon as it is there"
    folder, keep = Path(work)/f'jpegs-{n}', Path(tempfile.mkdtemp(dir=work))
    draw(folder, n)
    os.environ['LIBKD_HOME'] = str(keep/'home')             # nothing is known of these files from before
    size = sum(f.stat().st_size for f in folder.rglob('*.jpg'))
    load = round(os.getloadavg()[0], 1)
    found = dict(images=n, jpeg_MB=round(size/1e6), cores=os.cpu_count(), load=load, steps={})
    def note(name, row):
        found['steps'][name] = row | dict(load=round(os.getloadavg()[0], 1))
        out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    note('import', step(nothing, folder, keep))
    note('scan', step(scan, folder, keep))
    total = 3*SIZE*128*(n*(105 - VALID)//105)
    for share in KILLED_AT: note(f'killed at {share:.0%}', killed(folder, keep, share, total))
    note('decode', step(decode, folder, keep))
    note('found', step(decode, folder, keep))
    note('views', step(views, folder, keep))
    for name in ('plan', 'plan again'): note(name, planned(folder, keep/'run'))
    note('deadline', planned(folder, keep/'run', '--deadline', '6h'))


if __name__ == '__main__':
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument('--images', type=int, default=105_000)
    parse.add_argument('--work', default=tempfile.gettempdir(), help='folder for pictures and pixels, 5 GB')
    parse.add_argument('--out', type=Path, default=FILE)
    parse.add_argument('--step', nargs=3, help=argparse.SUPPRESS)
    a = parse.parse_args()
    if a.step: print(json.dumps(globals()[a.step[0]](*a.step[1:])))
    else: main(a.images, a.work, a.out)
