"""Student, teachers and a published method become one fastai `Learner`; a method of your own takes twenty lines."""
# Made from the modules by `make prepare`: do not edit
from .cache import LogitCache
from .distill import MultiTeacherDistill
from .playground import BiasPlayground
from .teachers import Teacher
from .views import Policy
from .widgets import AttentionView, Explorer, FeatureMap
from dataclasses import dataclass
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from pathlib import Path
from torch import nn
from typing import Any, Callable
import pandas as pd

__all__ = ['METHODS', 'Method', 'Methods', 'cakd_ramp', 'find_method', 'cite', 'WarmCosine', 'Recipe', 'recipe',
           'DistillLearner', 'advisors', 'student_heads', 'make_student', 'default_method', 'labelled', 'learner_dls',
           'sorted_arguments', 'distill_learner', 'first_terms', 'methods_from']

@dataclass(frozen=True)
class Method:
    name: str
    paper: str
    authors: str
    year: int
    arxiv: str
    exact: str
    reading: str
    settings: dict
    multi_head: bool = ...
    callback: type = ...
    def __call__(self, student: nn.Module, teachers, **kw): ...
    def scaled(self, n) -> dict: ...
class Methods(dict):
    def table(self) -> pd.DataFrame: ...
    def __repr__(self): ...
def cakd_ramp(p) -> float: ...
METHODS: Methods
def find_method(name: str) -> Method: ...
def cite(method: str) -> str: ...
@dataclass(frozen=True)
class WarmCosine:
    start: float
    top: float
    end: float
    warm: float
    through: bool = ...
    def __call__(self, p): ...
@dataclass(frozen=True)
class Recipe:
    method: str
    numbers: dict
    ours: dict
    @property
    def loaders(self) -> dict: ...
    @property
    def views(self) -> Policy: ...
    @property
    def learner(self) -> dict: ...
    @property
    def fit(self) -> dict: ...
def recipe(method: str = 'co-advise', small: bool = False) -> Recipe: ...
class DistillLearner(Learner):
    def __init__(
        self,
        dls,
        model,
        loss_func=None,
        metrics=...,
        cbs=None,
        *,
        opt_func: Any = ...,
        lr: float | slice = ...,
        splitter: Any = ...,
        path: Any = None,
        model_dir: Any = 'models',
        wd: float | int | None = None,
        wd_bn_bias: bool = False,
        train_bn: bool = True,
        moms: tuple = (0.95, 0.85, 0.95),
        default_cbs: bool = True,
    ): ...
    @property
    def teachers(self) -> list[Teacher]: ...
    def distill_summary(self) -> pd.DataFrame: ...
    def playground(self, teachers=None, n=8, part='valid', beside=None, **kwargs) -> BiasPlayground: ...
    def explore_disagreement(self, teachers=None, part='valid', T=2.0, max_items=2000) -> Explorer: ...
    def explore_attention(self, rows=6, part='valid', teachers=None, **kwargs) -> AttentionView: ...
    def report(self, path='report.html', teachers=None, part='valid') -> Path: ...
    def explore_features(self, model=None, part='valid', teachers=None, method='pca', seed=0) -> FeatureMap: ...
def advisors(teachers, dls: DataLoaders, check: bool = True) -> list: ...
def student_heads(student, biases: dict, route: dict | None = None) -> dict: ...
def make_student(
    student,
    dls: DataLoaders,
    biases: dict,
    route: dict | None = None,
    student_kw: dict | None = None,
) -> nn.Module: ...
def default_method(student, n: int) -> str: ...
def labelled(dls: DataLoaders) -> DataLoaders: ...
def learner_dls(dls: DataLoaders, caches, seed: int | None = None) -> DataLoaders: ...
def sorted_arguments(given: dict) -> tuple: ...
def distill_learner(
    dls: DataLoaders,
    student='civt_pico',
    teachers=None,
    method: str | None = None,
    seed: int | None = None,
    resume=None,
    student_kw: dict | None = None,
    verbose: bool = True,
    *,
    check: bool = True,
    route: dict | None = None,
    loss=...,
    T=1.0,
    weights=1.0,
    label_weight=1.0,
    schedule: Callable | None = None,
    weigh: Callable | None = None,
    rule='align',
    layers: dict | None = None,
    advisor: str | None = None,
    features: LogitCache | None = None,
    feature_weight=1.0,
    ramp=None,
    stage_one: float = 1.0,
    loss_func=None,
    metrics=...,
    cbs=None,
    opt_func: Any = ...,
    lr: float | slice = ...,
    splitter: Any = ...,
    path: Any = None,
    model_dir: Any = 'models',
    wd: float | int | None = None,
    wd_bn_bias: bool = False,
    train_bn: bool = True,
    moms: tuple = (0.95, 0.85, 0.95),
    default_cbs: bool = True,
) -> DistillLearner: ...
def first_terms(learn: Learner, given: MultiTeacherDistill) -> tuple: ...
def methods_from(file, digest='') -> tuple: ...
