"""A test that cannot fail is a defect: for every promise, one way to break it and the test that must then go red.

The breaks stand in `tests/breaks/<room>.toml`, one table each:

    [[break]]
    promise = '4.7 kd_loss carries T**2'
    test = 'tests/test_losses.py::test_scale'
    module = 'libkd.losses'         # one edit of a line of the source, which also reaches processes that a test starts …
    old = 'T**2'
    new = 'T'

or, in the place of the last three, `code = '''…'''`: run before the test is imported; `mutate(module, old, new)` is at hand.

`make test-breaks` runs all; `python tests/breaks.py 4.3` those of one room; `-v` says why each went red.
"""
import sys, tomllib
from pathlib import Path
from run_breaks import Break, main


def read(file):
    "The breaks of one room"
    for row in tomllib.loads(file.read_text(encoding='utf-8'))['break']:
        edit = f"mutate({row.get('module')!r}, {row.get('old')!r}, {row.get('new')!r})"
        yield Break(row['promise'], row.get('code', edit), row['test'])


BREAKS = [b for file in sorted((Path(__file__).parent/'breaks').glob('*.toml')) for b in read(file)]

if __name__ == '__main__': sys.exit(main(BREAKS))
