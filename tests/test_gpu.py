"""`make gpu`: what it does with cases, files and time is tested at once; all of it is rehearsed on the CPU, with tiny numbers."""
import importlib.util, json, subprocess, sys

import pytest, torch


@pytest.fixture(scope='module')
def gpu(root):
    "The script, as a module"
    spec = importlib.util.spec_from_file_location('gpu', root/'nbs'/'bench'/'gpu.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['gpu'] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules['gpu']


@pytest.fixture
def calls(gpu, monkeypatch):
    "One slice of three cases, of which one fails and one cannot be measured here; the list of those that were called"
    done = []
    def good(): done.append('good'); return {'ms': 1.5}
    def bad(): done.append('bad'); raise RuntimeError('out of | memory')
    def absent(): done.append('absent'); raise gpu.NotThere('no photographs')
    monkeypatch.setattr(gpu, 'SLICES', dict(one=lambda s: dict(bad=bad, absent=absent, good=good).items()))
    return done


def test_a_case_that_fails_stops_no_other_and_is_tried_again(gpu, calls, tmp_path):
    out, setting = tmp_path/'gpu.json', gpu.Setting(torch.device('cpu'), tiny=True)
    gpu.measure(out, setting, 1, ['one'])
    rows = json.loads(out.read_text())['slices']['one']
    assert rows['bad'] == {'error': 'RuntimeError: out of | memory'} and rows['absent'] == {'not measured': 'no photographs'}
    assert rows['good']['ms'] == 1.5
    gpu.measure(out, setting, 1, ['one'])
    assert calls == ['bad', 'absent', 'good', 'bad', 'absent']                  # what is measured stays measured
    assert '| good |  |  | 1.5 |' in out.with_suffix('.md').read_text()


def test_when_the_minutes_are_over_it_says_with_what_it_goes_on(gpu, calls, tmp_path, capsys):
    gpu.measure(tmp_path/'gpu.json', gpu.Setting(torch.device('cpu'), tiny=True), -1, ['one'])
    assert calls == [] and 'goes on with one: bad' in capsys.readouterr().out


def test_figures_of_another_machine_are_not_mixed_in(gpu, calls, tmp_path):
    out = tmp_path/'gpu.json'
    gpu.measure(out, gpu.Setting(torch.device('cpu'), tiny=True), 1, ['one'])
    with pytest.raises(SystemExit, match='measured elsewhere.*--out'):
        gpu.measure(out, gpu.Setting(torch.device('cpu'), tiny=False), 1, ['one'])


def test_shapes_are_those_of_rednet50(gpu):
    "Seventeen layers have eight shapes; compared with the network itself"
    import timm
    from libkd.involution import Involution2d
    seen, model = [], timm.create_model('rednet50', num_classes=2).eval()
    for m in model.modules():
        if isinstance(m, Involution2d):
            m.register_forward_hook(lambda m, x, y: seen.append((tuple(x[0].shape), m.kernel_size, m.stride)))
    with torch.no_grad(): model(torch.zeros(1, 3, 64, 64))
    assert set(gpu.rednet_shapes(1, 64)) == set(seen) and len(set(seen)) == 8


@pytest.mark.slow
def test_all_of_it_is_rehearsed_on_the_cpu(root, tmp_path):
    out = tmp_path/'rehearsal.json'
    command = [sys.executable, '-W', 'ignore', str(root/'nbs'/'bench'/'gpu.py'), '--tiny', '--out', str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    slices = json.loads(out.read_text())['slices']
    assert set(slices) == {'involution', 'networks', 'cached', 'views', 'student'}
    failed = {case: row['error'] for rows in slices.values() for case, row in rows.items() if 'error' in row}
    assert not failed, failed
