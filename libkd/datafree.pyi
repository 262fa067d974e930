"""Turn trained networks into an image folder without seeing their images, measure it, and teach a student with it."""
# Made from the modules by `make prepare`: do not edit
from .teachers import Teacher
from PIL import Image
from contextlib import contextmanager
from fastai.learner import Learner
from pathlib import Path
from typing import Any, Callable
import pandas as pd, torch

__all__ = ['TERMS', 'bn_layers', 'bn_loss', 'tv_loss', 'l2_loss', 'competition_loss', 'intra_divergence_loss', 'inside',
           'image_grid', 'synthesize', 'image_diversity', 'datafree_learner']

def bn_layers(teacher: Teacher) -> list: ...
def bn_loss(inputs, layers, first=10.0) -> torch.Tensor: ...
def tv_loss(x, p=2) -> torch.Tensor: ...
def l2_loss(x) -> torch.Tensor: ...
def competition_loss(student, teacher, T=3.0) -> torch.Tensor: ...
def intra_divergence_loss(features, y, margin=0.1, d_max=1.0) -> torch.Tensor: ...
STATS: tuple
@contextmanager
def inside(t: Teacher, layers=()) -> Callable: ...
TERMS: Any
def image_grid(x, cols=10, zoom=None) -> Image.Image: ...
def synthesize(
    folder,
    teachers,
    per_class: int = 100,
    size: int | None = None,
    steps: int = 200,
    terms: dict | None = None,
    student=None,
    flip: bool = False,
    bs: int = 100,
    lr: float = 0.2,
    low: float = ...,
    seed: int = 0,
    overwrite: bool = False,
) -> Path: ...
def image_diversity(
    sets,
    teacher: Teacher,
    per_class: int = 100,
    size: int | None = None,
    seed: int = 0,
) -> pd.DataFrame: ...
def datafree_learner(
    folder,
    teachers,
    student,
    *,
    images: dict | None = None,
    loaders: dict | None = None,
    **kw,
) -> Learner: ...
