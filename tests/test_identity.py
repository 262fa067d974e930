"What a result depends on, in content: equal in every process, and different wherever the result may differ."
import importlib, functools, json, os, random, subprocess, sys
import numpy as np, pytest, torch
from fastai.vision.augment import FlipItem, RandTransform, RandomErasing, RandomResizedCrop, Resize
from torch import nn
from torchvision.transforms import v2
from libkd.identity import IdentityError, difference_lines, differences, identity, known_as, schedule_identity

SCALE = 2


class Cut:
    "A transform of the user's: plain attributes, a generator of its own"
    def __init__(self, p): self.p, self.rng, self.table = p, random.Random(0), np.arange(4)
    def __call__(self, im): return im if self.rng.random() > self.p else None


def scaled(by, plus=0): return lambda x: x*by + plus
def uses_global(x): return x*SCALE
def keyword(x, *, by=1): return x*by


PAIRS = {
    'closure': (scaled(1), scaled(2)),
    'default': (lambda x, k=1: x*k, lambda x, k=2: x*k),
    'keyword default': (keyword, functools.partial(keyword, by=2)),
    'partial': (functools.partial(keyword, by=1), functools.partial(keyword, by=2)),
    'lambda on one line': (lambda x: x + 1, lambda x: x + 2),
    'attribute': (Cut(.1), Cut(.2)),
    'array': (np.zeros(3), np.ones(3)),
    'dtype': (np.zeros(3), np.zeros(3, np.float32)),
    'shape': (np.zeros((2, 3)), np.zeros((3, 2))),
    'dict': (dict(a=1), dict(a=2)),
    'nested': ([dict(a=[1])], [dict(a=[2])]),
    'number or text': (1, '1'),
    'RandomApply': tuple(v2.RandomApply([v2.RandomInvert(1.)], p=p) for p in (.1, .9)),
    'RandomChoice': tuple(v2.RandomChoice([v2.RandomInvert(1.), v2.RandomSolarize(9, 1.)], p=p) for p in ([.1, .9], [.9, .1])),
    'container': tuple(k([v2.RandomInvert(1.)]) for k in (v2.RandomChoice, v2.Compose)),
    'order': (v2.Compose([v2.RandomInvert(1.), v2.RandomEqualize(1.)]), v2.Compose([v2.RandomEqualize(1.), v2.RandomInvert(1.)])),
    'Lambda': (v2.Lambda(scaled(1)), v2.Lambda(scaled(2))),
    'module class': (nn.ReLU(), nn.GELU()),
    'module setting': (nn.LeakyReLU(.1), nn.LeakyReLU(.2)),
    'bound method': (Cut(.1).__call__, Cut(.2).__call__),
}


@pytest.mark.parametrize('kind', PAIRS)
def test_what_differs_is_seen(kind):
    a, b = PAIRS[kind]
    assert identity(a) != identity(b)
    assert differences(identity(a), identity(b))
    json.dumps(identity(a))


def test_globals_count(monkeypatch):
    before = identity(uses_global)
    monkeypatch.setitem(globals(), 'SCALE', 3)
    assert identity(uses_global) != before


@pytest.mark.parametrize('a, b', [(np.float32(.5), .5), (np.int64(3), 3), (scaled(1), scaled(1)), (Cut(.1), Cut(.1)), ((1, 2), [1, 2])])
def test_what_is_equal_is_equal(a, b): assert identity(a) == identity(b)


def test_a_generator_that_was_used_changes_nothing():
    cut = Cut(.5)
    before = identity(cut)
    cut(0)
    assert identity(cut) == before


def test_tensors_count_and_the_mode_does_not():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    before = identity(net)
    assert identity(net.eval()) == before
    net[1].running_mean[0] += 1
    assert identity(net) != before
    assert identity(torch.ones(2, dtype=torch.bfloat16)) != identity(torch.zeros(2, dtype=torch.bfloat16))


@pytest.mark.slow
def test_the_next_process_says_the_same(tmp_path):
    (tmp_path/'own.py').write_text('K = 3\ndef f(x): return (lambda y: y*K)(x)\nclass T:\n    def __init__(self): self.g = lambda z: z + K\n')
    code = 'import json, own; from libkd.identity import identity; print(json.dumps(identity([own.f, own.T()])))'
    said = [subprocess.run([sys.executable, '-c', f'import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}'], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert said[0] == said[1] and ' at 0x' not in said[0]
    (tmp_path/'own.py').write_text((tmp_path/'own.py').read_text().replace('K = 3', 'K = 4'))
    again = subprocess.run([sys.executable, '-c', f'import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}'], capture_output=True, text=True, check=True).stdout
    assert again != said[0]


def test_a_circle_ends():
    o = Cut(.1)
    o.me = o
    assert 'itself' in json.dumps(identity(o))


def test_a_schedule_is_its_values():
    assert schedule_identity(lambda p: 1 - p) == schedule_identity(lambda q: -q + 1)
    assert schedule_identity(lambda p: 1 - p) != schedule_identity(lambda p: 1 - p*p)


def test_what_says_nothing_is_refused_or_named():
    class Bare: __slots__ = ()
    with pytest.raises(IdentityError, match='known_as'): identity(Bare())
    assert identity(known_as(len, 'one')) != identity(known_as(len, 'two'))


def test_lines_for_people():
    lines = difference_lines(differences(dict(p=.1, q=[1, 2]), dict(p=.2, q=[1])))
    assert 'p: kept 0.1, asked for 0.2' in lines and 'q: kept [1, 2], asked for [1]' in lines


# -- things that hide what they are ---------------------------------------------------------------------------------------

def hidden():
    "Pairs of things that differ where neither attributes nor text show it"
    import collections, functools, itertools, operator
    import pandas as pd
    from PIL import Image
    frame, other = (pd.DataFrame({'a': [0]*500 + [v] + [0]*500}) for v in (1, 2))
    black, dotted = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    dotted[2, 2] = 9
    def cached(n): return functools.lru_cache(lambda v: v + n)
    def hooked(n):
        torch.manual_seed(0)
        net = nn.Linear(2, 2)
        net.register_forward_hook(lambda m, i, out: out*n)
        return net
    def made(n): return type('Made', (), {'__call__': eval(f'lambda self, v: v + {n}')})()
    def _with(n):
        it = type('Any', (), {})()
        it.__dict__['__hidden__'] = n
        return it
    return {'lru_cache': (cached(1), cached(2)), 'cycle': (itertools.cycle([1]), itertools.cycle([2])), 'deque': (collections.deque([1]), collections.deque([2])),
            'table': (frame, other), 'column': (frame['a'], other['a']), 'picture': (Image.fromarray(black), Image.fromarray(dotted)),
            'sparse': (torch.eye(3).to_sparse(), 2*torch.eye(3).to_sparse()), 'hook': (hooked(1), hooked(2)), 'class without source': (made(1), made(2)),
            'dunder attribute': (_with(1), _with(2)), 'memoryview': (memoryview(b'a'), memoryview(b'b')), 'staticmethod': (staticmethod(cached(1)), staticmethod(cached(2))),
            'objects in an array': (np.array([1, [2]], object), np.array([1, [3]], object)), 'methodcaller': (operator.methodcaller('a', 1), operator.methodcaller('a', 2))}


@pytest.mark.parametrize('kind', hidden())
def test_what_hides_is_found(kind):
    a, b = hidden()[kind]
    assert identity(a) != identity(b) and identity(a) == identity(hidden()[kind][0])


FACTOR = 1
class Reads:
    "A class whose method reads a global, and a value that stands in the class"
    offset = 0
    def __call__(self, v): return v*FACTOR + self.offset


def test_what_methods_refer_to_counts(monkeypatch):
    class Net(nn.Module):
        def forward(self, x): return x*FACTOR
    for it in (Reads(), Net()):
        before = identity(it)
        monkeypatch.setattr(sys.modules[__name__], 'FACTOR', 2)
        assert identity(it) != before
        monkeypatch.undo()
        assert identity(it) == before
    before = identity(Reads())
    monkeypatch.setattr(Reads, 'offset', 1)
    assert identity(Reads()) != before


def test_what_only_moves_on_is_refused():
    with pytest.raises(IdentityError, match='generator'): identity(i for i in range(3))


def test_classes_that_refer_to_each_other_are_told_once():
    "Seven classes that all name each other: told as a tree, they would be a megabyte, ten of them a gigabyte"
    names = [f'C{i}' for i in range(7)]
    scope = dict(__name__=__name__)
    exec('\n'.join(f'class {n}:\n    def f(self): return {", ".join(names)}' for n in names), scope)
    assert 1_000 < len(json.dumps(identity(scope['C0']()))) < 20_000


def test_a_class_is_told_where_it_stands_for_itself():
    "As a value, in a list, as a global: its source is there, once"
    for it in (Reads, [Reads], dict(a=Reads)): assert 'self.offset' in json.dumps(identity(it))
    def makes(): return Reads()
    assert 'self.offset' in json.dumps(identity(makes)) and json.dumps(identity([Reads, Reads, makes])).count('self.offset') == 1


def test_packages_of_another_environment_are_libraries(tmp_path, monkeypatch):
    "A user's folder of packages, or the system's below a virtual environment: not the user's own code"
    from libkd.identity import _of_library
    for folder, library in (('site-packages', True), ('dist-packages', True), ('mine', False)):
        at = tmp_path/folder; at.mkdir()
        (at/f'lib_{folder[:4]}.py').write_text('def f(x): return x')
        monkeypatch.syspath_prepend(at)
        assert _of_library(importlib.import_module(f'lib_{folder[:4]}').f) is library


def test_what_an_installer_wrote_down_is_a_library_in_any_folder(tmp_path, monkeypatch):
    "`pip install --target FOLDER`: the packages there are, a script of the user's beside them is not"
    from libkd.identity import _of_library
    record = tmp_path/'told-1.0.dist-info'/'RECORD'
    record.parent.mkdir()
    for name, text in {'told_pkg/__init__.py': '', 'told_pkg/part.py': 'def f(x): return x', 'told_mine.py': 'def f(x): return x'}.items():
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text(text)
    record.write_text('told_pkg/__init__.py,,\ntold_pkg/part.py,sha256=abc,18\n')
    monkeypatch.syspath_prepend(tmp_path)
    it = importlib.import_module
    assert _of_library(it('told_pkg')) and _of_library(it('told_pkg.part').f) and not _of_library(it('told_mine').f)


def test_what_is_run_is_the_users_own_also_under_a_package():
    "`python -m pytest` puts pytest's own file into the place of `__main__`"
    def reads(number):
        there = dict(BY=number, __name__='__main__')
        exec('def f(x): return x*BY', there)
        return there['f']
    with pytest.MonkeyPatch.context() as m:
        m.setitem(sys.modules, '__main__', pytest)
        assert identity(reads(.3)) != identity(reads(.8)) and identity(reads(.3)) == identity(reads(.3))


def attribute(im): return im.size
class Wraps(nn.Module):
    def __init__(self): super().__init__(); self.size = nn.Identity()
    def forward(self, x): return self.size(x)


@pytest.mark.parametrize('made', [lambda: attribute, Wraps], ids=['function', 'network'])
def test_an_attribute_is_no_global_of_that_name(made, monkeypatch):
    "In a notebook `self.model` and a variable `model` live side by side: a student that trains must not change its teacher's fingerprint"
    before = identity(made())
    for value in (3, nn.Linear(2, 2)):
        monkeypatch.setitem(globals(), 'size', value)
        assert identity(made()) == before


@pytest.mark.slow
def test_a_set_in_code_without_source_has_no_order():
    code = "def f(im): return im.mode in {'L', 'P', 'RGB', 'CMYK', 'LA'}\nprint(identity(f))"
    run = lambda seed: subprocess.run([sys.executable, '-c', 'from libkd.identity import identity\n' + code], capture_output=True, text=True, check=True, env=os.environ | {'PYTHONHASHSEED': seed}).stdout
    assert run('1') == run('2')


class Tilt(RandTransform):
    "A user's transform: `most` is given, `angle` is drawn"
    def __init__(self, most, **kwargs):
        super().__init__(**kwargs)
        self.most = most
    def before_call(self, b, split_idx):
        super().before_call(b, split_idx)
        self.angle = np.random.uniform(self.most)


@pytest.mark.parametrize('make', [lambda: Resize(6), lambda: RandomResizedCrop(6), lambda: FlipItem(.3), RandomErasing, lambda: Tilt(5)],
                         ids=['Resize', 'RandomResizedCrop', 'FlipItem', 'RandomErasing', "a user's"])
def test_a_transform_of_fastai_is_what_it_was_made_with(make):
    "fastcore 1 keeps a list of the arguments, fastcore 2 none; what was drawn last counts under neither"
    t = make()
    vars(t).pop('before_call', None)                   # a method that fastai 2.8.7 keeps in the object
    said = identity(t)
    t.angle = t.pcts = t.tl = .7
    assert identity(t) == said
    vars(t).pop('__stored_args__', None)
    assert identity(t) == said


def test_what_a_users_transform_was_given_counts(): assert identity(Tilt(5)) != identity(Tilt(6))
