"""What editors see: libkd/*.pyi agree with the live objects, checkers accept the front page and find its mistakes, completion lists methods."""
import ast, importlib, inspect, shutil, subprocess, sys
from pathlib import Path
import pytest
import libkd
from fresh import ten_lines

LIB = Path(libkd.__file__).parent
STUBS = {p.stem: ast.parse(p.read_text(encoding='utf-8')) for p in sorted(LIB.glob('*.pyi'))}
MISTAKES = {'a misspelt argument': "LogitCache.build('cache', dls, [conv, inv], view=4)",
            'a wrong type': "fit_teacher('resnet_mini', dls, epochs='three')",
            'a missing method': 'cache.verfy()',
            'a misspelt argument that is passed on': "distill_learner(dls, 'civt_nano', teachers=cache, label_wieght=.5)"}


def shown(args):
    "Names of parameters in a stub."
    return [a.arg for a in (*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg) if a]


def live(f): return list(inspect.signature(f).parameters)


@pytest.mark.parametrize('room', STUBS)
def test_functions_have_their_live_parameters(room):
    module, wrong = importlib.import_module(f'libkd.{room}'), []
    functions = {n.name: n for n in STUBS[room].body if isinstance(n, ast.FunctionDef)}
    for name in module.__all__:
        f = getattr(module, name)
        if inspect.isfunction(f) and f.__module__ == module.__name__ and not hasattr(f, '__wrapped__'):
            if name not in functions or shown(functions[name].args) != live(f): wrong.append(name)
    assert not wrong, f'not as they are, run `make prepare`: {wrong}'


@pytest.mark.parametrize('room', STUBS)
def test_classes_have_their_live_methods(room):
    import libkd.all      # higher rooms give methods to classes of lower ones
    module, wrong = importlib.import_module(f'libkd.{room}'), []
    for node in (n for n in STUBS[room].body if isinstance(n, ast.ClassDef)):
        members = {n.name: n for n in reversed(node.body) if isinstance(n, ast.FunctionDef)}      # a property before its setter
        for name, raw in vars(getattr(module, node.name)).items():
            f = getattr(raw, '__func__', raw)
            if isinstance(f, property): f = f.fget
            if name.startswith('_') or not inspect.isfunction(f) or not f.__module__.startswith('libkd'): continue
            if name not in members or shown(members[name].args) != live(f): wrong.append(f'{node.name}.{name}')
    assert not wrong, f'not as they are, run `make prepare`: {wrong}'


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "The ten lines, and below them a line for each mistake: {line number: mistake}."
    folder, code = tmp_path_factory.mktemp('page'), ten_lines().rstrip() + '\nstudent.explore_disagreement()\n'
    (folder/'right.py').write_text(code, encoding='utf-8')
    (folder/'wrong.py').write_text(code + '\n'.join(MISTAKES.values()) + '\n', encoding='utf-8')
    return folder, {len(code.splitlines()) + i: name for i, name in enumerate(MISTAKES, 1)}


def complaints(command, page):
    "{file: lines that a checker objects to}."
    said = subprocess.run(command, cwd=page, capture_output=True, text=True, env=None)
    found = {'right.py': set(), 'wrong.py': set()}
    for line in said.stdout.splitlines():
        for name in found:
            if f'{name}:' in line and ' error: ' in line: found[name].add(int(line.split(f'{name}:')[1].split(':')[0]))
    assert said.returncode in (0, 1), said.stdout + said.stderr
    return found


@pytest.mark.slow
@pytest.mark.parametrize('checker', ['mypy', 'pyright'])
def test_checkers_accept_the_front_page_and_find_its_mistakes(checker, page):
    folder, planted = page
    if checker == 'mypy':      # of other packages it needs nothing: minutes the first time
        (folder/'libkd').symlink_to(LIB)
        command = [sys.executable, '-m', 'mypy', '--no-site-packages', '--ignore-missing-imports', '--no-incremental']
    else:
        command = ['pyright', '--pythonpath', sys.executable]
        if not shutil.which('pyright') or subprocess.run(['pyright', '--version'], capture_output=True).returncode:
            pytest.skip('pyright is not here, or could not fetch its program')
    assert complaints([*command, 'right.py', 'wrong.py'], folder) == {'right.py': set(), 'wrong.py': set(planted)}, planted


@pytest.fixture(scope='module')
def jedi(tmp_path_factory):
    "With a memory of its own: workers side by side had read what another was writing"
    import jedi, jedi.settings
    with pytest.MonkeyPatch.context() as own:
        own.setattr(jedi.settings, 'cache_directory', str(tmp_path_factory.mktemp('jedi')))
        yield jedi


@pytest.mark.slow
@pytest.mark.parametrize('after, expected', [
    ('LogitCache.', {'build', 'open', 'from_arrays', 'unpack'}),
    ('cache.', {'verify', 'bind', 'add', 'pack', 'explore', 'info', 'spot_check'}),
    ('student.', {'explore_disagreement', 'explore_attention', 'explore_features', 'distill_summary', 'fit'}),
    ('distill_learner(', {'label_weight=', 'stage_one=', 'weigh=', 'cbs='})])
def test_completion_lists_methods_and_arguments(jedi, after, expected):
    code = ten_lines().rstrip() + '\n' + after
    project = jedi.Project(LIB.parent, added_sys_path=[str(LIB.parent)])
    missing = expected - {c.name for c in jedi.Script(code, project=project).complete()}
    assert not missing, missing


def test_completion_in_a_live_notebook_lists_methods(jedi):
    import libkd.all
    found = {c.name for c in jedi.Interpreter('LogitCache.', [vars(libkd.all)]).complete()}
    assert {'build', 'open', 'verify', 'bind', 'explore'} <= found
