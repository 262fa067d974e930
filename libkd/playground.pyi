"""Change a picture and watch at once which network changes its mind: the networks live in the page."""
# Made from the modules by `make prepare`: do not edit
from .plots import LibkdFigure
from .widgets import Synced, View
from dataclasses import dataclass
from pathlib import Path
from typing import Any
import numpy as np, pandas as pd, torch

__all__ = ['KINDS', 'PRESETS', 'SECOND', 'packed_logits', 'pack_net', 'bias_verdict', 'Evidence', 'measured',
           'preset_numbers', 'BiasPlayground', 'bias_playground', 'telling', 'demo']

@dataclass
class Packed:
    ops: list
    tensors: list
    weights: bytes
    input: list
    classes: int
    answer: int
    heads: dict
    def to_json(self) -> str: ...
    def __repr__(self): ...
class Packer:
    kinds: Any
    ops: list
    tensors: list
    at: list
    def __init__(self, kinds): ...
    def op(self, name, *values, **about) -> int: ...
    def tensor(self, t) -> int: ...
    def __call__(self, module, x, name=''): ...
    def through(self, module, x, *names) -> int: ...
KINDS: dict
def packed_logits(packed, x, bs=64) -> torch.Tensor: ...
def pack_net(model, size, stats=None, kinds=None) -> Packed: ...
PRESETS: Any
def bias_verdict(groups, before=None) -> str: ...
NUMBERS: Any
@dataclass
class Evidence:
    numbers: dict
    about: str = ...
    def __post_init__(self): ...
    @classmethod
    def measured(cls, part='valid') -> Evidence: ...
    def says(self, preset) -> tuple: ...
def measured(answers, imgs, y) -> pd.DataFrame: ...
def preset_numbers(answer, imgs, y) -> dict: ...
class BiasPlayground(View):
    module: str
    title: str
    sheets: tuple
    selected: Synced
    T: Synced
    pool: Any
    classes: list
    truth: Any
    nets: Any
    kinds: Any
    biases: Any
    answers: dict
    looks: Any
    names: Any
    evidence: Any
    note: Any
    table: Any
    probed: int
    rows: Any
    imgs: Any
    y: Any
    labels: list
    logits: dict
    alt: Any
    def __init__(self, models, images, labels=None, classes=None, T=1.0, rows=None, **more): ...
    def show(self, row): ...
    def data(self) -> dict: ...
    def snapshot(self) -> LibkdFigure: ...
HEAVIEST: int
LEAD: str
LOOKS: Any
READING: str
def bias_playground(
    models,
    images,
    labels=None,
    classes=None,
    T=1.0,
    stats=None,
    names=None,
    kinds=None,
    probe=None,
    evidence=None,
    note='',
    rows=None,
) -> BiasPlayground: ...
def telling(logits: dict, y, k=8) -> np.ndarray: ...
SECOND: str
NOT_A_VERDICT: str
def demo(folder, path=None, n=8, probe=300) -> Path: ...
