"""What every test shares: one thread, a data folder of its own, steady hypothesis, known warnings filtered by their message."""
import os, shutil, tempfile

for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ.setdefault(name, '1')   # two threads on two shared cores are slower than one
os.environ.setdefault('MPLBACKEND', 'Agg')
os.environ.setdefault('HF_HUB_OFFLINE', '1')             # tests ask no network, and do not wait a minute for one

import pytest
from hypothesis import Phase, settings

# Of other people's code, and only these; a warning of ours stays visible.
KNOWN_WARNINGS = (
    r'ignore:.*torch\.jit\.script.* is deprecated',      # at `from fastai.… import *`
    r'ignore:.*mode\.chained_assignment',                # at `import fastai.tabular`, with pandas 3
    r'ignore:.*use of fork\(\) may lead to deadlocks',   # Python 3.12 and later, DataLoader workers
)

settings.register_profile('libkd', deadline=None, derandomize=True, database=None, max_examples=25)
# A break needs one failing example, not the smallest.
settings.register_profile('breaks', settings.get_profile('libkd'), phases=(Phase.explicit, Phase.generate))
settings.load_profile('breaks' if 'LIBKD_BREAK_DIR' in os.environ else 'libkd')


def pytest_configure(config):
    "Register our marker and filters here, so that the top level needs no settings file for pytest."
    config.addinivalue_line('markers', 'slow: more than about five seconds; left out by `make test-fast`')
    for line in KNOWN_WARNINGS: config.addinivalue_line('filterwarnings', line)
    if 'LIBKD_HOME' not in os.environ:                   # never the user's own data
        home = os.environ['LIBKD_HOME'] = tempfile.mkdtemp(prefix='libkd-tests-')
        config.add_cleanup(lambda: (shutil.rmtree(home, ignore_errors=True), os.environ.pop('LIBKD_HOME', None)))


@pytest.fixture(scope='session')
def root():
    "The top of the repository."
    from pathlib import Path
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def browser():
    "A headless Chromium; skips, and says why, where there is none."
    sync = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install "libkd[dev]"')
    path = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), None)
    if path is None: pytest.skip('no Chromium on this machine: apt-get install chromium')
    args = ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking']
    with sync.sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=args)
        yield b
        b.close()


@pytest.fixture
def show(browser, tmp_path):
    "Open a view's offline page; complain about any error and any request but the page itself."
    opened = []
    def open_page(view, **context):
        ctx = browser.new_context(**{'offline': True, 'viewport': dict(width=1120, height=900), **context})
        page, trouble = ctx.new_page(), []
        page.on('pageerror', lambda e: trouble.append(str(e)))
        page.on('console', lambda m: m.type == 'error' and trouble.append(m.text))
        page.on('request', lambda r: r.url.startswith(('data:', 'blob:', 'file:')) or trouble.append(r.url))
        page.trouble = trouble; page.set_default_timeout(15_000)
        page.goto(view.to_html(tmp_path/'page.html').as_uri()); page.wait_for_selector('.kd')
        opened.append((ctx, trouble)); return page
    yield open_page
    for ctx, trouble in opened:
        ctx.close(); assert not trouble
