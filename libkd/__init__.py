"""Several small teachers with different inductive biases advise one small vision student, from stored logits.

`from libkd.all import *` brings the public names, as in fastai. `import libkd` alone loads nothing: a room is imported when it is first named.
"""
__version__ = "0.1.0"

_ROOMS = ('data', 'views', 'involution', 'teachers', 'cache', 'students', 'losses', 'distill', 'features', 'datafree', 'diagnose', 'plots', 'widgets', 'runs', 'evidence', 'arms', 'report', 'sharing', 'cli', 'all')


def did_you_mean(name, known, n=3): # What was asked for; the names there are; most to offer
    "The end of a sentence that refuses `name`: the names that come closest, or those that there are"
    import difflib
    known = [str(k) for k in known]
    close = list(dict.fromkeys(difflib.get_close_matches(str(name), known, n, .5)))
    if close: return f" Did you mean {' or '.join(map(repr, close))}?"
    return f" There are {', '.join(known[:20])}{', …' if len(known) > 20 else ''}."


def __getattr__(name):
    if name not in _ROOMS: raise AttributeError(f'module {__name__!r} has no attribute {name!r}.{did_you_mean(name, _ROOMS)}')
    from importlib import import_module
    return import_module(f'{__name__}.{name}')


def __dir__(): return sorted([*globals(), *_ROOMS])
