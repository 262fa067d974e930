"""The house: notebooks and modules belong together, imports go down, pages can be read, and nothing is loaded that was not asked for."""
import ast, builtins, html, importlib, inspect, io, json, re, subprocess, sys, tokenize, tomllib
from configparser import ConfigParser
from functools import cache
from pathlib import Path
import pytest
from fastcore.docments import docments
import libkd

ROOT = Path(__file__).resolve().parents[1]
LIB, NBS = Path(libkd.__file__).parent, ROOT/'nbs'
ROOMS = {p.stem.split('_', 1)[1]: p for p in sorted(NBS.glob('[0-9][0-9]*_*.ipynb'))}      # name -> notebook
NUMBER = {name: p.stem.split('_', 1)[0] for name, p in ROOMS.items()}      # '03a' lies between 03 and 04
BY_HAND = {'__init__', '_modidx', 'all'}                                                 # modules without a notebook
PAGES = sorted(p for p in NBS.rglob('*.ipynb') if not any(o[0] in '_.' for o in p.relative_to(NBS).parts))
name_of = lambda p: p.relative_to(NBS).as_posix()
EXPORTED = re.compile(r'^#\|\s*exporti?\b', re.M)


@cache
def notebook(path): return json.loads(path.read_text(encoding='utf-8'))     # read once for all tests, which leave it as it is


@cache
def tree(room): return ast.parse((LIB/f'{room}.py').read_text(encoding='utf-8'))


def cells(path, kind='code'): return [c for c in notebook(path)['cells'] if c['cell_type'] == kind]
def text(cell): return ''.join(cell['source'])


def imported(room):
    "Rooms that a module imports, wherever in the file."
    found = set()
    for node in ast.walk(tree(room)):
        if isinstance(node, ast.Import): names = [a.name.split('.') for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level: names = [['libkd', *(node.module or '').split('.')], *(['libkd', a.name] for a in node.names if not node.module)]
        elif isinstance(node, ast.ImportFrom): names = [node.module.split('.'), *(['libkd', a.name] for a in node.names if node.module == 'libkd')]
        else: continue
        found |= {n[1] for n in names if n[0] == 'libkd' and len(n) > 1}
    return (found & ROOMS.keys()) - {room}


def architecture():
    "{module: numbers it may import}, from the table of nbs/architecture.ipynb."
    rows = re.findall(r'^\| \[(\d\d[a-z]?)_\w+\].*?\| `libkd\.(\w+)` \|.*\| ([^|]*) \|$', '\n'.join(text(c) for c in cells(NBS/'architecture.ipynb', 'markdown')), re.M)
    numbers, allowed = sorted(NUMBER.values()), {}
    for number, room, may in rows:
        allowed[room] = set()
        for part in may.split(','):
            first, last = (re.findall(r'\d\d[a-z]?', part) + [None, None])[:2]
            if 'all' in part: allowed[room] |= {n for n in numbers if n < number}
            elif first: allowed[room] |= {n for n in numbers if first <= n <= (last or first)}
    return allowed


def test_every_module_has_its_notebook():
    assert {p.stem for p in LIB.glob('*.py')} - BY_HAND == set(ROOMS)
    assert sorted(set(NUMBER.values())) == sorted(NUMBER.values()), 'two rooms have one number'


@pytest.mark.parametrize('room', ROOMS)
def test_imports_go_down(room):
    up = {o for o in imported(room) if NUMBER[o] >= NUMBER[room]}
    assert not up, f'{NUMBER[room]}_{room} imports {up}, which stand above it'


@pytest.mark.parametrize('room', ROOMS)
def test_imports_are_those_of_the_architecture(room):
    table = architecture()
    assert room in table, f'{room} is missing in the table of nbs/architecture.ipynb'
    surplus = {o for o in imported(room) if NUMBER[o] not in table[room]}
    assert not surplus, f'{room} imports {surplus}; the table of nbs/architecture.ipynb does not say so'


def test_the_drawing_shows_these_imports():
    outputs = ''.join(''.join(o.get('data', {}).get('text/html', '')) for c in cells(NBS/'architecture.ipynb') for o in c['outputs'])
    drawn = html.unescape(re.search(r'<img[^>]* alt="(The rooms of libkd[^"]*)"', outputs)[1])
    for room in ROOMS:
        lowers = ', '.join(sorted(imported(room), key=NUMBER.get)) or 'no other room'
        assert f'{NUMBER[room]} {room} imports {lowers}' in drawn, 'execute nbs/architecture.ipynb again'
    assert drawn.count(' imports ') == len(ROOMS)


@pytest.mark.parametrize('path', PAGES, ids=name_of)
def test_first_cell_has_title_and_promise(path):
    first = text(notebook(path)['cells'][0])
    front = first.startswith('---') and all(re.search(rf'^{key}: \S', first, re.M) for key in ('title', 'description'))
    assert front or re.match(r'# \S.*\n+> \S', first), 'the first cell is `# Title` and, below it, `> what you can do after reading`'


@pytest.mark.parametrize('path', ROOMS.values(), ids=name_of)
def test_exported_cells_fit_on_a_screen(path):
    def lines(cell):      # of code: without directives, imports, comments, docstrings and the documented parameters of a signature
        tree = ast.parse(text(cell))
        docs = sum(n.end_lineno - n.lineno + 1 for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) and isinstance(n.value.value, str))
        heads = sum(n.body[0].lineno - n.lineno - 1 for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.body[0].lineno > n.lineno)
        return len([o for o in text(cell).splitlines() if o.strip() and not o.startswith(('#', 'import ', 'from '))]) - docs - heads
    long = {text(c).splitlines()[1]: lines(c) for c in cells(path) if EXPORTED.search(text(c)) and lines(c) > 25}
    assert not long, f'split these cells: {long}'


@pytest.mark.parametrize('path', PAGES, ids=name_of)
def test_no_line_of_code_is_longer_than_120_columns(path):
    long = [line for c in cells(path) for line in text(c).splitlines() if len(line) > 120]
    assert not long, f'break these lines, one thought each: {long}'


@pytest.mark.parametrize('path', sorted(LIB.glob('[!_]*.py')), ids=lambda p: p.name)
def test_no_line_of_a_module_is_longer_than_120_columns(path):
    long = [line for line in path.read_text(encoding='utf-8').splitlines() if len(line) > 120]
    long = [line for line in long if not line.startswith('__all__ = ')]      # nbdev's own line, which it wraps a word too late
    assert not long, f'break these lines, one thought each: {long}'


# Tokens a function, of all rooms together: what is reached. The house aims at 60, 90 and 250, without confetti.
MEDIAN, WEIGHTED, LARGEST, MOST_FUNCTIONS = 60, 90, 238, 2063
STILL_LONGER = set()
WORDS = tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING


def tokens(fn, lines):
    "Names, operators, numbers and texts of a function's body, without its docstring and comments."
    body = fn.body[ast.get_docstring(fn) is not None:]
    if not body: return 0
    first, *rest = lines[body[0].lineno - 1:body[-1].end_lineno]
    code = '\n'.join(['(' + first[body[0].col_offset:], *rest, ')'])           # in brackets no line begins or ends anything
    return sum(t.type in WORDS for t in tokenize.generate_tokens(io.StringIO(code).readline)) - 2


def functions(node):
    "Those inside a node, without those inside them."
    for o in ast.iter_child_nodes(node):
        if isinstance(o, ast.FunctionDef): yield o
        else: yield from functions(o)


def is_kernel(fn): return 'jit' in {a.arg for a in fn.args.args} or any('jit' in ast.unparse(d) for d in fn.decorator_list)


def measured(node, room, lines):
    "(room.function, tokens) of all functions in a node; kernels apart, which a compiler wants whole, and inner ones for themselves."
    for fn in functions(node):
        if is_kernel(fn): continue
        yield f'{room}.{fn.name}:{fn.lineno}', tokens(fn, lines) - sum(tokens(o, lines) for o in functions(fn))
        yield from measured(fn, room, lines)


def lengths():
    "{room.function: tokens}"
    sources = {room: (LIB/f'{room}.py').read_text(encoding='utf-8') for room in ROOMS}
    return dict(o for room, s in sources.items() for o in measured(ast.parse(s), room, s.splitlines()))


def test_functions_are_short_and_not_confetti():
    found = lengths()
    sizes = sorted(found.values())
    reached, half = 0, sum(sizes)/2
    weighted = next(n for n in sizes if (reached := reached + n) >= half)      # half of all tokens stand in functions of so many
    long = {k: n for k, n in found.items() if n > LARGEST and k.split(':')[0] not in STILL_LONGER}
    assert not long, f'name a step of these: {long}'
    assert sizes[len(sizes)//2] <= MEDIAN and weighted <= WEIGHTED, (sizes[len(sizes)//2], weighted)
    assert len(sizes) <= MOST_FUNCTIONS, len(sizes)


def is_patch(node): return any('patch' in ast.unparse(d) for d in getattr(node, 'decorator_list', ()))


def names_given(node):
    "By a statement of a module, to a function, a class or values"
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not is_patch(node): return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}


def test_a_private_name_has_one_meaning():
    rooms = {}
    for room in ROOMS:
        for node in tree(room).body:
            for name in names_given(node): rooms.setdefault(name, set()).add(room)
    twice = {n: r for n, r in rooms.items() if n[0] == '_' and n[:2] != '__' and len(r) > 1}
    assert twice.keys() <= {'_root', '_flat', '_compiled', '_pixels'}, f'give one of each another name: {twice}'


def methods(room):
    "(class, method) of those that a room writes into its classes or patches into others; setters belong to their property"
    for node in tree(room).body:
        if is_patch(node): yield ast.unparse(node.args.args[0].annotation), node.name
        own = [f for f in node.body if isinstance(f, ast.FunctionDef)] if isinstance(node, ast.ClassDef) else []
        yield from ((node.name, f.name) for f in own if not any('setter' in ast.unparse(d) for d in f.decorator_list))


def test_no_function_or_method_replaces_another():
    "The second of a name would silently take the place of the first"
    found = [m for room in ROOMS for m in methods(room)]
    found += [(room, n.name) for room in ROOMS for n in tree(room).body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not is_patch(n)]
    assert len(found) > 400 and not (twice := {m for m in found if found.count(m) > 1}), twice


def functions_that_raise(room, error):
    "Names of the functions of a room that raise this class, by name"
    for node in ast.walk(tree(room)):
        if not isinstance(node, ast.FunctionDef): continue
        raised = [n.exc for n in ast.walk(node) if isinstance(n, ast.Raise)]
        if error in {getattr(getattr(e, 'func', e), 'id', '') for e in raised}: yield f'{room}.{node.name}'


def test_what_users_can_mend_is_a_user_error():
    "A bare `ValueError` stays inside: a value that is no such kind, a question that no page asks"
    assert {f for room in ROOMS for f in functions_that_raise(room, 'ValueError')} == {'runs._read', 'widgets.answer'}
    assert not [f for room in ROOMS for f in functions_that_raise(room, 'KeyError')]       # whose text stands in quotes


def test_an_unknown_name_reads_as_a_sentence():
    with pytest.raises(KeyError) as e: importlib.import_module('libkd.losses').get_loss('kdd')
    assert isinstance(e.value, libkd.UserError) and str(e.value).startswith("No loss is called 'kdd'. Did you mean 'kd'")


def code_of(cell): return ast.parse(re.sub(r'(?m)^\s*[%!].*$', '', text(cell)))


def visible(cell): return not re.search(r'^#\|\s*(export|hide)', text(cell), re.M)


def shown_by_name():
    "{room.name: whether one of the next three cells that a reader sees as code names it}, of functions and classes in `__all__`."
    found = {}
    for room, path in ROOMS.items():
        public, page = set(importlib.import_module(f'libkd.{room}').__all__), cells(path)
        for i, cell in enumerate(page):
            if not EXPORTED.search(text(cell)): continue
            after = '\n'.join([text(c) for c in page[i+1:] if visible(c)][:3])
            for node in code_of(cell).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in public:
                    found[f'{room}.{node.name}'] = bool(re.search(rf'\b{node.name}\b', after))
    return found


def test_what_is_exported_is_shown_by_name_soon_after():
    found = shown_by_name()
    assert sum(found.values())/len(found) >= .95, f'show these: {[name for name, shown in found.items() if not shown]}'


def test_what_is_exported_stands_in_a_cell_that_a_reader_sees():
    found = {}
    for room, path in ROOMS.items():
        seen = '\n'.join(text(c) for c in cells(path) if visible(c))
        found |= {f'{room}.{n}': bool(re.search(rf'\b{n}\b', seen)) for n in importlib.import_module(f'libkd.{room}').__all__}
    assert all(found.values()), f'show these: {[name for name, shown in found.items() if not shown]}'


def defined(cell):
    "Names that a cell gives to functions, classes, values and what it imports; not those that it patches into a class."
    for node in code_of(cell).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)): yield from ((a.asname or a.name).split('.')[0] for a in node.names)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not any('patch' in ast.unparse(d) for d in node.decorator_list): yield node.name
        if isinstance(node, ast.Assign): yield from (n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name))


def uses_what_comes_later(path):
    "(cells that name what only a later cell defines, all code cells)"
    page = cells(path)
    first = {name: i for i, cell in reversed(list(enumerate(page))) for name in defined(cell)}
    early = 0
    for i, cell in enumerate(page):
        nodes = list(ast.walk(code_of(cell)))
        own = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)} | {n.arg for n in nodes if isinstance(n, ast.arg)}
        own |= {n.asname or n.name for n in nodes if isinstance(n, ast.alias)}
        early += any(first.get(n.id, -1) > i for n in nodes if isinstance(n, ast.Name) and n.id not in own and not hasattr(builtins, n.id) and n.id != '__file__')
    return early, len(page)


def test_few_cells_use_what_is_defined_later():
    early, all_ = map(sum, zip(*map(uses_what_comes_later, ROOMS.values())))
    assert early/all_ <= .009, f'{early} of {all_} cells'


@pytest.mark.parametrize('path', PAGES, ids=name_of)
def test_notebook_is_light_and_clean(path):
    nb = notebook(path)
    assert path.stat().st_size < 1_000_000
    assert 'widgets' not in nb['metadata'], 'widget state does not belong into git'
    outputs = [o for c in nb['cells'] if c['cell_type'] == 'code' for o in c['outputs']]
    assert not [o for o in outputs if o['output_type'] == 'error'], 'an error was committed'
    assert not re.search(r'/(root|home|Users|work|tmp)/\w', json.dumps([o.get('text', '') or o.get('data', {}).get('text/plain', '') for o in outputs])), 'a path of somebody\'s machine'


@pytest.mark.parametrize('path', PAGES, ids=name_of)
def test_notebook_has_its_outputs(path):
    def shows(code):      # the last line is a value that a reader expects to see
        last = ast.parse(re.sub(r'(?m)^\s*[%!].*$', '', code)).body[-1:]
        quiet = not last or not isinstance(last[0], ast.Expr) or code.rstrip().endswith(';')
        return not quiet and isinstance(last[0].value, (ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.List, ast.Dict, ast.BinOp, ast.JoinedStr))
    visible = [c for c in cells(path) if not re.search(r'^#\|\s*(hide\b|eval:\s*false|export|include:\s*false|output:\s*false)', text(c), re.M)]
    silent = [text(c)[-60:] for c in visible if shows(text(c)) and not c['outputs']]
    assert not silent, f'execute the notebook: no output below {silent}'


@pytest.mark.parametrize('path', PAGES, ids=name_of)
def test_pictures_have_a_text(path):
    for c in cells(path):
        for out in c['outputs']:
            data = {k: ''.join(v) if isinstance(v, list) else v for k, v in out.get('data', {}).items()}
            page = data.get('text/html', '')
            assert not re.search(r'<img(?![^>]*\balt="[^"])', page), f'a picture without alt text below {text(c)[:60]!r}'
            if 'image/png' in data and not page: assert '#| fig-alt:' in text(c), f'no `#| fig-alt:` above {text(c)[:60]!r}'


def test_import_libkd_loads_nothing_heavy():
    code = "import sys; before = set(sys.modules); import libkd; print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == ['libkd']


@pytest.mark.slow
def test_a_room_is_loaded_when_it_is_named():
    assert set(ROOMS) <= set(dir(libkd))
    code = "import sys, libkd; libkd.losses.kd_loss; assert 'libkd.losses' in sys.modules and 'libkd.data' not in sys.modules and 'losses' in dir(libkd)"
    subprocess.run([sys.executable, '-c', code], check=True)
    with pytest.raises(AttributeError, match='lossess'): libkd.lossess


@pytest.mark.slow
def test_all_leaves_papermill_and_front_ends_alone():
    code = ("import sys, warnings; warnings.simplefilter('ignore'); import libkd.all;"
            "print(*{'papermill', 'nbclient', 'nbformat', 'anywidget', 'ipywidgets', 'nbdev', 'dask', 'sphinx'} & sys.modules.keys())")
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split() == []


def test_all_brings_the_public_names_of_all_rooms():
    public, owner = importlib.import_module('libkd.all'), {}
    for room in ROOMS:
        for name in importlib.import_module(f'libkd.{room}').__all__:
            assert owner.setdefault(name, room) == room, f'{name} is public in {owner[name]} and in {room}'
            if room not in ('cli', 'course'): assert hasattr(public, name)      # lessons import `check` by its room


def expected_by_others(cls, key):
    "Methods whose meaning fastai, timm or torch defines need no docstring of ours."
    from fastai.callback.core import event
    from timm.models import VisionTransformer
    return any(key in vars(base) for base in cls.__mro__[1:]) or hasattr(event, key) or hasattr(VisionTransformer, key)


def public_functions():
    for room in ROOMS:
        module = importlib.import_module(f'libkd.{room}')
        for name in module.__all__:
            obj = getattr(module, name)
            if inspect.isfunction(obj) or inspect.isclass(obj): yield f'{room}.{name}', obj
            if inspect.isclass(obj):
                for key, raw in vars(obj).items():
                    raw = getattr(raw, '__func__', raw)
                    if not key.startswith('_') and inspect.isfunction(raw) and raw.__module__ == module.__name__ and not expected_by_others(obj, key): yield f'{room}.{name}.{key}', raw


def test_public_names_are_documented():
    bare, obscure = [], []
    for name, obj in public_functions():
        if not (obj.__doc__ or '').strip() or (inspect.isclass(obj) and '__doc__' not in vars(obj)): bare.append(name)
        if not inspect.isfunction(obj): continue
        docs = docments(obj, full=True, returns=False)
        unknown = [k for k, v in docs.items() if k not in ('self', 'cls', 'kwargs', 'args') and not v['docment'] and not re.search(rf'`{k}`', obj.__doc__ or '')]
        if unknown and '.' not in name.split('.', 1)[1]: obscure.append(f'{name}({", ".join(unknown)})')
    assert not bare, f'no docstring: {bare}'
    assert not obscure, f'parameters that neither a docment nor the docstring explains: {obscure}'


def glossary():
    "Names of parameters that mean the same in all rooms: the table of nbs/architecture.ipynb."
    page = '\n'.join(text(c) for c in cells(NBS/'architecture.ipynb', 'markdown'))
    table = page.split('### Names that need no comment')[1].split('\n#')[0]
    return {name for row in re.findall(r'^\| (`.*?) \|', table, re.M) for name in re.findall(r'`(\w+)`', row)}


def unsaid(source, known):
    "`function(parameter)` of all that neither a type, a comment, the docstring nor the glossary explains."
    spoken = {t.start[0] for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}
    above = {i + 1 for i, line in enumerate(source.splitlines(), 1) if line.lstrip().startswith('# ')}
    for fn in functions(ast.parse(source)):
        if fn.lineno in spoken and fn.body[0].lineno <= fn.lineno + 1: continue       # a signature of one line: it speaks of all
        in_docs = re.findall(r'\w+', ' '.join(re.findall(r'`.*?`', ast.get_docstring(fn) or '')))
        for p in (*fn.args.posonlyargs, *fn.args.args, *fn.args.kwonlyargs):
            said = p.annotation or p.lineno in spoken | above or p.arg in {'self', 'cls', *known, *in_docs}
            if not said: yield f'{fn.name}({p.arg})'


@pytest.mark.parametrize('path', ROOMS.values(), ids=name_of)
def test_each_parameter_says_what_it_is(path):
    known = glossary()
    silent = [o for c in cells(path) if EXPORTED.search(text(c)) for o in unsaid(text(c), known)]
    assert len(known) > 40 and not silent, f'a type, a comment beside it or on the line of its def: {silent}'


def test_a_parameter_that_says_nothing_is_found():
    source = '''
def f(a, b: int,
      c, # A column
      d, dls):
    "`d`: days"
def g(a, b): # Both in metres
    def inner(x): return x
def h(a, # Of the first line
      b):
    pass
'''
    assert list(unsaid(source, {'dls'})) == ['f(a)', 'h(b)']


def test_versions_agree():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    version = config['DEFAULT']['version']
    assert f'__version__ = "{version}"' in (LIB/'__init__.py').read_text()
    assert re.search(r'^## (\S+)', (ROOT/'CHANGELOG.md').read_text(), re.M)[1] == version


@pytest.mark.parametrize('path', [*sorted(LIB.glob('[!_]*.py')), *sorted((ROOT/'tests').glob('*.py'))], ids=lambda p: p.name)
def test_nothing_is_left_undone(path):
    if path == Path(__file__).resolve(): return
    assert not re.search(r'\b(TODO|FIXME|XXX|NotImplementedError)\b', path.read_text(encoding='utf-8'))


def test_each_break_edits_a_line_that_is_there():
    "Or it is noticed only where all breaks are run"
    breaks = [b for f in sorted((ROOT/'tests'/'breaks').glob('*.toml')) for b in tomllib.loads(f.read_text(encoding='utf-8'))['break']]
    edits = [(b['promise'], b['old'], ROOT/Path(*b['module'].split('.')).with_suffix('.py')) for b in breaks if 'old' in b]
    lost = [promise for promise, old, file in edits if file.read_text(encoding='utf-8').count(old) != 1]
    assert len(edits) > 500 and not lost, f'their line has changed: {lost}'
