"Written whole or not at all, one writer, known by content, and shown in the way that suits who looks."
import contextlib, io, os, subprocess, sys, time
from functools import partial
import libkd.files, pytest
from libkd.files import LockedError, Seen, WriteError, frontend, heartbeat, locked, progress, publish, sha256


@pytest.fixture(scope='module')
def aged(tmp_path_factory):
    "Pairs of files that are old enough to be trusted, all of them after one wait"
    folders = [tmp_path_factory.mktemp('photos') for _ in range(8)]
    for d in folders:
        for name in 'ab': (d/name).write_text(name)
    time.sleep(2.1)
    return [[d/'a', d/'b'] for d in folders]

@pytest.fixture
def old(aged): return aged.pop()


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    code = ("import os, sys; from libkd.files import publish\n"
            "def half(f): f.write(b'new'); f.flush(); os.kill(os.getpid(), 9)\n"
            "publish(sys.argv[1], half)")
    (tmp_path/'f').write_bytes(b'old')
    assert subprocess.run([sys.executable, '-c', code, str(tmp_path/'f')]).returncode == -9
    assert (tmp_path/'f').read_bytes() == b'old'
    publish(tmp_path/'f', b'new')
    assert (tmp_path/'f').read_bytes() == b'new'


def test_a_full_disk_is_a_sentence(tmp_path):
    def full(f): raise OSError(28, 'No space left on device')
    with pytest.raises(WriteError, match='The disk is full: .* could not be written'): publish(tmp_path/'f', full)
    assert list(tmp_path.iterdir()) == []


def test_one_writer(tmp_path):
    with locked(tmp_path), pytest.raises(LockedError, match='Another process is writing to'):
        with locked(tmp_path): pass
    with locked(tmp_path): pass


def test_files_are_read_once(tmp_path, old):
    seen = Seen(tmp_path/'seen.sqlite')
    sums = [sha256(f) for f in old]
    assert seen.sha256s(old) == (sums, 2)
    assert seen.sha256s(old) == (sums, 0)
    old[0].parent.rename(tmp_path/'pictures')
    assert seen.sha256s([tmp_path/'pictures'/f.name for f in old]) == (sums, 0)         # a new place is no new content


def test_another_content_with_the_old_date_is_noticed(tmp_path, old):
    seen, date = Seen(tmp_path/'seen.sqlite'), old[0].stat()
    seen.sha256s(old)
    old[0].write_text('x')
    os.utime(old[0], ns=(date.st_atime_ns, date.st_mtime_ns))
    time.sleep(2.1)                                                  # old enough to be believed
    assert seen.sha256s(old[:1])[0] == [sha256(old[0])]


def test_young_files_are_not_trusted(tmp_path):
    (tmp_path/'f').write_text('1')
    seen = Seen(tmp_path/'seen.sqlite')
    assert seen.sha256s([tmp_path/'f'])[1] == seen.sha256s([tmp_path/'f'])[1] == 1


def test_who_is_stopped_while_reading_does_not_begin_anew(tmp_path, old, monkeypatch):
    seen, calls = Seen(tmp_path/'seen.sqlite'), []
    def once(paths):
        if calls: raise KeyboardInterrupt
        calls.append(paths)
        return [sha256(f) for f in paths]
    monkeypatch.setattr(libkd.files, 'AT_ONCE', 1)
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(libkd.files, 'sha256s', once)
        seen.sha256s(old)
    assert seen.sha256s(old) == ([sha256(f) for f in old], 1)


def test_a_long_reading_says_how_far_it_is(tmp_path, old, capsys, monkeypatch):
    monkeypatch.setattr(libkd.files, 'AT_ONCE', 1)
    monkeypatch.setattr(libkd.files, 'progress', partial(progress, every=0.))
    monkeypatch.setenv('LIBKD_WIDGETS', 'headless')
    Seen(tmp_path/'seen.sqlite').sha256s(old)
    assert 'reading files' in capsys.readouterr().out


def test_without_a_place_to_remember_all_is_read(old):
    assert Seen('/dev/null/seen.sqlite').sha256s(old)[1] == 2


def test_a_broken_memory_is_no_error(tmp_path, old):
    (tmp_path/'seen.sqlite').write_bytes(b'no database'*100)
    assert Seen(tmp_path/'seen.sqlite').sha256s(old) == ([sha256(f) for f in old], 2)


def test_logs_get_lines_and_quiet_is_quiet(capsys, monkeypatch):
    monkeypatch.setenv('LIBKD_WIDGETS', 'headless')
    assert frontend() == 'headless'
    with progress(4, 'sheep', every=.01) as bar:
        for _ in range(4): time.sleep(.02); bar.update(1)
    out = capsys.readouterr().out
    assert 'sheep' in out and '\r' not in out and out.endswith('\n')
    with progress(4, 'sheep', every=0., verbose=False) as bar: bar.update(4)
    assert capsys.readouterr().out == ''


def test_a_line_of_a_heartbeat_is_written_in_one_piece():
    "Else what others print stands between a line and its end"
    written = []
    class Out(io.StringIO):
        def write(self, text): written.append(text); return len(text)
    with contextlib.redirect_stdout(Out()), heartbeat(lambda: 'half', every=.01):
        while not any(written): time.sleep(.01)
    assert {w for w in written if w} == {'half\n'}
