"""Three sets of pictures without a download: two drawn, one photographed."""
# Made from the modules by `make prepare`: do not edit
from pathlib import Path
from typing import Any

__all__ = ['SETS', 'digits', 'cluttered_digits', 'clothes', 'folder_of']

def digits(size: int = 8, seed: int = 0) -> Path: ...
def cluttered_digits(
    train: int = 300,
    unlabelled: int = 2700,
    valid: int = 1000,
    test: int = 1000,
    size: int = 16,
    fragments=(1, 2),
    noise: float = 0.03,
    seed: int = 0,
) -> Path: ...
def clothes(labels: int = 0, seed: int = 0) -> Path: ...
SETS: Any
def folder_of(data: str | Path) -> Path: ...
