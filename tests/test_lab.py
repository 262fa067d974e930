"""One session of a real JupyterLab: explorer, attention and playground live there, keep their keys, talk to Python, and leave no state."""
import json, os, socket, subprocess, sys, time, urllib.request, uuid
import pytest

pytestmark = pytest.mark.slow
CELLS = ['''import warnings; warnings.simplefilter('ignore')
import numpy as np, ipywidgets, timm
from libkd.playground import bias_playground
from libkd.widgets import explore_attention, explore_disagreement
r = np.random.default_rng(0); y = r.integers(0, 4, 80); imgs = r.integers(0, 255, (80, 16, 16, 3), dtype=np.uint8)
preds = {k: 2*np.eye(4)[y] + r.normal(0, 1, (80, 4)) for k in ('conv', 'inv', 'student')}
w = explore_disagreement(imgs, preds, y)
v = explore_attention(imgs[:4], r.dirichlet(np.ones(19), (4, 3, 2, 19)), tokens=('cls', 'conv', 'inv'))
p = bias_playground({k: timm.create_model(k, num_classes=4) for k in ('resnet_mini', 'rednet_mini')}, imgs[:5], y[:5])''',
         'w', 'v', 'p', 'print("T is", w.T, "and selected", w.selected, "layer", v.layer, "picture", p.selected)']
VIEWS = [1, 2, 3]                                            # the cells that show one
READY = ['[role=option]', '.kd-maps', '.kd-net']             # what each of them has when it is drawn


def notebook(path):
    one = lambda i, s: dict(cell_type='code', id=f'c{i}', metadata={}, execution_count=None, outputs=[], source=s)
    kernel = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    path.write_text(json.dumps(dict(cells=[one(i, s) for i, s in enumerate(CELLS)], metadata=kernel, nbformat=4, nbformat_minor=5)))


@pytest.fixture(scope='module')
def lab(browser, tmp_path_factory):
    pytest.importorskip('jupyterlab', reason='JupyterLab is not installed: pip install "libkd[notebooks]"')
    pytest.importorskip('anywidget', reason='anywidget is not installed: pip install "libkd[widgets]"')
    home = tmp_path_factory.mktemp('lab'); notebook(home/'x.ipynb')
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    token = uuid.uuid4().hex; url = f'http://127.0.0.1:{port}'
    settings = home/'settings/@jupyterlab/apputils-extension'; settings.mkdir(parents=True)
    (settings/'notification.jupyterlab-settings').write_text('{"fetchNews": "false", "checkForUpdates": false}')
    env = {k: v for k, v in os.environ.items() if k != 'LIBKD_WIDGETS'} | dict(HOME=str(home), JUPYTER_CONFIG_DIR=str(home/'config'),
        JUPYTERLAB_SETTINGS_DIR=str(home/'settings'), JUPYTERLAB_WORKSPACES_DIR=str(home/'spaces'), JUPYTER_DATA_DIR=str(home/'data'))
    server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--allow-root', '--no-browser', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0',
        f'--IdentityProvider.token={token}', f'--ServerApp.root_dir={home}', '--LabApp.expose_app_in_browser=True', '--LabApp.news_url=None'],
        env=env, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: urllib.request.urlopen(f'{url}/api/status?token={token}').status == 200, 90, 'JupyterLab did not start')
        page = browser.new_page(viewport=dict(width=1400, height=1000)); page.set_default_timeout(60_000)
        page.goto(f'{url}/lab/tree/x.ipynb?token={token}&reset'); page.wait_for_selector('.jp-NotebookPanel .jp-Cell'); run_all(page)
        yield page, home
        page.close()
    finally: server.terminate(); server.wait(30)


def wait(ready, seconds, why):
    end = time.time() + seconds
    while time.time() < end:
        try:
            if ready(): return
        except OSError: pass
        time.sleep(.3)
    raise AssertionError(why)

STATE = '''() => { const p = jupyterapp.shell.currentWidget, k = p?.sessionContext?.session?.kernel; if (!k) return null
  return { idle: k.status === 'idle', cells: p.content.widgets.length, done: p.content.widgets.every(c => c.model.type !== 'code' || c.model.executionCount) } }'''

def state(page): return page.evaluate(STATE) or {}

def run_all(page):
    wait(lambda: state(page).get('idle'), 90, 'no kernel')
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
    wait(lambda: state(page).get('done') and state(page)['idle'], 180, 'the notebook did not finish')
    for i, what in zip(VIEWS, READY): cell(page, i).locator(f'.kd {what}').first.wait_for()

def cell(page, i): return page.locator('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell').nth(i)

def output(page, i): return page.evaluate(f'() => jupyterapp.shell.currentWidget.content.widgets[{i}].model.outputs.toJSON()')


def test_views_are_live_and_hide_their_figures(lab):
    page, _ = lab
    for i in VIEWS:
        assert cell(page, i).locator('.kd').count() == 1 and cell(page, i).locator('figure[class^=kd-snap]').first.is_hidden()
        kinds = [set(o['data']) for o in output(page, i)]
        assert kinds == [{'application/vnd.jupyter.widget-view+json', 'text/html', 'text/plain'}, {'text/html', 'text/plain'}]


def test_keys_do_not_edit_the_notebook(lab):
    page, _ = lab; before = state(page)['cells']
    for i, selector in ((1, '[aria-label="Temperature T"]'), (1, '[role=option][tabindex="0"]'), (1, '[aria-label="Case"]'), (2, '[aria-label="Layer"]'),
                        (2, '.kd-stage'), (3, '.kd-easel'), (3, '[role=option][tabindex="0"]'), (3, '[data-preset=grey]')):
        cell(page, i).locator(selector).first.focus()
        for key in 'abdd': page.keyboard.press(key)
    assert state(page)['cells'] == before


def test_python_sees_what_the_user_does(lab):
    page, _ = lab
    cell(page, 1).locator('[aria-label="Temperature T"]').focus()
    for _ in range(4): page.keyboard.press('ArrowRight')
    cell(page, 1).locator('[role=option]').nth(3).click(); chosen = int(cell(page, 1).locator('[aria-selected=true]').get_attribute('data-index'))
    cell(page, 2).locator('[aria-label="Layer"]').focus(); page.keyboard.press('ArrowLeft')
    cell(page, 3).locator('[role=option]').nth(2).click()
    page.evaluate("() => { const n = jupyterapp.shell.currentWidget.content; n.activeCellIndex = 4; jupyterapp.commands.execute('notebook:run-cell') }")
    heard = lambda: f'T is 4.0 and selected {chosen} layer 1 picture 2' in json.dumps(output(page, 4))
    wait(heard, 60, 'Python did not hear')
    assert heard(), output(page, 4)


def test_the_networks_answer_in_jupyterlab(lab):
    page, _ = lab; play = cell(page, 3)
    play.locator('.kd-easel').focus(); page.keyboard.press('ArrowRight'); page.keyboard.press('ArrowRight')
    assert play.locator('.kd-moves .kd-quiet').text_content().startswith('2 moves')
    play.get_by_text('Start again').click()


def test_running_again_shows_one_view(lab):
    page, _ = lab; run_all(page); page.wait_for_timeout(500)
    assert [cell(page, i).locator('.kd').count() for i in VIEWS] == [1, 1, 1]


def test_saved_notebook_holds_the_pictures_and_no_state(lab):
    page, home = lab
    page.evaluate("() => { jupyterapp.commands.execute('docmanager:save') }")
    wait(lambda: (home/'x.ipynb').read_text().count('<img') == 3, 60, 'not saved')
    text = (home/'x.ipynb').read_text()
    assert 'widgets' not in json.loads(text)['metadata'] and len(text) < 300_000 and 'alt=\\"The teachers conv and inv decide differently on' in text


def test_reopened_with_a_dead_kernel_only_the_figures_are_seen(lab):
    page, _ = lab
    page.evaluate("() => { jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart() }"); page.wait_for_timeout(1500)
    page.reload(); page.wait_for_selector('.jp-NotebookPanel figure[class^=kd-snap] img'); wait(lambda: state(page).get('idle'), 90, 'no kernel')
    page.wait_for_timeout(1500)
    for i in VIEWS: assert cell(page, i).locator('.kd').count() == 0 and cell(page, i).locator('figure[class^=kd-snap]').first.is_visible()
    assert not [e for e in page.get_by_text('Error displaying widget').all() if e.is_visible()]


def test_after_a_restart_a_run_of_all_cells_brings_the_views_back(lab):
    page, _ = lab; run_all(page); page.wait_for_timeout(500)
    assert [cell(page, i).locator('.kd').count() for i in VIEWS] == [1, 1, 1]
    assert all(cell(page, i).locator('figure[class^=kd-snap]').first.is_hidden() for i in VIEWS)
