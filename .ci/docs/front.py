"""The playground of the front page: networks of the main run's first seed, kept in half precision beside this file.

`python .ci/docs/front.py RUN` keeps the networks of a run's folder; the build calls `page`.
"""
import json, sys
from pathlib import Path
from after import PAPER

KEPT = Path(__file__).resolve().parent/'networks.safetensors'
NOTE = ('The networks are those of one seed of the main run on cluttered digits, and its convolution of another seed (2nd): '
        'what differs between these two is chance. The verdict of the run, over three seeds, is on the front page. '
        'The answers are computed in this page, from weights in half precision.')
# The frame grows with what it shows: the page around it is told how high that is.
FIT = ('<script>new ResizeObserver(() => parent.postMessage({height: document.documentElement.scrollHeight}, "*"))'
       '.observe(document.body)</script>')

# What html-validate would rather see: the figure that stands there until the page runs gets its looks from a rule.
STRICT = {'<!doctype html>': '<!DOCTYPE html>', ' style="margin:0"': '', ' style="max-width:100%;height:auto"': '',
          ' style="max-width:100%;height:auto;background:#fff"': '',
          '</head>': '<style>figure { margin: 0 } .kd-paper { max-width: 100%; height: auto }</style></head>'}


def strict(text):
    "A page that a widget wrote, as html-validate wants it."
    text = PAPER.sub('', text)
    for old, new in STRICT.items(): text = text.replace(old, new)
    return text


TEACHERS = 'resnet_mini', 'rednet_mini', 'resnet_mini, 2nd'       # of another seed: what chance alone does
STUDENTS = 'plain ViT', 'untaught', 'taught'


def keep(run):
    "Write the teachers and the students of a run's first seed, and its convolution of another seed."
    from libkd.handover import load_student
    from libkd.teachers import load_teacher
    from safetensors.torch import save_file
    run, cfgs = Path(run), {}
    rows = json.loads((run/'result.json').read_text(encoding='utf-8'))['runs']
    kept = [*sorted((run/'teachers').iterdir(), reverse=True), *(run/'second'/'teachers').iterdir()]
    nets = {name: load_teacher(folder).model for name, folder in zip(TEACHERS, kept, strict=True)}
    for arm in STUDENTS:
        files = next(r['files'] for r in rows if r['arm'] == arm)
        nets[arm], cfgs[arm] = load_student(run/'students'/files)
    tensors = {f'{name}/{k}': v.half().contiguous() for name, net in nets.items()
               for k, v in net.state_dict().items() if v.is_floating_point()}
    save_file(tensors, KEPT, metadata={'students': json.dumps(cfgs)})
    KEPT.chmod(0o644)


def networks():
    "(name -> network, (mean, std)) as they were kept."
    import timm
    from libkd import involution, teachers      # noqa: F401  they register their networks with timm
    from libkd.students import create_student
    from safetensors import safe_open
    with safe_open(KEPT, 'pt') as f:
        cfgs, tensors = json.loads(f.metadata()['students']), {k: f.get_tensor(k) for k in f.keys()}
    cfg = cfgs['taught']
    nets = {name: timm.create_model(name.partition(',')[0], num_classes=cfg['num_classes']) for name in TEACHERS}
    nets |= {name: create_student(cfgs[name]['architecture'], **cfgs[name]['model_args']) for name in STUDENTS}
    for name, net in nets.items():
        state = {k.partition('/')[2]: v.float() for k, v in tensors.items() if k.startswith(f'{name}/')}
        net.load_state_dict(net.state_dict() | state)
    return {name: net.eval() for name, net in nets.items()}, (cfg['pretrained_cfg']['mean'], cfg['pretrained_cfg']['std'])


def page(out, n=8, probe=300):
    "Write the playground of the front page to `out`."
    import numpy as np, torch
    from libkd.data import Samples
    from libkd.playground import bias_playground, telling
    from libkd.sets import cluttered_digits
    nets, stats = networks()
    samples = Samples.from_folder(cluttered_digits()).part('test').in_memory()
    imgs, y = np.stack([np.asarray(o) for o in samples.items]), samples.labels
    mean, std = (torch.tensor(s).view(1, 3, 1, 1) for s in stats)
    x = (torch.from_numpy(imgs).permute(0, 3, 1, 2)/255 - mean)/std
    with torch.no_grad(): said = {k: combined(net, x) for k, net in nets.items()}
    rows = telling(said, y, n)
    others = np.setdiff1d(np.arange(len(y)), rows)
    others = others[np.linspace(0, len(others) - 1, probe).astype(int)]      # the pictures lie in the order of their classes
    view = bias_playground(nets, imgs[rows], y[rows], samples.classes, stats=stats, names=[str(r) for r in rows],
                           probe=(imgs[others], y[others]), note=NOTE)
    view.to_html(out)
    text = Path(out).read_text(encoding='utf-8')
    Path(out).write_text(strict(text).replace('</body>', f'{FIT}</body>'), encoding='utf-8')


def combined(net, x):
    "One answer a picture, (n, C)"
    out = net(x)
    return net.combine(out) if isinstance(out, dict) else out


if __name__ == '__main__': keep(sys.argv[1])
