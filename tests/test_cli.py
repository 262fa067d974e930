"""The command where machines and people misbehave: a full disk, a reader that goes away, names that are no text."""
import contextlib, json, os, re, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, PIL.Image, pytest
from libkd import UserError, __version__, cli

PYTHON = [sys.executable, '-c', 'from libkd.cli import main; main()']
linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='needs /dev/full, or names that are no text')


def libkd(*words, env=os.environ, **kw):
    "The command in a process of its own, whose output waits in a buffer, whatever surrounds these tests"
    env = {k: v for k, v in env.items() if k != 'PYTHONUNBUFFERED'}
    return subprocess.run([*PYTHON, *map(os.fsdecode, words)], stderr=subprocess.PIPE, env=env, **kw)


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


def small_notebook(folder):
    "A notebook with one parameter; what is said of it is so short that it waits in a buffer"
    import nbformat
    cell = nbformat.v4.new_code_cell("n = 1  # how many", metadata=dict(tags=['parameters']))
    meta = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=meta), folder/'small.ipynb')
    return str(folder/'small.ipynb')


@linux
def test_a_full_disk_is_a_sentence(tmp_path):
    words = 'run', '--params', '--notebook', small_notebook(tmp_path)
    with open('/dev/full', 'wb') as full: done = libkd(*words, stdout=full)
    assert done.returncode == 2 and 'disk is full' in sentence(done)


@linux
def test_a_reader_that_goes_away_is_a_sentence(tmp_path):
    ours, theirs = os.pipe()
    os.close(ours)
    done = libkd('run', '--params', '--notebook', small_notebook(tmp_path), stdout=theirs)
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


@pytest.mark.slow
@linux
def test_what_a_terminal_cannot_show_stops_no_command(tmp_path):
    done = libkd('new', os.fsencode(tmp_path/'mine') + b'\xe9', stdout=subprocess.PIPE, env={**os.environ, 'PYTHONIOENCODING': 'utf-8'})
    assert done.returncode == 0 and b'mine\\udce9' in done.stdout and not done.stderr.strip(), done.stderr


def test_ctrl_c_is_a_sentence(capsys):
    def stop(): raise KeyboardInterrupt
    try: code = cli.guarded(stop)
    except KeyboardInterrupt: pytest.fail('Ctrl-C passed the boundary')
    assert code == 130
    assert re.fullmatch(r'libkd: stopped\. .*\n', capsys.readouterr().err)


@pytest.mark.slow
def test_the_doctor_measures_only_when_asked():
    code = "import sys; from libkd.cli import main\ntry: main(['doctor'])\nexcept SystemExit as e: assert e.code == 0\nprint('heavy', [m for m in ('fastai', 'timm', 'libkd.arms') if m in sys.modules])"
    env = {k: v for k, v in os.environ.items() if k != 'LIBKD_HOME'}
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env).stdout
    assert out.splitlines()[-1] == 'heavy []' and 'data folder' in out and 'threads' not in out


@linux
@pytest.mark.slow
def test_ctrl_c_in_a_run_is_one_sentence(tmp_path):
    import nbformat
    cell = nbformat.v4.new_code_cell
    cells = [cell("folder = ''  # where", metadata=dict(tags=['parameters'])),
             cell(f"import pathlib, time\npathlib.Path({str(tmp_path/'began')!r}).touch()\ntime.sleep(60)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python'))), tmp_path/'nb.ipynb')
    run = subprocess.Popen([*PYTHON, 'run', '--notebook', str(tmp_path/'nb.ipynb'), '--folder', str(tmp_path/'out')], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    for _ in range(600):
        if (tmp_path/'began').exists() or run.poll() is not None: break
        time.sleep(.1)
    for _ in range(9):                                      # an interrupt may meet a moment at which nobody listens: press again
        os.killpg(run.pid, signal.SIGINT)                   # as a terminal does: to the command and its kernel
        with contextlib.suppress(subprocess.TimeoutExpired): out, err = run.communicate(timeout=8); break
    said = [line for line in err.decode().splitlines() if line.strip()]
    assert run.returncode == 130 and len(said) == 1 and said[0].startswith('libkd: stopped.'), (run.returncode, err)


# -- models that were kept ---------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Six pictures of two classes, none of them square, none of another's size"
    folder, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for i, (h, w) in enumerate([(40, 61), (57, 33), (90, 24), (31, 77), (64, 65), (21, 48)]):
        (folder/('left', 'right')[i % 2]).mkdir(exist_ok=True)
        small = PIL.Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize((w, h), PIL.Image.Resampling.BICUBIC).save(folder/('left', 'right')[i % 2]/f'{i}.png')
    return folder


@pytest.fixture(scope='module')
def loaders(photos):
    from libkd.views import image_dls
    return image_dls(photos, size=16, bs=4)


@pytest.fixture(scope='module')
def student(loaders, tmp_path_factory):
    from libkd.handover import save_student
    from libkd.learner import distill_learner
    return save_student(distill_learner(loaders, 'resnet_mini', seed=0), tmp_path_factory.mktemp('run')/'best')


def test_a_picture_is_shown_as_in_validation(loaders, student):
    "Short side and middle of pictures that are not square: what the learner saw, to the bit"
    from libkd.handover import load_saved, as_seen
    saved, dl = load_saved(student), loaders.valid
    assert len(dl.dataset) and saved.size == (16, 16)
    seen = np.concatenate([b[0].cpu().numpy() for b in dl])
    ours = np.stack([as_seen(item.source, saved).numpy() for item in dl.dataset.items])
    assert np.abs(seen - ours).max() < 1e-5


def test_a_saved_student_says_how_its_pictures_were_made(student):
    said = json.loads((student/'config.json').read_text())['pretrained_cfg']
    assert (said['interpolation'], said['crop_mode'], said['crop_pct']) == ('bilinear', 'center', 1)


ASKS = '''
import json, sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
rng = np.random.default_rng(0)
shapes = [session.run(None, {'pictures': rng.integers(0, 256, s, dtype=np.uint8)})[0].shape for s in ((1, 16, 16, 3), (5, 40, 90, 3), (2, 7, 300, 3))]
print(json.dumps([shapes, session.get_modelmeta().custom_metadata_map, 'torch' in sys.modules]))
'''


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')                      # of the exporter
def test_an_exported_graph_takes_pictures_of_any_size_and_number(student, tmp_path):
    pytest.importorskip('onnxruntime')
    from libkd.handover import load_saved, onnx_agrees, sample_pictures
    done = libkd('export', student.parent, '--onnx', '--pt2', '--out', tmp_path, stdout=subprocess.PIPE)       # a run: its best model
    assert done.returncode == 0, done.stderr
    assert re.search(rb'8 of 8 pictures have the class that torch says, logits differ by up to \d', done.stdout)
    assert {p.name for p in tmp_path.iterdir()} == {'pictures.onnx', 'model.pt2'}
    shapes, facts, torch = json.loads(subprocess.run([sys.executable, '-c', ASKS, str(tmp_path/'pictures.onnx')], capture_output=True, text=True, check=True).stdout)
    assert shapes == [[1, 2], [5, 2], [2, 2]] and json.loads(facts['classes']) == ['left', 'right'] and facts['interpolation'] == 'bilinear' and not torch
    same, far = onnx_agrees(load_saved(student), tmp_path/'pictures.onnx', sample_pictures(100, seed=1))
    assert same == 100 and far < .02


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')                      # of the exporter
def test_eight_bits_say_what_they_cost(student, photos, tmp_path):
    ort = pytest.importorskip('onnxruntime')
    done = libkd('export', student, '--int8', '--data', photos, '--out', tmp_path, stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert re.search(rb'[\d.]+ % of \d+ validation pictures are right, [\d.]+ without rounding \([+-][\d.]+ points\)', done.stdout), done.stdout
    session = ort.InferenceSession(tmp_path/'pictures-int8.onnx', providers=['CPUExecutionProvider'])
    facts = session.get_modelmeta().custom_metadata_map
    assert facts['weights'] == 'int8' and json.loads(facts['classes']) == ['left', 'right']
    assert session.run(None, {'pictures': np.zeros((2, 40, 30, 3), np.uint8)})[0].shape == (2, 2)
    assert b'QuantizeLinear' in (tmp_path/'pictures-int8.onnx').read_bytes()


def test_eight_bits_need_onnxruntime_and_pictures(student, photos, tmp_path, monkeypatch, capsys):
    from libkd.handover import export_int8, load_saved
    def asked(*words):
        with pytest.raises(SystemExit) as e: cli.main(['export', str(student), '--int8', *map(str, words)])
        return e.value.code, capsys.readouterr().err
    code, said = asked()
    assert code == 2 and '--data FOLDER' in said                                # nothing says what it learned from
    for i in range(8):
        at = tmp_path/'cats'/('tabby', 'white')[i % 2]
        at.mkdir(parents=True, exist_ok=True)
        PIL.Image.new('RGB', (16, 16), (i, 0, 0)).save(at/f'{i}.png')
    assert 'of another kind: tabby' in asked('--data', tmp_path/'cats')[1]
    picture = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(UserError, match='there are 1 and 0'): export_int8(load_saved(student), tmp_path/'x.onnx', [picture], [], [])
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match='pip install onnxruntime'): export_int8(load_saved(student), tmp_path/'x.onnx', [picture], [picture], [0])


def test_a_graph_that_disagrees_is_not_kept(student, tmp_path, monkeypatch):
    from libkd import handover
    monkeypatch.setattr(handover, 'picture_onnx', lambda saved, file: file.touch())
    monkeypatch.setattr(handover, 'onnx_agrees', lambda *a: (7, .5))
    with pytest.raises(UserError, match='1 of 8 pictures have another class'): handover.export_onnx(None, tmp_path/'x.onnx')
    assert not (tmp_path/'x.onnx').exists()


def test_hidden_pictures_are_not_asked_about(tmp_path):
    "Thumbnails of a viewer, and what a Mac leaves beside each file, are left out where one learns and where one asks"
    for name in ('a.JPG', 'deep/b.png', '.picasa/c.jpg', '._a.JPG', '__MACOSX/a.JPG'):
        (tmp_path/'.home'/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/'.home'/name).touch()
    assert [p.name for p in cli._image_files([tmp_path/'.home'])] == ['a.JPG', 'b.png']
    assert [p.name for p in cli._image_files([tmp_path/'.home'/'._a.JPG'])] == ['._a.JPG']        # who names it means it


@pytest.mark.slow
def test_the_code_on_a_model_card_runs_and_says_what_the_model_says(student, photos, tmp_path, monkeypatch, capsys):
    import shutil
    from libkd.handover import as_seen, load_saved
    folder = Path(shutil.copytree(student, tmp_path/'handed on'))
    picture = next(photos.rglob('*.png'))
    PIL.Image.open(picture).save(folder/'picture.jpg', quality=100)
    saved = load_saved(student)
    want = saved.classes[saved.model(as_seen(folder/'picture.jpg', saved)[None]).argmax()]
    card = (folder/'README.md').read_text()
    ours, plain = re.findall(r'```python\n(.*?)```', card, re.S)
    assert re.search(r'after `import libkd\.\w+`', card) and 'libkd' not in plain and 'torch' not in plain
    monkeypatch.chdir(folder)
    exec(ours, {})
    assert capsys.readouterr().out.split()[0] == want
    with contextlib.suppress(SystemExit): cli.main(['export', '.', '--onnx'])
    capsys.readouterr()
    exec(plain, {})
    assert capsys.readouterr().out.split() == [want]


@linux
def test_whoever_may_read_a_folder_may_read_its_weights(student, loaders, tmp_path):
    from libkd.teachers import fit_teacher
    fit_teacher('resnet_mini', loaders, epochs=1, folder=tmp_path, check=False)
    for file, beside in ((student/'model.safetensors', student/'config.json'), *((p, p.with_name('teacher.json')) for p in tmp_path.rglob('*.safetensors'))):
        assert oct(file.stat().st_mode) == oct(beside.stat().st_mode)


def test_seeds_that_would_do_come_with_the_words_for_them(tmp_path):
    from libkd.runs import summary
    def said(needed, seeds=3):
        row = {'arm': 'taught', 'seeds': seeds, 'seeds that would do': needed}
        return summary(dict(seconds={}, subject='taught', params=dict(seed=2), comparisons=[row]), tmp_path/'my run')
    assert f"-p seeds=7 --folder '{tmp_path}/my run'" in said('about 7') and '-p seed=5 seeds=7' in said('about 7')   # new ones begin behind the last
    assert 'seeds=7' in said('about 7', 2) and 'of 100' not in said('about 7', 2)            # two seeds could not have said anything
    assert not any('--folder' in said(n) for n in ('', 'about 400', 'more than 1000'))


def test_students_teachers_and_runs_are_asked_alike(student, loaders, photos, tmp_path, capsys):
    from libkd.teachers import fit_teacher
    fit_teacher('resnet_mini', loaders, epochs=1, folder=tmp_path, check=False)
    teacher = next(p for p in tmp_path.iterdir() if p.is_dir())
    capsys.readouterr()
    def asked(*words):
        with pytest.raises(SystemExit) as e: cli.main(['predict', *map(str, words)])
        return e.value.code, capsys.readouterr()
    for model, more in ((student, ()), (student.parent, ()), (teacher, ('--size', 16))):
        code, said = asked(model, photos, *more)
        assert code == 0 and said.out.startswith('file,class,probability,error,left,right') and said.out.count('\n') == 7, said
    assert 'another folder' not in (found := asked(photos, photos))[1].err and found[0] == 2 and 'neither a student' in found[1].err
    assert asked(teacher, photos)[1].out == asked(teacher, photos, '--size', 16)[1].out         # its folder says what it learned from
    info = json.loads((teacher/'teacher.json').read_text())
    info['identity']['views'].pop('size')
    (teacher/'teacher.json').write_text(json.dumps(info))
    code, said = asked(teacher, photos)
    assert code == 2 and '--size' in said.err
    code = cli.guarded(cli.parser().parse_args(['export', str(student)]).f, cli.parser().parse_args(['export', str(student)]))
    assert code == 2 and '--onnx' in capsys.readouterr().err


@pytest.mark.slow
def test_a_cache_is_refused_before_teachers_are_trained(tmp_path, monkeypatch, capsys):
    "`libkd cache build PICTURES`: the folder of pictures in the place of the cache's; a policy or top_k that is none"
    import libkd.teachers
    monkeypatch.setattr(libkd.teachers, 'fit_teacher', lambda *a, **kw: pytest.fail('trained'))
    monkeypatch.setenv('LIBKD_HOME', str(tmp_path/'home'))
    (tmp_path/'pictures'/'cat').mkdir(parents=True)
    for words, said in ((['pictures'], 'not empty and not a cache'), (['c', '--views', '0', '--size', '8'], 'whole number of views'), (['c', '--top-k', '10', '--size', '8'], 'top_k=10')):
        with pytest.raises(SystemExit, match='2'): cli.main(['cache', 'build', str(tmp_path/words[0]), *words[1:]])
        assert said in capsys.readouterr().err
    assert not (tmp_path/'c').exists() and not (tmp_path/'teachers').exists()
