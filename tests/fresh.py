"""The built wheel in an empty environment with the newest fastai and fastcore: `make test-wheel`, by hand, since it downloads for minutes.

The ten lines of the front page run twice (the second time teachers and cache are loaded), then a fresh process,
which has neither cache nor teachers, uses the trained student through fastai.
"""
import json, os, re, shutil, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ('libkd', 'nbs', 'tests', 'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'CHANGELOG.md',
           'CONTRIBUTING.md', 'MANIFEST.in', '_quarto.yml')


def build_wheel(folder):
    "Source distribution and, from it, the wheel; made from a copy, so that nothing is left in the tree."
    copy = Path(folder)/'source'
    copy.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT/name).is_dir(): shutil.copytree(ROOT/name, copy/name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
        else: shutil.copy2(ROOT/name, copy/name)
    subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(folder), str(copy)], check=True, capture_output=True, text=True)
    return next(Path(folder).glob('*.whl')), next(Path(folder).glob('*.tar.gz'))


def ten_lines():
    "The cell of nbs/index.ipynb that starts with `from libkd.all import *`."
    cells = json.loads((ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells']
    return next(code for c in cells if 'from libkd.all import *' in (code := ''.join(c['source'])) and 'distill_learner' in code)


AFTER = '''
board = scoreboard([conv, inv, plain, student])
assert len(board) >= 4 and board['accuracy'].notna().all()
student.export('student.pkl')
save_student(student, 'student')
'''

LATER = '''
import matplotlib; matplotlib.use('Agg')
from fastai.vision.all import *
import libkd.all as kd
assert not Path('cache').exists() and not Path('teachers').exists()
learn = load_learner('student.pkl')
files = sorted((kd.cluttered_digits()/'valid').rglob('*.png'))[::40]
name, index, probs = learn.predict(files[0])
assert name in map(str, learn.dls.vocab) and abs(float(probs.sum()) - 1) < 1e-4
learn.dls = kd.image_dls(kd.cluttered_digits())
learn.show_results(max_n=4)
interp = ClassificationInterpretation.from_learner(learn)
assert interp.confusion_matrix().sum() == len(learn.dls.valid_ds)
interp.plot_top_losses(4)
right = sum(learn.predict(f)[0] == f.parent.name for f in files)
print(f'a fresh process: predict, show_results, ClassificationInterpretation; {right} of {len(files)} right')
import fastai, fastcore, torch, timm
print('with', *(f'{m.__name__} {m.__version__}' for m in (fastai, fastcore, torch, timm)))
'''


def main():
    where = Path(os.environ.get('FRESH') or tempfile.mkdtemp(prefix='libkd-fresh-'))
    start = time.perf_counter()
    def say(what): print(f'== {what} ({time.perf_counter() - start:.0f} s)', flush=True)
    say(f'in {where}: build')
    shutil.rmtree(where/'dist', ignore_errors=True)
    wheel, _ = build_wheel(where/'dist')
    say(f'{wheel.name} into an empty environment, newest versions')
    subprocess.run([sys.executable, '-m', 'venv', str(where/'env')], check=True)
    python = where/'env'/'bin'/'python'
    subprocess.run([python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '--upgrade', '--upgrade-strategy', 'eager', str(wheel)], check=True)
    subprocess.run([python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '--force-reinstall', '--no-deps', str(wheel)], check=True)
    env = {**os.environ, 'LIBKD_HOME': str(where/'home'), 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg'}
    work = where/'work'
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    lines = "import warnings; warnings.filterwarnings('ignore', message='.*torch.jit.script')\n" + ten_lines()
    for again, code in (('the first time', lines + AFTER), ('again: teachers and cache are there', re.sub(r'fit_one_cycle\(\d+', 'fit_one_cycle(1', lines))):
        say(f'the ten lines, {again}')
        subprocess.run([python, '-c', code], cwd=work, env=env, check=True)
    for name in ('cache', 'teachers'): shutil.rmtree(work/name)
    say('a fresh process without cache and teachers')
    subprocess.run([python, '-W', 'ignore', '-c', LATER], cwd=work, env=env, check=True)
    image = next((where/'home').rglob('*.png'))
    subprocess.run([where/'env'/'bin'/'libkd', 'predict', 'student', str(image)], cwd=work, env=env, check=True)
    say('all is well')


if __name__ == '__main__': main()
