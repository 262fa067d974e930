"""Several small teachers with different inductive biases advise one small vision student, from stored logits.

`from libkd.all import *` brings the public names, as in fastai. `import libkd` alone loads nothing: a room is imported
when it is first named.
"""
__version__ = "0.1.0"

# From the ground up: a room imports only what stands before it.
_ROOMS = ('files', 'data', 'sets', 'identity', 'views', 'checkpoints', 'involution', 'teachers', 'losses', 'cache',
          'students', 'sharing', 'distill', 'features', 'handover', 'learner', 'datafree', 'diagnose', 'plots',
          'widgets', 'playground', 'runs', 'evidence', 'price', 'arms', 'report', 'course', 'cli', 'all')


class UserError(ValueError):
    "Something that whoever called can mend; its sentence says what was given, what is needed and how to get it"


class UnknownName(UserError, KeyError):
    "A name that nothing has; a `KeyError` that reads as a sentence, without quotes around it"
    __str__ = Exception.__str__


# What an error of these classes says is for whoever called: it speaks of what was given, or of the machine.
MENDABLE = (UserError, ValueError, TypeError, KeyError, OSError, MemoryError)


def error_named(name): # As another process reported it: 'ValueError', 'ChanceError'
    "The class of an error that whoever called can mend, or of any of Python's, found by its name; None: it is neither"
    import builtins
    if isinstance(found := getattr(builtins, name, None), type) and issubclass(found, BaseException): return found
    for room in ('all', 'course'): __getattr__(room)          # so that the errors of all rooms are there
    todo = list(MENDABLE)
    for cls in todo: todo += cls.__subclasses__()
    return next((cls for cls in todo if cls.__name__ == name), None)


def did_you_mean(name, known, n=3): # What was asked for; the names there are; most to offer
    "The end of a sentence that refuses `name`: the names that come closest, or those that there are"
    import difflib
    known = [str(k) for k in known]
    close = list(dict.fromkeys(difflib.get_close_matches(str(name), known, n, .5)))
    if close: return f" Did you mean {' or '.join(map(repr, close))}?"
    return f" There are {', '.join(known[:20])}{', …' if len(known) > 20 else ''}."


def moved(here, **rooms): # Name of the module; public name -> the room in which it stands now
    "A module's `__getattr__` that still answers for names that have moved to another room"
    def get(name):
        if name in rooms: return getattr(__getattr__(rooms[name]), name)
        raise AttributeError(f'module {here!r} has no attribute {name!r}')
    return get


def __getattr__(name):
    if name not in _ROOMS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}.{did_you_mean(name, _ROOMS)}')
    from importlib import import_module
    return import_module(f'{__name__}.{name}')


def __dir__(): return sorted([*globals(), *_ROOMS])
