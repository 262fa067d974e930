"""What a preset of the playground shows: its number, for five seeds of each kind of network at equal accuracy.

Every network is trained on the digits at 16 pixels, without any change of the pictures, and stopped when it first gets
`ENOUGH` of the 400 validation pictures right. The numbers are of these pictures too, since it is on them that all are
equally accurate; those of the 400 test pictures stand beside them. Each finished network adds a row to
`libkd/static/presets.json`, from which the playground says what was measured; a row that is there is not made again.
`nbs/bench/presets.ipynb` shows them.
"""
import argparse, json, time
from pathlib import Path

import libkd, numpy as np, timm, torch
from libkd.all import clean_dl, clean_images, digits, image_dls, preset_numbers
from libkd.diagnose import as_array, evaluating
from torch.nn.functional import cross_entropy

FILE = Path(libkd.__file__).parent/'static'/'presets.json'
NETS = dict(conv=('resnet_mini', {}), inv=('rednet_mini', {}), attn=('vit_nano', dict(img_size=16, depth=2)))
ENOUGH, MOST, LOOK, BATCH, RATE = .9, 2000, 5, 64, 1e-3       # MOST: steps; LOOK: steps between two looks at validation


def pictures():
    "part -> pictures (n, 16, 16, 3), 0 to 1, and their labels"
    dls = image_dls(digits(16), size=16, check=False, device=torch.device('cpu'))
    labels = lambda part: np.concatenate([as_array(b[1]) for b in clean_dl(dls, part)])
    return {p: (clean_images(dls, p)/np.float32(255), labels(p)) for p in ('train', 'valid', 'test')}


def asked(net):
    "A function from pictures to logits"
    def answer(imgs):
        with torch.no_grad(), evaluating(net): return net(batch(imgs)).numpy()
    return answer

def batch(imgs): return (torch.as_tensor(np.asarray(imgs, np.float32)).permute(0, 3, 1, 2) - .5)/.5


def trained(kind, seed, data):
    "A network that is right often enough, and the steps that it took"
    torch.manual_seed(seed)
    name, args = NETS[kind]
    net, rng = timm.create_model(name, num_classes=10, **args), np.random.default_rng(seed)
    opt, (x, y) = torch.optim.AdamW(net.parameters(), RATE, weight_decay=.05), data['train']
    for step in range(1, MOST + 1):
        rows = rng.integers(0, len(x), BATCH)
        cross_entropy(net.train()(batch(x[rows])), torch.as_tensor(y[rows])).backward()
        opt.step(); opt.zero_grad()
        if step % LOOK == 0 and share(net, data['valid']) >= ENOUGH: return net, step
    raise SystemExit(f'{name}, seed {seed}: not {ENOUGH} after {MOST} steps')

def share(net, part): return float((asked(net)(part[0]).argmax(1) == part[1]).mean())


def row(kind, seed, data):
    "What is kept of one network"
    start = time.perf_counter()
    net, steps = trained(kind, seed, data)
    numbers = {p: {'as it is': share(net, data[p]), **preset_numbers(asked(net), *data[p])} for p in ('valid', 'test')}
    return dict(kind=kind, net=NETS[kind][0], seed=seed, steps=steps, seconds=round(time.perf_counter() - start, 1),
                **{p: {k: round(v, 5) for k, v in n.items()} for p, n in numbers.items()})


def main(seeds):
    "The rows that are missing"
    rows, data = json.loads(FILE.read_text(encoding='utf-8')) if FILE.exists() else [], pictures()
    for seed in range(seeds):
        for kind in NETS:
            if any((r['kind'], r['seed']) == (kind, seed) for r in rows): continue
            rows.append(row(kind, seed, data))
            print(rows[-1], flush=True)
            rows.sort(key=lambda r: (list(NETS).index(r['kind']), r['seed']))
            lines = ',\n'.join(map(json.dumps, rows))
            FILE.write_text(f'[{lines}]\n', encoding='utf-8')


if __name__ == '__main__':
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument('--seeds', type=int, default=5)
    torch.set_num_threads(1); main(parse.parse_args().seeds)
