"""Runs the breaks of `breaks.py`: every test that guards a promise must be green as it is and red when the promise is broken.

The heavy libraries are imported once; each break runs in a forked child, so breaks cannot see each other.
`libkd` itself is imported in the child only: a break that replaces `libkd.data.x` therefore also reaches the rooms
that import `x` from there, as long as it comes before their import.
"""
import argparse, ast, contextlib, gc, importlib, io, multiprocessing as mp, os, shutil, sys, tempfile, textwrap, time, traceback
from collections import defaultdict, deque
from multiprocessing import connection
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HEAVY = 'numpy pandas torch torchvision timm fastai.vision.all safetensors.torch sklearn.datasets scipy.stats hypothesis matplotlib.pyplot'
QUIET = ['-q', '-W', 'ignore::pytest.PytestAssertRewriteWarning', '--tb=short', '--no-header',
         *(word for name in ('cacheprovider', 'unraisableexception', 'threadexception') for word in ('-p', f'no:{name}'))]   # the last two collect all garbage, twice a test
LIMIT_S = 240    # a child that takes longer is stopped, and counts as not red


class Break(NamedTuple):
    "One promise, one way to break it, and the test that must notice."
    promise: str    # number in the design and a few words: '4.3 lean path gradients equal the reference'
    code: str       # executed before the test is imported; `mutate` is at hand
    test: str       # 'tests/test_x.py::test_y'


def mutate(module: str, # Dotted name: 'libkd.involution'
           old: str,    # Text that stands exactly once in the module's source
           new: str,    # What it becomes
):
    "Put a copy of the package, with one edit, before the real one: for lines that a monkeypatch cannot reach, and for tests that start processes."
    here = Path(os.environ['LIBKD_BREAK_DIR'])
    if not (here/'libkd').exists():
        shutil.copytree(ROOT/'libkd', here/'libkd', ignore=shutil.ignore_patterns('__pycache__'))
        (here/'nbs').symlink_to(ROOT/'nbs')                 # lessons and runs are found beside the package
    file = here/Path(*module.split('.')).with_suffix('.py')
    text = file.read_text(encoding='utf-8')
    if text.count(old) != 1: raise LookupError(f'{old!r} stands {text.count(old)} times in {module}, not once')
    ast.parse(text := text.replace(old, new))
    file.write_text(text, encoding='utf-8')
    if str(here) not in sys.path: sys.path.insert(0, str(here))
    os.environ.update(PYTHONPATH=str(here), PYTHONSAFEPATH='1')    # child processes see the copy too, wherever they start
    for name in [o for o in sys.modules if o.split('.')[0] == 'libkd']: del sys.modules[name]
    importlib.invalidate_caches()


class Outcomes:
    "A pytest plugin that keeps what happened to each test."
    def __init__(self): self.passed, self.failed, self.errors, self.skipped = [], [], [], []

    def pytest_runtest_logreport(self, report):
        if report.when == 'call' and report.passed: self.passed.append(report.nodeid)
        elif report.skipped: self.skipped.append((report.nodeid, str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)))
        elif report.failed: (self.failed if report.when == 'call' else self.errors).append((report.nodeid, _reason(report)))

    def pytest_collectreport(self, report):
        if report.failed: self.errors.append((report.nodeid, _reason(report)))


def _reason(report):
    crash = getattr(report.longrepr, 'reprcrash', None)
    return (crash.message if crash else str(report.longrepr)).strip().splitlines()[0] if report.longrepr else ''


def _child(conn, tests, code, home):
    "Runs in the fork: break, test, send back the outcomes and everything that was printed."
    import pytest
    os.setpgid(0, 0)
    seen, log, problem = Outcomes(), io.StringIO(), None
    with tempfile.TemporaryDirectory(prefix='libkd-break-') as tmp, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        os.environ['LIBKD_BREAK_DIR'], os.environ['LIBKD_HOME'] = tmp, home
        if code:    # a break works on its own copy of the data folder (links: files are replaced, never written in place)
            os.environ['LIBKD_HOME'] = str(shutil.copytree(home, Path(tmp)/'home', copy_function=os.link))
        try: exec(textwrap.dedent(code), {'__name__': 'a_break', 'mutate': mutate})
        except BaseException: problem = traceback.format_exc(limit=-1).strip().splitlines()[-1]
        else: pytest.main([*QUIET, f'--rootdir={ROOT}', *tests], plugins=[seen])
    conn.send((problem, vars(seen), log.getvalue()))
    conn.close()
    os._exit(0)     # fixtures' threads and worker pools are no reason to wait


def _children(jobs, home, workers):
    """Run each `(tests, code)` in a child of its own, `workers` at a time; yields (number of the job, problem, outcomes, log, seconds) as they end.

    All are forked by this one thread: a fork beside another thread that holds a lock leaves a child that waits for ever.
    """
    waiting, running = deque(enumerate(jobs)), {}
    while waiting or running:
        while waiting and len(running) < workers:
            i, (tests, code) = waiting.popleft()
            ours, theirs = mp.Pipe(duplex=False)
            child = mp.get_context('fork').Process(target=_child, args=(theirs, tests, code, home))
            child.start()
            theirs.close()
            running[ours] = i, child, time.perf_counter()
        ready = connection.wait(running, timeout=1)
        for conn, (i, child, start) in [*running.items()]:
            secs = time.perf_counter() - start
            if conn in ready or secs > LIMIT_S:
                del running[conn]
                yield i, *_ended(child, conn, conn in ready), secs


def _ended(child, conn, answered):
    "(problem, outcomes, log) of a child that answered, died or took too long; it and what it started are gone afterwards."
    try: result = conn.recv() if answered else (f'stopped after {LIMIT_S} s', {}, '')
    except EOFError: result = ('the child died without a word', {}, '')
    with contextlib.suppress(ProcessLookupError, PermissionError): os.killpg(child.pid, 9)
    child.join()
    conn.close()
    return result


def _verdict(problem, seen):
    "'red', or why the break does not count."
    if problem: return f'BREAK FAILED: {problem}'
    if seen['failed']: return 'red'
    if seen['errors']: return f'ERROR, NOT A FAILED TEST: {seen["errors"][0][1]}'
    if seen['skipped']: return f'not run here: {seen["skipped"][0][1]}'
    return 'STAYED GREEN' if seen['passed'] else 'NO SUCH TEST'


def _not_green(test, problem, seen):
    "What is wrong with `test` in these outcomes, or None."
    mine = lambda rows: [o for o in rows if (o if isinstance(o, str) else o[0]).startswith(test)]
    if problem: return problem
    wrong = mine(seen['failed']) + mine(seen['errors'])
    if not wrong and mine(seen['passed']): return None
    if not wrong and mine(seen['skipped']): return None      # for want of a browser, say; its break will say so too
    rows = wrong or seen['errors'] or [('', 'no such test')]
    return rows[0][1]


def _check_green(breaks, home, workers):
    "Run each guarding test unbroken, one child a file (one child a test where that fails); returns {test: what is wrong with it}."
    files = defaultdict(dict)
    for b in breaks: files[b.test.split('::')[0]][b.test] = None
    jobs, bad = [[*tests] for tests in files.values()], {}
    while jobs:
        again = []
        for i, problem, seen, *_ in _children([(tests, '') for tests in jobs], home, workers):
            wrong = {t: why for t in jobs[i] if (why := _not_green(t, problem, seen))}
            if len(jobs[i]) == 1: bad |= wrong
            else: again += [[t] for t in wrong]
        jobs = again
    return bad


def main(breaks, argv=None):
    "Print one line a break; exit 1 if a test was not green before or not red after."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('only', nargs='*', help='run the breaks whose promise or test contains one of these')
    p.add_argument('-j', '--workers', type=int, default=2)
    p.add_argument('--green', action='store_true', help='the tests have just been seen green: do not run them unbroken first')
    p.add_argument('-v', '--verbose', action='store_true', help='say why each test went red; print the output of those that did not')
    args = p.parse_args(argv)
    if args.only: breaks = [b for b in breaks if any(o in b.promise + ' ' + b.test for o in args.only)]
    if not breaks: print('no breaks to run'); return int(bool(args.only))
    os.chdir(ROOT)
    for k, v in dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', MPLBACKEND='Agg', HF_HUB_OFFLINE='1', PYTEST_DISABLE_PLUGIN_AUTOLOAD='1').items(): os.environ[k] = v
    import warnings
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for name in HEAVY.split(): importlib.import_module(name)
        import pytest  # noqa: F401
    gc.collect()
    gc.freeze()          # children share these pages as long as nothing walks over them
    with tempfile.TemporaryDirectory(prefix='libkd-breaks-') as home:
        unfit = {} if args.green else _check_green(breaks, home, args.workers)
        todo = [b for b in breaks if b.test not in unfit]
        wide, lost, away = max(len(b.promise) for b in breaks), [f'  {b.promise}: NOT GREEN BEFORE: {unfit[b.test]}' for b in breaks if b.test in unfit], 0
        for i, problem, seen, log, secs in _children([([b.test], b.code) for b in todo], home, args.workers):
            b, verdict = todo[i], _verdict(problem, seen)
            away += (skipped := verdict.startswith('not run here'))
            if verdict != 'red' and not skipped: lost.append(f'  {b.promise}: {verdict}')
            why = f'  {seen["failed"][0][1][:110]}' if args.verbose and verdict == 'red' else ''
            print(f'  {b.promise:<{wide}}  {secs:5.1f} s  {verdict}{why}' + (f'\n      {b.test}' if verdict != 'red' else ''), flush=True)
            if args.verbose and verdict != 'red' and log: print(textwrap.indent(log[-3000:], '      | '))
    gc.unfreeze()        # or some libraries complain at exit
    print(f'breaks: {len(breaks) - len(lost) - away} of {len(breaks)} promises are guarded'
          + (f', {away} could not be tried here' if away else '') + f' ({time.perf_counter() - start:.0f} s)')
    print(*lost, sep='\n', end='\n'*bool(lost))      # again, where the end of a long log is all that is read
    return int(bool(lost))
