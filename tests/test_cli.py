"""The command where machines and people misbehave: a full disk, a reader that goes away, names that are no text."""
import os, re, signal, subprocess, sys
from pathlib import Path
import pytest
from libkd import __version__, cli

PYTHON = [sys.executable, '-c', 'from libkd.cli import main; main()']
linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='needs /dev/full, or names that are no text')


def libkd(*words, **kw): return subprocess.run([*PYTHON, *map(os.fsdecode, words)], stderr=subprocess.PIPE, **kw)


def sentence(done):
    "What was said on stderr: one sentence, no traceback"
    said = done.stderr.decode().strip()
    assert said.startswith('libkd: ') and 'Traceback' not in said and 'Exception ignored' not in said, said
    return said


def test_alone_it_prints_its_help():
    done = libkd(stdout=subprocess.PIPE)
    assert done.returncode == 0 and done.stdout.startswith(b'usage: libkd') and b'grade' in done.stdout


def test_it_says_its_version():
    assert libkd('--version', stdout=subprocess.PIPE).stdout.decode().split() == ['libkd', __version__]


@linux
def test_a_full_disk_is_a_sentence():
    with open('/dev/full', 'wb') as full: done = libkd('run', '--params', stdout=full)
    assert done.returncode == 2 and 'disk is full' in sentence(done)


@linux
def test_a_reader_that_goes_away_is_a_sentence():
    ours, theirs = os.pipe()
    os.close(ours)
    done = libkd('run', '--params', stdout=theirs)
    os.close(theirs)
    assert done.returncode == 1 and 'stopped reading' in sentence(done)


@linux
def test_a_name_that_is_no_text_is_a_sentence(tmp_path):
    folder = os.fsencode(tmp_path)
    for name in (b'caf\xe9', b'bar'):
        os.mkdir(folder + b'/' + name)
        for i in range(4): Path(os.fsdecode(folder + b'/' + name + b'/%d.png' % i)).write_bytes(b'x')
    done = libkd('run', folder, '--plan', stdout=subprocess.PIPE, env={**os.environ, 'PYTHONIOENCODING': 'utf-8'})
    assert done.returncode == 2 and 'caf' in sentence(done)


def test_ctrl_c_is_a_sentence(capsys):
    def stop(): raise KeyboardInterrupt
    assert cli.guarded(stop) == 130
    assert re.fullmatch(r'libkd: stopped\. .*\n', capsys.readouterr().err)


def test_the_doctor_measures_only_when_asked():
    code = "import sys; from libkd.cli import main\ntry: main(['doctor'])\nexcept SystemExit as e: assert e.code == 0\nprint('heavy', [m for m in ('fastai', 'timm', 'libkd.arms') if m in sys.modules])"
    env = {k: v for k, v in os.environ.items() if k != 'LIBKD_HOME'}
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env).stdout
    assert out.splitlines()[-1] == 'heavy []' and 'data folder' in out and 'threads' not in out
