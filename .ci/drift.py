"""Do the modules, their stubs, the README and the notebooks say the same? Works on a copy: neither the tree nor git is touched."""
import filecmp, shutil, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parents[1]
PARTS = 'nbs', 'libkd', '.ci', 'settings.ini', 'README.md', '_quarto.yml'


def differences(a, b, pattern):
    "Names below `a` or `b` that are not the same in both."
    names = {p.relative_to(top) for top in (a, b) for p in top.rglob(pattern) if '.ipynb_checkpoints' not in p.parts}
    return sorted(str(n) for n in names if not ((a/n).exists() and (b/n).exists() and filecmp.cmp(a/n, b/n, shallow=False)))


with tempfile.TemporaryDirectory() as tmp:
    copy = Path(tmp).resolve()/'libkd'
    copy.mkdir()
    for name in PARTS:
        if (root/name).is_dir(): shutil.copytree(root/name, copy/name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
        else: shutil.copy2(root/name, copy/name)
    bin = Path(sys.executable).parent
    for command in ([bin/'nbdev_export'], [bin/'nbdev_clean'], [sys.executable, '.ci/docs/readme.py']):
        subprocess.run(command, cwd=copy, check=True)
    drifted = [f'libkd/{n}' for n in differences(root/'libkd', copy/'libkd', '*.py') + differences(root/'libkd', copy/'libkd', '*.pyi')]
    drifted += [f'nbs/{n}' for n in differences(root/'nbs', copy/'nbs', '*.ipynb') + differences(root/'nbs', copy/'nbs', '*.png')]
    drifted += ['README.md'] * (not filecmp.cmp(root/'README.md', copy/'README.md', shallow=False))
if drifted:
    sys.exit('these files are not what the notebooks give:\n  ' + '\n  '.join(drifted) + '\nedit the notebook, not the file, then: make prepare')
print(f'no drift: {len(list((root/"nbs").rglob("[!_]*.ipynb")))} notebooks agree with libkd/ and README.md')
