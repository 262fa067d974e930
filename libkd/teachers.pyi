"""Turn anything that answers into a teacher, train small ones in a minute, and trust that it is the one it says."""
# Made from the modules by `make prepare`: do not edit
from . import UserError
from contextlib import contextmanager
from dataclasses import dataclass
from fastai.data.core import TfmdDL
from pathlib import Path
from timm.models.resnet import ResNet
from torch import nn
from typing import Any
import torch

__all__ = ['PACKAGED', 'ResNetMini', 'resnet_mini', 'size_of', 'stats_of', 'model_for', 'bias_of', 'Teacher',
           'numbered', 'as_teacher', 'ChanceError', 'AnswersError', 'answers', 'check_teacher', 'load_teacher',
           'decaying', 'quick_adam', 'Packaged', 'fit_head', 'fit_teacher', 'warn_if_uneven']

class ResNetMini(ResNet):
    conv1: Any
    maxpool: Any
    layer4: Any
    def __init__(self, width=16, in_chans=3, **kw): ...
    def forward_intermediates(self, x, indices=None, **kw): ...
    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True): ...
default_cfgs: Any
def resnet_mini(pretrained=False, **kw) -> ResNetMini: ...
def model_name(name: str) -> str: ...
def classes_of(dls) -> list[str]: ...
def size_of(dls) -> tuple[int, int]: ...
def stats_of(dls) -> tuple: ...
def model_for(name: str, dls, **kw) -> nn.Module: ...
def bias_of(model: nn.Module) -> str: ...
class Teacher:
    model: Any
    own_classes: Any
    name: Any
    bias: Any
    interpolation: str
    accuracy: float | None
    mean: Any
    std: Any
    size: Any
    probabilities: Any
    class_map: Any
    classes: Any
    def __init__(
        self,
        model: nn.Module,
        classes: list[str],
        name: str | None = None,
        bias: str | None = None,
        mean=...,
        std=...,
        size: tuple | int | None = None,
        interpolation: str = 'bicubic',
        class_map: dict | None = None,
        answers: list[str] | None = None,
        accuracy: float | None = None,
        probabilities: bool = False,
    ): ...
    def __repr__(self): ...
    @property
    def n_params(self) -> int: ...
    def to(self, device): ...
    @property
    def device(self): ...
    def adapt(self, x: torch.Tensor, stats=None) -> torch.Tensor: ...
    def logits(self, x: torch.Tensor, stats=None, amp: bool = False) -> torch.Tensor: ...
    @property
    def old_fingerprint(self) -> str: ...
    def behaviour(self, size: tuple | None = None) -> dict: ...
    @property
    def fingerprint(self) -> str: ...
def numbered(names) -> list[str]: ...
@contextmanager
def full_float32(): ...
def as_teacher(
    obj,
    dls=None,
    name: str | None = None,
    classes=None,
    class_map: dict | None = None,
    arch=None,
    **kw,
) -> Teacher: ...
class ChanceError(UserError): ...
class AnswersError(UserError): ...
def answers(teacher: Teacher, dl, stats) -> torch.Tensor: ...
def check_teacher(teacher: Teacher, dls, n: int = 256, seed: int = 0) -> float: ...
def labelled_loader(dls) -> TfmdDL: ...
TEACHER_RESULT: int
ANSWERS_AGREE: float
def load_teacher(folder: Path | str) -> Teacher: ...
def decaying(model) -> list: ...
def quick_adam(wd: float = 0.01) -> dict: ...
@dataclass(frozen=True)
class Packaged:
    package: str
    file: str
    sha256: str
    arch: str
    size: int
    def there(self) -> bool: ...
    def path(self) -> Path: ...
    def model(self, num_classes=1000) -> nn.Module: ...
PACKAGED: dict
HEAD_C: tuple
HEAD_ROWS: int
def fit_head(t: Teacher, dls, seed: int = 0, verbose: bool = False) -> Teacher: ...
def fit_teacher(
    name: str,
    dls,
    epochs: int | None = None,
    lr: float | None = None,
    wd: float = 0.01,
    pretrained: bool | None = None,
    tune: str | None = None,
    seed: int = 0,
    folder='teachers',
    as_name: str | None = None,
    check: bool = True,
    verbose: bool = True,
    cbs: list | tuple = (),
) -> Teacher: ...
def warn_if_uneven(teachers, points: float = 10.0): ...
