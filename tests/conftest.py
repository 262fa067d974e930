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
