"Data and teachers small enough for every test: 24 images of 8 pixels in three classes, and linear teachers."
import numpy as np
import torch
from torch import nn

from libkd.data import Samples
from libkd.teachers import Teacher
from libkd.views import image_dls

CLASSES = ['circle', 'square', 'star']


def samples(n=24, seed=0, unlabelled=0, valid=.25):
    "Noise with one bright corner a class; ids come from the content"
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    images = rng.integers(0, 120, (n, 8, 8, 3), dtype=np.uint8)
    for im, y in zip(images, labels): im[:3, y*2:y*2+3, y] = 255
    s = Samples.from_arrays(list(images), [CLASSES[y] for y in labels], classes=CLASSES).split(valid=valid, seed=0)
    if unlabelled: s.labels[np.flatnonzero(s.parts == 'train')[:unlabelled]] = -1
    return s


def loaders(**kw):
    "Loaders on `samples()`; batches of 6"
    made = {k: kw.pop(k) for k in ('n', 'unlabelled') if k in kw}
    return image_dls(kw.pop('data', None) or samples(**made), **{'bs': 6, 'device': torch.device('cpu'), **kw})


class Linear(nn.Module):
    "A convolution of the whole picture that knows where each class is bright; the seed makes it another one"
    def __init__(self, seed=0, classes=3, scale=1.):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, classes, 8)
        with torch.no_grad():
            for y in range(classes): self.conv.weight[y, y, :3, y*2:y*2+3] += .5
        self.scale = scale
    def forward(self, x): return self.conv(x).mean((2, 3)) * self.scale


def teacher(name='lin', seed=0, **kw):
    args = {k: kw.pop(k) for k in ('scale',) if k in kw}
    return Teacher(Linear(seed, **args), CLASSES, name=name, **{'bias': 'conv', **kw})


def student(seed=0, heads=('cls', 'conv', 'inv')):
    "A `civt_nano` of one block"
    from libkd.students import create_student
    torch.manual_seed(seed)
    return create_student('civt_nano', 3, (8, 8), heads=None if heads == ('cls', 'conv', 'inv') else {h: h if h in ('conv', 'inv') else 'learned' for h in heads}, depth=1, embed_dim=32, num_heads=2)
