"""What a user gets: the wheel has notebooks, front-end files and types, and works away from the repository."""
import os, subprocess, sys, sysconfig, tarfile, venv, zipfile
from pathlib import Path
import pytest
from fresh import ROOT, build_wheel

pytestmark = pytest.mark.slow
STATIC = {f'libkd/static/{p.name}' for p in (ROOT/'libkd'/'static').glob('*') if p.suffix in ('.js', '.css', '.zip')}
STUBS = {f'libkd/{p.name}' for p in (ROOT/'libkd').glob('*.pyi')}
NOTEBOOKS = {f'libkd/notebooks/{p.relative_to(ROOT/"nbs").as_posix()}' for f in ('runs', 'tutorials') for p in (ROOT/'nbs'/f).glob('[!_.]*.ipynb')}
PREPARED = {f'libkd/notebooks/{p.relative_to(ROOT/"nbs").as_posix()}' for p in (ROOT/'nbs'/'tutorials'/'prepared').rglob('*')
            if p.is_file() and '_work' not in p.parts}


@pytest.fixture(scope='module')
def built(tmp_path_factory): return build_wheel(tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def python(built, tmp_path_factory):
    "An environment that has the wheel, and sees the packages (but not the editable libkd) of this one."
    env = tmp_path_factory.mktemp('env')
    venv.create(env, with_pip=False)
    python = env/'bin'/'python'
    site = Path(subprocess.check_output([python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'], text=True).strip())
    with zipfile.ZipFile(built[0]) as z: z.extractall(site)
    (site/'these.pth').write_text(sysconfig.get_path('purelib'))
    return python


def run(python, code, cwd):
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    done = subprocess.run([python, '-W', 'ignore', '-c', code], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_wheel_has_all_that_is_needed(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    assert {'libkd/py.typed', 'libkd/all.py'} | STUBS | STATIC | NOTEBOOKS | PREPARED <= names
    assert {n for n in names if n.endswith('.ipynb')} == NOTEBOOKS and STATIC and NOTEBOOKS and STUBS
    assert not [n for n in names if n.startswith(('tests', 'nbs')) or '__pycache__' in n]
    modules = {f'libkd/{p.name}' for p in (ROOT/'libkd').glob('*.py')}
    assert {n for n in names if n.endswith('.py')} == modules


def test_upper_bounds_are_those_with_a_reason(built):
    meta = zipfile.ZipFile(built[0]).read(next(n for n in zipfile.ZipFile(built[0]).namelist() if n.endswith('METADATA'))).decode()
    required = [line.split(': ')[1] for line in meta.splitlines() if line.startswith('Requires-Dist') and 'extra ==' not in line]
    assert [line for line in required if '<' in line or '==' in line] == ['plum-dispatch<2.10']
    assert 'License-File: LICENSE' in meta and 'Description-Content-Type: text/markdown' in meta


def test_users_get_the_newest_fastai_and_developers_what_nbdev_needs(built):
    with zipfile.ZipFile(built[0]) as z: meta = z.read(next(n for n in z.namelist() if n.endswith('METADATA'))).decode()
    extra = lambda name: [line.split(': ')[1].split(';')[0].strip() for line in meta.splitlines() if line.startswith('Requires-Dist') and f'extra == "{name}"' in line]
    assert not [r for r in extra('all') if '<' in r] and {'fastcore<2', 'execnb<0.2'} <= set(extra('dev')) and set(extra('all')) <= set(extra('dev'))
    assert 'Project-URL: Issues' in meta


def test_source_distribution_builds_the_same_notebooks(built):
    names = {n.split('/', 1)[1] for n in tarfile.open(built[1]).getnames() if '/' in n}
    assert {n.replace('libkd/notebooks', 'nbs') for n in NOTEBOOKS} | {'settings.ini', 'LICENSE', 'README.md', 'pyproject.toml', 'tests/tiny.py', 'tests/breaks/cache.toml', 'nbs/07_distill.ipynb'} | STUBS <= names


def test_it_works_away_from_the_repository(python, tmp_path):
    out = run(python, '''
import libkd, torch
from pathlib import Path
from libkd.all import *
assert 'site-packages' in libkd.__file__ and not str(Path(libkd.__file__)).startswith(%r), libkd.__file__
from libkd.runs import find_notebook
assert 'site-packages' in str(find_notebook('distill'))
dls = image_dls(Samples.from_folder(digits()).subset(per_class=16), bs=32)
teacher = fit_teacher('resnet_mini', dls, epochs=5)
learn = distill_learner(dls, 'civt_nano', teachers=LogitCache.build('cache', dls, [teacher], views=2))
with learn.no_bar(), learn.no_logging(): learn.fit(1)
print('answer:', learn.predict(dls.samples[0].source)[0])
''' % str(ROOT), tmp_path)
    assert 'answer: ' in out
    assert {p.name for p in tmp_path.iterdir()} == {'cache', 'teachers'}


def test_the_command_copies_its_notebooks(python, tmp_path):
    run(python, "from libkd.cli import main; main(['new', 'runs'])", tmp_path)
    run(python, "from libkd.cli import main; main(['new', '--course', 'tutorials'])", tmp_path)
    assert {f'libkd/notebooks/{p.relative_to(tmp_path).as_posix()}' for p in tmp_path.rglob('*.ipynb')} == NOTEBOOKS
