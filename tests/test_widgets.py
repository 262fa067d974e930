"""The disagreement explorer: its page in a real browser, its figure where there is none, and what it must not leave behind."""
import gc, importlib.resources, json, os, re, shutil, subprocess, sys, weakref
import numpy as np, pytest
import libkd.widgets as W
from libkd.diagnose import js_divergence, kl_divergence, soften

CHROMIUM = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), None)
N, C = 150, 6
rng = np.random.default_rng(3)
Y = rng.integers(0, C, N)
IMGS = rng.integers(0, 255, (N, 8, 8, 3), dtype=np.uint8)
noisy = lambda s: (2.5*np.eye(C)[Y] + rng.normal(0, s, (N, C))).astype('f4')
PREDS, HEADS = {k: noisy(s) for k, s in dict(conv=1.4, inv=1.7, student=1.).items()}, {k: noisy(1.5) for k in ('cls', 'conv', 'inv')}
SAYS = {k: v.argmax(1) for k, v in PREDS.items()}
NAMES = [f'img{i}.png' for i in range(N)]
EVIL = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>'

def explorer(**kw): return W.explore_disagreement(IMGS, PREDS, Y, **dict(dict(names=NAMES, heads=HEADS, classes=[f'c{i}' for i in range(C)]), **kw))


@pytest.fixture(scope='module')
def browser():
    sync = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install "libkd[dev]"')
    if CHROMIUM is None: pytest.skip('no Chromium on this machine: apt-get install chromium')
    with sync.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking'])
        yield b
        b.close()


@pytest.fixture
def show(browser, tmp_path):
    "Open an explorer's offline page; complain about any error and any request but the page itself."
    opened = []
    def open_page(w, **context):
        ctx = browser.new_context(offline=True, viewport=dict(width=1120, height=900), **context); page = ctx.new_page(); trouble = []
        page.on('pageerror', lambda e: trouble.append(str(e))); page.on('console', lambda m: m.type == 'error' and trouble.append(m.text))
        page.on('request', lambda r: r.url.startswith(('data:', 'blob:', 'file:')) or trouble.append(r.url))
        page.trouble = trouble; page.set_default_timeout(15_000)
        page.goto(w.to_html(tmp_path/'page.html').as_uri()); page.wait_for_selector('[role=option]')
        opened.append((ctx, trouble)); return page
    yield open_page
    for ctx, trouble in opened:
        ctx.close(); assert not trouble


def thumbs(page): return [int(i) for i in page.eval_on_selector_all('[role=option]', 'all => all.map(b => b.dataset.index)')]
def count(page): return int(re.match(r'(\d+) of', page.text_content('[role=status]'))[1])
def get(page, key): return page.evaluate(f"libkd.model.get('{key}')")


# -- the page --------------------------------------------------------------------------------------------------------------

def test_page_asks_for_nothing(show):
    page = show(explorer()); page.click('text=Show more'); page.click('[role=option] >> nth=70')
    assert not page.trouble and len(thumbs(page)) == 120

def test_browser_computes_what_python_computes(show):
    w = explorer(); page = show(w)
    for T in (2., .5, 7.):
        page.evaluate(f"libkd.model.set('T', {T})")
        i = get(page, 'selected')
        for name, z in {**PREDS, **{f'{h} head': z for h, z in HEADS.items()}}.items():
            p = page.eval_on_selector_all(f'rect[data-model="{name}"]', 'all => all.map(r => +r.dataset.p)')
            np.testing.assert_allclose(p, soften(z, T)[i], atol=2e-6)
        for sort, want in (('js', js_divergence([PREDS['conv'], PREDS['inv']], T)), ('kl:inv', kl_divergence(PREDS['inv'], PREDS['student'], T))):
            page.select_option('[aria-label="Sort by"]', sort)
            w.T, w.sort = T, sort
            np.testing.assert_allclose(want[thumbs(page)], np.sort(want)[::-1][:60], atol=1e-6)
            assert len(set(thumbs(page)) & set(w.order()[:60].tolist())) >= 59         # float32 ties may swap


def test_slider_moves_with_the_keyboard_and_flattens_the_bars(show):
    page = show(explorer()); top = lambda: max(page.eval_on_selector_all('rect[data-model=conv]', 'all => all.map(r => +r.dataset.p)'))
    before, order = top(), thumbs(page)
    page.focus('[aria-label="Temperature T"]')
    for _ in range(10): page.keyboard.press('ArrowRight')
    assert get(page, 'T') == 7 and page.text_content('output') == '7.0' and top() < before and thumbs(page) != order


def test_filters_count_right(show):
    w = explorer(); page = show(w)
    page.select_option('[aria-label="Case"]', 'only conv')
    only = (SAYS['conv'] == Y) & (SAYS['inv'] != Y)
    assert count(page) == only.sum() and get(page, 'case') == 'only conv'
    page.select_option('[aria-label="True class"]', 'c2')
    assert count(page) == (only & (Y == 2)).sum()
    page.click('text=Clear filters')
    assert count(page) == N and get(page, 'case') == ''
    page.select_option('[aria-label="Columns"]', 'truth')
    off = (SAYS['conv'] != Y).sum()
    assert f'conv (rows) and truth (columns) differ on {off} of {N} images' == page.text_content('caption >> nth=0')


def test_a_cell_of_the_confusion_filters_and_releases(show):
    page = show(explorer()); counts = {(r, c): int(((SAYS['conv'] == r) & (SAYS['inv'] == c)).sum()) for r in range(C) for c in range(C)}
    got = page.eval_on_selector_all('[data-cell]', 'all => Object.fromEntries(all.map(b => [b.dataset.cell, b.textContent]))')
    assert {k: int(v.replace('·', '0')) for k, v in got.items()} == {f'{r},{c}': n for (r, c), n in counts.items()}
    cell = max((rc for rc in counts if rc[0] != rc[1]), key=counts.get); selector = f'[data-cell="{cell[0]},{cell[1]}"]'
    page.click(selector)
    assert count(page) == counts[cell] and page.get_attribute(selector, 'aria-pressed') == 'true'
    assert page.evaluate('document.activeElement.dataset.cell') == f'{cell[0]},{cell[1]}'          # the focus stays
    page.click(selector)
    assert count(page) == N


def test_head_agreement_table(show):
    page = show(explorer())
    rows = page.eval_on_selector_all('table >> nth=1 >> tbody tr', 'all => all.map(r => [...r.children].map(c => c.textContent))')
    assert rows == [[f'{h} head', *(f'{(HEADS[h].argmax(1) == SAYS[t]).mean():.3f}' for t in ('conv', 'inv'))] for h in HEADS]


def test_keyboard_walks_the_thumbnails_and_screen_readers_hear_it(show):
    page = show(explorer()); order = thumbs(page)
    page.focus('[role=option][tabindex="0"]')
    page.keyboard.press('ArrowRight'); page.keyboard.press('ArrowRight')
    i = order[2]
    assert get(page, 'selected') == i and page.evaluate('+document.activeElement.dataset.index') == i
    assert page.get_attribute('[role=option][aria-selected=true]', 'aria-label') == f'image img{i}.png, truth c{Y[i]}, conv says c{SAYS["conv"][i]}, inv says c{SAYS["inv"][i]}'
    assert f'Selected: image img{i}.png' in page.text_content('[role=status]') and f'conv says c{SAYS["conv"][i]}' in page.get_attribute('svg[role=img]', 'aria-label')
    page.keyboard.press('ArrowDown'); columns = thumbs(page).index(get(page, 'selected')) - 2
    assert columns > 1 and page.eval_on_selector_all('[role=option]', 'all => all.filter(b => b.offsetTop === all[0].offsetTop).length') == columns
    page.keyboard.press('End'); assert get(page, 'selected') == order[-1]
    assert page.eval_on_selector_all('[role=option][tabindex="0"]', 'all => all.length') == 1
    unnamed = page.evaluate("[...document.querySelectorAll('button, select, input')].filter(b => !b.getAttribute('aria-label') && !b.textContent.trim()).length")
    assert unnamed == 0


def test_keys_stay_inside_but_escape_leaves(show):
    page = show(explorer())
    page.evaluate("window.heard = []; document.addEventListener('keydown', e => heard.push(e.key))")
    for selector in ('[role=option][tabindex="0"]', '[aria-label="Temperature T"]', '[aria-label="Case"]', '[data-cell][tabindex="0"]'):
        page.focus(selector)
        for key in ('a', 'b', 'd', 'd', 'ArrowDown', 'Escape'): page.keyboard.press(key)
    assert page.evaluate('[...new Set(heard)]') == ['Escape']


def test_names_are_text_never_markup(show):
    w = explorer(classes=[EVIL, *'bcdef'], names=[EVIL]*N); page = show(w)
    page.wait_for_timeout(100)
    assert page.evaluate('window.hacked') is None and page.eval_on_selector_all('#view img', 'all => all.length') == 0
    assert EVIL in page.eval_on_selector_all('[aria-label="True class"] option', 'all => all.map(o => o.textContent)')
    assert EVIL not in w._repr_mimebundle_()['text/html']


def test_figure_stands_in_only_while_the_module_is_away(show):
    page = show(explorer()); hidden = lambda: page.is_hidden('figure')
    assert hidden()
    page.evaluate('libkd.close()')
    assert not hidden() and 'conv and inv decide differently on' in page.get_attribute('figure img', 'alt')


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_is_readable_on_both_backgrounds(show, scheme):
    page = show(explorer(), color_scheme=scheme)
    worst = page.evaluate('''() => {
      const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true })
      const rgb = (...layers) => { canvas.clearRect(0, 0, 1, 1); layers.forEach(c => { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1) }); return canvas.getImageData(0, 0, 1, 1).data }
      const lum = d => [0, 1, 2].map(k => d[k] / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((s, v, k) => s + v * [.2126, .7152, .0722][k], 0)
      const paper = getComputedStyle(document.querySelector('.kd')).backgroundColor
      return Math.min(...[...document.querySelectorAll('.kd button, .kd th, .kd p, .kd li, .kd h2, .kd caption, .kd label, .kd text')].map(n => {
        const s = getComputedStyle(n), a = lum(rgb(n.tagName === 'text' ? s.fill : s.color)), b = lum(rgb(paper, s.backgroundColor))
        return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) })) }''')
    assert worst >= 4.5                                              # WCAG AA


def test_many_classes_give_pairs_and_unlabelled_data_no_truth(show):
    big = {k: rng.normal(size=(40, 30)).astype('f4') for k in ('a', 'b', 'c')}
    page = show(W.explore_disagreement(IMGS[:40], big))
    assert page.eval_on_selector_all('.kd-pairs li', 'all => all.length') == 20 and 'truth' not in page.text_content('[role=status]')
    page.click('.kd-pairs button >> nth=0'); assert count(page) >= 1


# -- without a browser -----------------------------------------------------------------------------------------------------

def test_only_the_most_divergent_travel():
    w = explorer(max_items=40); js = js_divergence([PREDS['conv'], PREDS['inv']], 2.)
    assert set(w.rows) == set(np.argsort(-js)[:40]) and len(w.state()['logits']) == 40*C*6*4
    assert w.state()['meta']['labels'] == [NAMES[i] for i in w.rows] and 'Shown: the 40 of 150' in w.state()['meta']['note']
    assert len(W._chosen(np.arange(5000.), 1000, 2000)) == 300             # 300,000 logits a model


@pytest.mark.slow
def test_headless_shows_the_figure_and_makes_no_widget(monkeypatch):
    monkeypatch.setenv('LIBKD_WIDGETS', 'headless')
    code = ("import sys, json, numpy as np; from IPython.core.interactiveshell import InteractiveShell; from IPython.utils.capture import capture_output\n"
            "s = InteractiveShell.instance(); import libkd.widgets as W; r = np.random.default_rng(0)\n"
            "w = W.explore_disagreement(r.integers(0, 255, (9, 8, 8, 3), dtype=np.uint8), {k: r.normal(size=(9, 3)) for k in 'ab'})\n"
            "with capture_output() as out: s.display_formatter.format(w)\n"
            "print(json.dumps([[sorted(o.data) for o in out.outputs], 'anywidget' in sys.modules, 'ipywidgets' in sys.modules, out.outputs[0].data['text/html'][:40]]))")
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    assert json.loads(out) == [[['text/html', 'text/plain']], False, False, '<figure class="kd-snap-' + json.loads(out)[3][23:]]


def test_without_the_extra_the_figure_names_it(monkeypatch):
    monkeypatch.setenv('LIBKD_WIDGETS', 'live'); monkeypatch.setitem(sys.modules, 'anywidget', None)
    w = explorer(); data = w._repr_mimebundle_()
    assert 'libkd[widgets]' in data['text/plain'] and 'libkd[widgets]' in data['text/html'] and '<img' in data['text/html']
    monkeypatch.setenv('LIBKD_WIDGETS', 'headless')
    assert 'libkd[widgets]' not in w._repr_mimebundle_()['text/plain']


def test_snapshot_follows_the_view():
    w = explorer(); w.case, w.T = 'only inv', 5.
    assert 'T = 5, case only inv' in w.snapshot().alt


@pytest.fixture
def live(monkeypatch):
    pytest.importorskip('anywidget', reason='anywidget is not installed: pip install "libkd[widgets]"')
    monkeypatch.setenv('LIBKD_WIDGETS', 'live'); yield
    for w in list(W._shown.values()): w.close()
    W._shown.clear()


def test_module_and_style_are_strings_and_travel_with_the_package(live):
    w = explorer().widget
    assert all(type(vars(W._widget_class())[k]) is str for k in ('_esm', '_css'))         # a Path would keep every instance for ever
    for name in ('disagree.js', 'kd.css'): assert (importlib.resources.files('libkd')/'static'/name).is_file()
    assert not re.search(r'^\s*import\b|https?://(?!www\.w3\.org/2000/svg)', w._esm, re.M)


def test_a_closed_view_is_freed_and_its_cell_closes_it(live):
    first = explorer(); ref = weakref.ref(first.widget); second = explorer()
    first.widget.T = 4.
    second.widget
    assert first._widget is None and first.T == 4.                        # what the user set stays
    gc.collect(); assert ref() is None
    assert first.widget is not None and second._widget is None            # shown again in its turn


def test_traits_go_both_ways(live):
    w = explorer(); w.widget.selected = 7; w.T = 3.
    assert w.selected == 7 and w.widget.T == 3.


def test_module_is_valid_javascript(tmp_path):
    if not shutil.which('node'): pytest.skip('no node on this machine')
    shutil.copy(importlib.resources.files('libkd')/'static'/'disagree.js', tmp_path/'m.mjs')
    check = lambda: subprocess.run(['node', '--check', tmp_path/'m.mjs'], capture_output=True, text=True)
    assert check().returncode == 0, check().stderr
    with open(tmp_path/'m.mjs', 'a') as f: f.write('}')
    assert check().returncode != 0


# -- from a Learner --------------------------------------------------------------------------------------------------------

def test_learner_brings_its_teachers_images_and_heads():
    from libkd.data import Samples
    from libkd.learner import distill_learner
    from libkd.teachers import as_teacher
    from libkd.views import image_dls
    from timm import create_model
    y = np.arange(40) % 4; imgs = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), dtype=np.uint8)
    dls = image_dls(Samples.from_arrays(imgs, y), bs=8, device='cpu')
    make = lambda name: as_teacher(create_model(name, num_classes=4), dls, name=name.replace('_', '-'))
    teachers = [make('resnet_mini'), make('rednet_mini')]
    w = distill_learner(dls, 'civt_nano', teachers=teachers, check=False).explore_disagreement()
    valid = dls.samples.valid
    assert set(w.teachers) == {'resnet-mini', 'rednet-mini'} and list(w.heads) == ['cls head', 'conv head', 'inv head'] and w.y.tolist() == list(valid.labels)
    assert np.abs(w.imgs.astype(int) - np.stack([np.asarray(s.source) for s in valid]).astype(int)).max() <= 1     # the images that were judged
    np.testing.assert_allclose(w.preds['resnet-mini'], teachers[0].logits(dls.valid.one_batch()[0], stats=dls.stats), atol=1e-5)
    with pytest.raises(ValueError, match='knows no live teachers'): distill_learner(dls, 'civt_nano').explore_disagreement()
