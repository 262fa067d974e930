"""Several small teachers with different inductive biases advise one small vision student, from stored logits.

`from libkd.all import *` brings the public names, as in fastai. `import libkd` alone loads nothing: a room is imported when it is first named.
"""
__version__ = "0.1.0"

_ROOMS = ('data', 'views', 'involution', 'teachers', 'cache', 'students', 'losses', 'distill', 'features', 'datafree', 'diagnose', 'plots', 'widgets', 'runs', 'evidence', 'arms', 'report', 'sharing', 'cli', 'all')


def __getattr__(name):
    if name not in _ROOMS: raise AttributeError(f'module {__name__!r} has no attribute {name!r}; its rooms are {", ".join(_ROOMS)}')
    from importlib import import_module
    return import_module(f'{__name__}.{name}')


def __dir__(): return sorted([*globals(), *_ROOMS])
