"""The lessons executed in place, each in an empty folder of its own, with what it took. Words choose lessons (`07`, `02 05`, `04-10`); default: all.

A lesson that stops, has an exercise that its own solution does not solve, or grows beyond 1 MB or 10 minutes ends the round, and what is left is said.
"""
import os, resource, sys, tempfile, time
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from libkd.course import lessons

MINUTES, BYTES = 10, 1_000_000


def chosen(words):
    "Names of lessons: those whose number is given, or lies in a range as in 04-10."
    numbers = {n[:2]: n for n in lessons()}
    if not words: return list(lessons())
    found = []
    for w in words:
        first, _, last = w.partition('-')
        hits = [n for k, n in numbers.items() if first <= k <= (last or first)]
        if not hits: sys.exit(f'no lesson has the number {w}; there are {", ".join(numbers)}')
        found += hits
    return found


def cpu():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def execute(path):
    "Run a lesson; (seconds, CPU seconds, bytes, what its checks said)."
    nb, start, before = nbformat.read(path, 4), time.perf_counter(), cpu()
    with tempfile.TemporaryDirectory(prefix='libkd-course-', ignore_cleanup_errors=True) as folder:
        NotebookClient(nb, timeout=60*MINUTES, resources={'metadata': {'path': folder}}, extra_arguments=['--log-level=50']).execute()
    for cell in nb.cells: cell.metadata.pop('execution', None)
    said = [o.data['text/plain'] for c in nb.cells if 'check' in c.metadata.get('tags', []) for o in c.outputs if 'text/plain' in o.get('data', {})]
    text = nbformat.writes(nb, 4).rstrip('\n') + '\n'
    path.write_text(text, encoding='utf-8')
    return time.perf_counter() - start, cpu() - before, len(text.encode()), said


def main(words):
    names, total, start = chosen(words), 0., time.perf_counter()
    os.environ.update(LIBKD_WIDGETS='headless', PYTHONWARNINGS='ignore::FutureWarning')     # of a library below, at its import
    os.environ.pop('MPLBACKEND', None)                                        # pictures belong into the notebook
    for i, name in enumerate(names):
        again = f'mend it and go on with: make course ARGS="{" ".join(n[:2] for n in names[i:])}"'
        print(f'{i + 1} of {len(names)} · {name} …', end=' ', flush=True)
        try: seconds, used, size, said = execute(lessons()[name])
        except CellExecutionError as e: sys.exit(f'stopped.\n{e}\n{again}')
        red = [o for o in said if o.startswith('✗')]
        total += used
        print(f'{seconds:.0f} s, {used:.0f} s of CPU time, {size/1e6:.2f} MB, {len(said) - len(red)} of {len(said)} checks', flush=True)
        if red or size > BYTES or seconds > 60*MINUTES: sys.exit('\n'.join([*red, f'bars: {MINUTES} minutes, {BYTES/1e6:.0f} MB, all checks; {again}']))
    print(f'{len(names)} lessons in {(time.perf_counter() - start)/60:.1f} minutes, {total/60:.1f} of CPU time')


if __name__ == '__main__': main(sys.argv[1:])
