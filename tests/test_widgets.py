"""The disagreement explorer: its page in a real browser, its figure where there is none, and what it must not leave behind."""
import gc, importlib.resources, itertools, json, os, re, shutil, subprocess, sys, weakref
import numpy as np, pytest, torch
import libkd.widgets as W
from libkd.diagnose import TokenMaps, js_divergence, kl_divergence, sample_disagreement, soften, token_maps

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


def thumbs(page): return [int(i) for i in page.eval_on_selector_all('[role=option]', 'all => all.map(b => b.dataset.index)')]
def count(page): return int(re.match(r'(\d+) of', page.text_content('[role=status]'))[1])
def get(page, key): return page.evaluate(f"libkd.model.get('{key}')")


# -- the page --------------------------------------------------------------------------------------------------------------

def test_page_asks_for_nothing(show):
    page = show(explorer()); page.click('text=Show more'); page.click('[role=option] >> nth=70')
    assert not page.trouble and len(thumbs(page)) == 120

PARTIAL = {k: np.where(np.arange(C) == 4, -np.inf, z) if k == 'inv' else z for k, z in PREDS.items()}      # inv does not know class 4

@pytest.mark.parametrize('preds', [PREDS, PARTIAL], ids=['all classes', 'a class unknown'])
def test_browser_computes_what_python_computes(show, preds):
    w = W.explore_disagreement(IMGS, preds, Y, names=NAMES, heads=HEADS, classes=[f'c{i}' for i in range(C)]); page = show(w)
    for T in (2., .5, 7.):
        page.evaluate(f"libkd.model.set('T', {T})")
        i = get(page, 'selected')
        for name, z in {**w.preds, **w.heads}.items():                   # as they travel: half precision
            p = page.eval_on_selector_all(f'rect[data-model="{name}"]', 'all => all.map(r => +r.dataset.p)')
            np.testing.assert_allclose(p, soften(z, T)[i], atol=2e-6)
        for sort, want in (('js', js_divergence([w.preds['conv'], w.preds['inv']], T)), ('kl:inv', kl_divergence(w.preds['inv'], w.preds['student'], T))):
            page.select_option('[aria-label="Sort by"]', sort)
            w.T, w.sort = T, sort
            np.testing.assert_allclose(want[thumbs(page)], np.sort(want)[::-1][:60], atol=1e-6)
            assert len(set(thumbs(page)) & set(w.order()[:60].tolist())) >= 59         # float32 ties may swap
        far = kl_divergence(preds['inv'], preds['student'], T)[w.rows][get(page, 'selected')]      # of what was given
        assert float(re.search(r'KL\(inv ‖ student\) ([\d.]+)', page.text_content('.kd-picture'))[1]) == pytest.approx(far, abs=.005)


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


@pytest.mark.slow
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


@pytest.mark.slow
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


ALIKE = {'numbers': [f'class {i}' for i in range(12)], 'synsets': [f'n{1440764 + 137*c:08d}' for c in range(30)],
         'words': [f'n{2085620 + 137*c:08d}-{"Soft_coated_wheaten_terrier"[c % 9:]}_{"x"*(20 + c)}' for c in range(20)]}
TEXTS = """() => [...document.querySelectorAll('.kd-bars text')].filter(t => t.textContent).map(t => { const r = t.getBoundingClientRect()
  return { left: r.left, right: r.right, y: Math.round(r.y), name: t.firstChild.textContent, under: !!t.querySelector('title') } })"""

@pytest.mark.slow
@pytest.mark.parametrize('width', [1120, 390])
@pytest.mark.parametrize('kind', ALIKE)
def test_names_that_begin_alike_are_told_apart_and_fit(show, kind, width):
    names = ALIKE[kind]; logits = {k: np.random.default_rng(i).normal(size=(60, len(names))).astype('f4') for i, k in enumerate('abc')}
    w = W.explore_disagreement(IMGS[:60], logits, np.arange(60) % len(names), classes=names); page = show(w, viewport=dict(width=width, height=844))
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    texts = page.evaluate(TEXTS); box = page.eval_on_selector('.kd-bars', 'n => [n.getBoundingClientRect().left, n.getBoundingClientRect().right]')
    assert all(box[0] <= t['left'] and t['right'] <= box[1] + .5 for t in texts)
    under = [t for t in texts if t['under']]; assert len({t['name'].strip('▸') for t in under}) == len(under) == 10
    for a, b in itertools.combinations(under, 2): assert a['y'] != b['y'] or a['right'] <= b['left'] + 1 or b['right'] <= a['left'] + 1, (a, b)
    said = page.eval_on_selector_all('.kd-caption', "all => all.map(c => c.dataset.says.split('|'))")
    z = [v.argmax(1) for v in logits.values()]; truth = {(names[k[i]]): s for i, at in zip(thumbs(page), said) for k, s in zip(z, at)}
    assert len(set(truth.values())) == len(truth) > 5 and all(s.count('…') == 1 for s in truth.values())


# -- without a browser -----------------------------------------------------------------------------------------------------

def test_only_the_most_divergent_travel():
    w = explorer(max_items=40); js = js_divergence([PREDS['conv'], PREDS['inv']], 2.)
    assert set(w.rows) == set(np.argsort(-js)[:40]) and len(w.state()['logits']) == 40*C*6*2
    assert w.state()['meta']['labels'] == [NAMES[i] for i in w.rows] and 'Shown: the 40 of 150' in w.state()['meta']['note']
    assert len(W._chosen(np.arange(5000.), 1000, 2000)) == 1000            # a million logits a model


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
    monkeypatch.setenv('LIBKD_WIDGETS', 'live')


def test_module_and_style_are_strings_and_travel_with_the_package(live):
    w = explorer().widget
    assert all(type(vars(type(w).__mro__[1])[k]) is str for k in ('_esm', '_css'))            # a Path would keep every instance for ever
    for name in ('disagree.js', 'attention.js', 'dom.js', 'kd.css', 'play.css', 'page.js', 'page.html'): assert (importlib.resources.files('libkd')/'static'/name).is_file()
    assert not re.search(r'^\s*import\b|https?://(?!www\.w3\.org/2000/svg)', w._esm, re.M)


def test_a_cell_that_runs_again_hands_its_model_on(live):
    places, first, second = W.Places(), explorer(), explorer(T=3.)
    places.enter(first, 'a', 1); model = first.widget; model.T = 4.
    places.enter(second, 'a', 2)
    assert second.widget is model and model.T == 3. and first._model is None and first.T == 4.      # what the user set stays
    other, beside = explorer(), explorer()
    places.enter(other, 'b', 3); places.enter(beside, 'b', 3)                  # another cell, and two views of one run
    assert len({id(v.widget) for v in (second, other, beside)}) == 3
    places.enter(explorer(), 'b', 4); places.enter(explorer(), 'b', 5)         # one view where there were two: the other is closed
    assert other._model is None and beside._model is None


@pytest.mark.slow
def test_a_closed_view_is_freed(live):
    first = explorer(); ref = weakref.ref(first.widget); first.close()
    gc.collect(); assert ref() is None
    assert first.widget is not None                                       # shown again


def test_traits_go_both_ways(live):
    w = explorer(); heard = []; w.on_change(heard.append); w.widget.selected = 7; w.T = 3.
    assert w.selected == 7 and w.widget.T == 3. and heard == ['selected', 'T']
    w.close(); w.T = 5.
    assert heard[-1] == 'T' and w.T == 5.


@pytest.mark.slow
@pytest.mark.parametrize('name', ['disagree', 'attention', 'scatter', 'cache'])
def test_modules_are_valid_javascript_alone_and_together(tmp_path, name):
    if not shutil.which('node'): pytest.skip('no node on this machine')
    for file in (importlib.resources.files('libkd')/'static').iterdir():
        if file.name.endswith('.js') and file.name != 'page.js': (tmp_path/file.name).write_text(file.read_text(encoding='utf-8'), encoding='utf-8')
    (tmp_path/'package.json').write_text('{"type": "module"}'); (tmp_path/'whole.js').write_text(W.bundle(f'{name}.js'), encoding='utf-8')
    node = lambda *args: subprocess.run(['node', *args], cwd=tmp_path, capture_output=True, text=True)
    assert node('--check', 'whole.js').returncode == 0, node('--check', 'whole.js').stderr
    loads = node('-e', f'import("./{name}.js").then(m => console.log(typeof m.default.render))')
    assert loads.stdout == 'function\n', loads.stderr                                 # every name that is imported exists
    with open(tmp_path/'whole.js', 'a') as f: f.write('}')
    assert node('--check', 'whole.js').returncode != 0


# -- the attention viewer --------------------------------------------------------------------------------------------------

ATTN = rng.dirichlet(np.ones(19)*.5, (5, 2, 3, 19)).astype('f4')            # 5 pictures, 2 layers, 3 heads, 3 + 16 tokens
TELLS = rng.integers(0, 101, (2, 5, 2, 3, 5)).astype(float)
SEEN = dict(t_conv=rng.random((5, 4, 4)), t_inv=rng.random((5, 4, 4)))
TARGETS = ('the mean saliency of the teachers', 'the saliency of t_conv', 'the saliency of t_inv')

def viewer(**kw):
    given = dict(saliency=SEEN, guides=dict(conv='t_conv', inv='t_inv'), percentiles=TELLS, rivals=(40, 8), targets=TARGETS, answers=[f'truth {i}' for i in range(5)])
    return W.explore_attention(IMGS[:5], ATTN, tokens=('cls', 'conv', 'inv'), **{**given, **kw})

def maps_of(page): return page.eval_on_selector_all('.kd-maps tbody tr', "all => all.map(r => [...r.querySelectorAll('button')].map(b => b.getAttribute('aria-label')))")
def times(label): return float(re.search(r'([\d.]+) times uniform', label)[1])
def row_of(layer, patch, picture=0):
    P = ATTN[picture, layer, :, 3 + patch, 3:]
    return P/P.mean(-1, keepdims=True)


def test_attention_page_shows_the_maps_of_python(show):
    page, want = show(viewer()), token_maps(ATTN, 3, (4, 4))
    assert page.eval_on_selector_all('.kd-maps thead th', 'all => all.map(h => h.textContent)') == ['teacher', 'head 1', 'head 2', 'head 3', 'mean', 'rollout']
    for layer, i in ((1, 0), (0, 3)):
        page.evaluate(f"libkd.model.set('layer', {layer}); libkd.model.set('selected', {i})"); rows = maps_of(page)
        for t, c in itertools.product(range(3), range(5)):
            label, m = rows[t][c + 1], want[i, layer, t, c]
            assert times(label) == pytest.approx(m.max(), abs=.06) and f'row {m.argmax()//4 + 1}, column {m.argmax() % 4 + 1}' in label
            assert f'{TARGETS[t]} better than {TELLS[0, i, layer, t, c]:.0f} % of this head' in label
            assert f'better than {TELLS[1, i, layer, t, c]:.0f} % of the maps of 8 networks' in label


def test_attention_from_anywhere_is_compared_with_the_other_pictures(show):
    made, n = np.random.default_rng(3), 24
    attn, seen = made.dirichlet(np.ones(18), (n, 1, 2, 18)).astype('f4'), made.random((n, 4, 4))
    view = W.explore_attention(IMGS[:n], attn, tokens=('cls', 'conv'), saliency=dict(t_conv=seen), guides=dict(conv='t_conv'))
    mine = token_maps(attn, 2, (4, 4))[:, 0, 1, 0].reshape(n, -1)                      # layer 1, conv token, head 1
    fits = np.corrcoef(mine, seen.reshape(n, -1))[:n, n:]                              # map of picture j, target of i
    by_hand = 100*(fits[:, 0] < fits[0, 0]).sum()/(n - 1)
    assert f'the saliency of t_conv better than {by_hand:.0f} % of this head’s maps on 23 other pictures; chance' in maps_of(show(view))[1][1]
    few = W.explore_attention(IMGS[:5], attn[:5], tokens=('cls', 'conv'))
    assert few.maps.percentiles is None and 'chance' not in maps_of(show(few))[1][1]


def test_a_patch_asks(show):
    page = show(viewer())
    page.focus('.kd-stage'); page.keyboard.press('ArrowRight')                     # starts in the middle: row 3, column 3
    assert get(page, 'query') == 10
    page.keyboard.press('ArrowUp'); assert get(page, 'query') == 6
    for h, m in enumerate(row_of(1, 6)): assert times(maps_of(page)[3][h + 1]) == pytest.approx(m.max(), abs=.06)
    page.keyboard.press('Escape'); assert get(page, 'query') == -1
    box = page.locator('.kd-stage').bounding_box(); page.mouse.move(box['x'] + box['width']*.9, box['y'] + 5)
    assert get(page, 'query') == 3
    page.mouse.move(5, 5); assert get(page, 'query') == -1                         # hovering leaves nothing behind


def test_difference_of_two_tokens_is_signed(show):
    page = show(viewer()); page.select_option('[aria-label=Difference]', 'inv − conv')
    d = np.subtract(*token_maps(ATTN, 3, (4, 4))[0, 1, [2, 1], 0])
    assert f'row {d.argmax()//4 + 1}, column {d.argmax() % 4 + 1}' in maps_of(page)[3][1]
    assert page.locator('.kd-scale').count() == 2 and page.text_content('.kd-scale >> nth=1').startswith('difference-')


def test_python_answers_and_stale_answers_are_dropped(browser, tmp_path):
    file = viewer().to_html(tmp_path/'p.html'); asks = 'values.meta.shipped = 0; window.sent = []; model.send = m => sent.push(m); const close ='
    file.write_text(file.read_text(encoding='utf-8').replace('const close =', asks), encoding='utf-8')
    page = browser.new_page(); page.goto(file.as_uri()); page.focus('.kd-stage')
    for _ in range(2): page.keyboard.press('ArrowRight')
    first, second = page.evaluate('sent')
    assert [(m['kind'], m['patch'], m['layer']) for m in (first, second)] == [('rows', 10, 1), ('rows', 11, 1)]
    def reply(m):
        raw = list(viewer().answer('rows', picture=m['picture'], layer=m['layer'], patch=m['patch'])[0])
        page.evaluate("([m, raw]) => libkd.heard['msg:custom'].forEach(f => f(m, [new DataView(Uint8Array.from(raw).buffer)]))", [m, raw])
        return maps_of(page)[3]
    now = reply(second)
    assert times(now[1]) == pytest.approx(row_of(1, 11)[0].max(), abs=.06)
    assert reply(first) == now                                                     # too late
    page.close()


def test_what_cannot_be_seen_is_a_sentence(show):
    page = show(W.explore_attention(TokenMaps(IMGS[:5], (4, 4), tokens=(), saliency=dict(cnn=np.ones((5, 4, 4))), notes=['ResNet has no attention.'])))
    assert 'ResNet has no attention.' in page.text_content('.kd-note') and page.locator('.kd-map').count() == 1 and page.locator('[aria-label=Layer]').count() == 0
    bare = ATTN[..., 3:, 3:]/ATTN[..., 3:, 3:].sum(-1, keepdims=True); page = show(W.explore_attention(IMGS[:5], bare, tokens=()))
    assert page.eval_on_selector_all('.kd-maps tbody th', 'all => all.map(h => h.textContent)') == ['all patches', 'a patch']


def test_an_attention_page_is_light(tmp_path):
    centre = rng.random((6, 6, 4, 67, 1, 2))*8; at = np.stack(np.meshgrid(range(8), range(8)), -1).reshape(64, 2)
    bump = np.exp(-((at - centre)**2).sum(-1)/8) + .02                      # as trained heads look: at one place, and a little everywhere
    A = np.concatenate([np.full((6, 6, 4, 67, 3), .1), bump], -1); many = rng.integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)
    assert W.explore_attention(many, A, tokens=('cls', 'conv', 'inv')).to_html(tmp_path/'a.html').stat().st_size < 100_000


def test_linked_views_choose_the_same_picture():
    w, v = explorer(), viewer(); asked = []
    v.read = lambda rows: asked.append(rows) or viewer().maps
    W.link(w, v)
    w.selected = int(np.flatnonzero(w.rows == 3)[0]); assert v.rows[v.selected] == 3 and not asked
    v.selected = 1; assert w.rows[w.selected] == 1
    w.selected = int(np.flatnonzero(w.rows == 77)[0]); assert asked == [[0, 1, 2, 3, 4, 77]] and v.rows[v.selected] == 77
    v.show(78); assert w.rows[w.selected] == 78                               # another picture in the same place is heard, too


# -- points, caches, trainings ---------------------------------------------------------------------------------------------

DF = sample_disagreement(PREDS, Y)
POINTS = rng.normal(size=(N, 2))

def points(): return W.FeatureMap(IMGS, POINTS, DF, W.Known(names=NAMES), ('one', 'two'), 'A note.')


@pytest.mark.slow
def test_points_are_chosen_by_mouse_and_arrows_and_brushed_by_case(show):
    page = show(points()); box = page.locator('.kd-scatter svg').bounding_box(); marks = page.locator('.kd-scatter g path')
    def place(i): b = marks.nth(i).bounding_box(); return b['x'] + b['width']/2, b['y'] + b['height']/2
    xy = np.array([place(i) for i in range(N)])
    assert np.corrcoef(xy[:, 0], POINTS[:, 0])[0, 1] > .999 and np.corrcoef(xy[:, 1], -POINTS[:, 1])[0, 1] > .999
    page.mouse.click(*xy[17]); i = get(page, 'selected')
    assert np.hypot(*(xy - xy[17]).T)[i] < 3 and f'image img{i}.png' in page.text_content('[role=status]')
    page.focus('.kd-scatter'); page.keyboard.press('ArrowRight'); assert xy[get(page, 'selected'), 0] > xy[i, 0]
    page.select_option('[aria-label=Case]', 'only conv'); only = (DF.case == 'only conv').to_numpy()
    assert page.text_content('[role=status]').startswith(f'{only.sum()} of {N} images')
    assert page.eval_on_selector_all('.kd-scatter g path', "all => all.map(p => +p.getAttribute('opacity') === 1)") == only.tolist()
    shapes = page.eval_on_selector_all('.kd-key path', "all => all.map(p => p.getAttribute('d').replace(/[\\d.-]+/g, ''))")
    assert len(set(shapes)) == len(shapes) == 4                                # colour is never alone


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
    from libkd.cache import LogitCache
    from libkd.data import Samples
    from libkd.teachers import as_teacher, model_for
    from libkd.views import image_dls
    imgs = np.random.default_rng(0).integers(0, 255, (60, 16, 16, 3), dtype=np.uint8)
    dls = image_dls(Samples.from_arrays(imgs, np.arange(60) % 4), bs=8, device='cpu')
    teachers = [as_teacher(model_for(m, dls), dls, name=n) for n, m in dict(conv='resnet_mini', inv='rednet_mini').items()]
    return LogitCache.build(tmp_path_factory.mktemp('cache')/'c', dls, teachers, views=2, check=False), dls, teachers


def test_cache_shows_any_sample_in_any_view(show, stored):
    cache, dls, _ = stored; w = cache.explore(dls, rows=[3, 0, 7]); page = show(w)
    page.click('[role=option] >> nth=2'); page.focus('[aria-label=View]'); page.keyboard.press('ArrowRight')
    assert (get(page, 'selected'), get(page, 'view')) == (2, 1) and 'Sample 7, view 2 of 2' in page.text_content('[role=status]')
    for k, z in cache.gather(torch.tensor([7]), 1).items():
        p = page.eval_on_selector_all(f'rect[data-model="{k}"]', 'all => all.map(r => +r.dataset.p)')
        np.testing.assert_allclose(p, soften(z)[0], atol=2e-4)
    assert '✓ all 8 files' in page.text_content('.kd-good') and w.imgs.shape == (6, 16, 16, 3)
    assert (w.imgs[0] != w.imgs[1]).any()                                      # two views of one image


def test_a_damaged_file_is_named(show, stored):
    cache, *_ = stored; files = W.file_states(cache).file; one, two = (cache.path/files.iloc[i] for i in (2, -1))
    kept = one.read_bytes(), two.read_bytes()
    try:
        one.write_bytes(kept[0][:-1] + bytes([kept[0][-1] ^ 1])); two.unlink()
        states = W.file_states(cache).set_index('file').state
        assert states[files.iloc[2]] == 'damaged' and states[files.iloc[-1]] == 'missing' and (states == 'whole').sum() == 6
        page = show(cache.explore())
        assert '2 of 8 files are not whole' in page.text_content('.kd-bad') and page.eval_on_selector_all('.kd-files b', 'all => all.map(b => b.textContent)') == ['damaged', 'missing']
    finally: one.write_bytes(kept[0]); two.write_bytes(kept[1])


def learner(stored, source=0):
    from libkd.learner import distill_learner
    cache, dls, teachers = stored
    return distill_learner(dls, 'civt_nano', teachers=cache if source == 0 else teachers, check=False, seed=0)

def quiet(learn, epochs, *cbs):
    import fastai.callback.schedule
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 2e-3, cbs=cbs)


def test_monitor_sees_what_the_recorder_sees(stored, tmp_path):
    import pandas as pd
    learn, monitor = learner(stored), W.TrainingMonitor(tmp_path/'c.csv', every=0); quiet(learn, 2, monitor)
    t, log = monitor.table, learn.recorder
    first = t[(t.epoch == 1) & t['loss'].notna()]
    assert first['loss'].mean() == pytest.approx(np.mean([float(l) for l in log.losses[:len(first)]]), abs=.2) and len(first) == len(learn.dls.train)
    row = dict(zip(log.metric_names[1:], log.values[0]))
    for k in ('label', 'kd_conv', 'kd_inv'): assert first[k].mean() == pytest.approx(row[k], rel=1e-4)
    judged = t[t.valid_loss.notna()]
    assert judged.valid_loss.tolist() == pytest.approx([v[1] for v in log.values]) and judged.ECE.between(0, 1).all()
    assert first['conv as conv'].between(0, 1).all() and (first.lr > 0).all() and 'done: ' in monitor.said()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'c.csv'), t, check_dtype=False, atol=1e-9)
    html = W.training_html(t, '<b>"'); assert '&lt;b&gt;' in html and '<b>' not in html and len(html) < 20_000


@pytest.mark.slow
@pytest.mark.parametrize('limit', [5000, 5])
def test_calibration_is_that_of_the_epoch(stored, monkeypatch, limit):
    "… and of no more images than it says"
    from fastai.callback.core import Callback
    from libkd.diagnose import ece
    keep, said = W.TrainingMonitor._keep, []
    monkeypatch.setattr(W.TrainingMonitor, '_keep', lambda self: keep(self, limit))
    class Ask(Callback):
        order = 70
        def before_validate(self): said.append([])
        def after_batch(self):
            if not self.training: said[-1].append((self.pred.clone(), self.yb[0].clone()))
    learn, monitor = learner(stored), W.TrainingMonitor(); quiet(learn, 3, monitor, Ask())
    of_epoch = [ece(*(torch.cat(o)[:limit] for o in zip(*batches))) for batches in said]
    judged = monitor.table.dropna(subset='valid_loss')
    assert len({*of_epoch}) == 3 and judged.ECE.tolist() == pytest.approx(of_epoch, abs=1e-9)


def test_looking_before_and_after_a_training_is_not_monitored(stored):
    learn = learner(stored); learn.add_cbs(monitor := W.TrainingMonitor())
    with learn.no_bar(), learn.no_logging():
        learn.validate(); quiet(learn, 2); table = monitor.table
        learn.validate(); learn.get_preds()
    assert monitor.table.equals(table) and table.epoch.max() == 2 and table.ECE.notna().sum() == 2


@pytest.mark.parametrize('n', [0, 1, 2, 199, 200, 201, 399, 400, 1999])
def test_a_curve_has_at_most_200_points_with_its_ends(n):
    xs = range(n + 1); ys = [*np.arange(n), np.nan]            # the last one is not known
    points = W._thin(xs, ys)
    assert len(points) == min(n, 200) and points[:1] + points[-1:] == ([(0, 0), (n - 1, n - 1)] if n else [])
    assert [*dict.fromkeys(points)] == sorted(points)


def test_a_monitor_fits_a_phone(browser, tmp_path):
    import pandas as pd
    steps = np.arange(20)
    table = pd.DataFrame(dict(step=steps, loss=.9**steps, accuracy=1 - .9**steps, lr=1e-3*np.ones(20)))
    (tmp_path/'m.html').write_text('<body>' + W.training_html(table, 'Training, about 12 s left: loss 0.1'), encoding='utf-8')
    page = browser.new_page(viewport=dict(width=390, height=800)); page.goto((tmp_path/'m.html').as_uri())
    boxes = page.eval_on_selector_all('img', 'all => all.map(i => [i.getBoundingClientRect().top, i.getBoundingClientRect().width])')
    assert [round(w) for _, w in boxes] == [350]*3 and len({top for top, _ in boxes}) == 3         # whole, below each other
    assert page.text_content('p') == 'Training, about 12 s left' and page.get_attribute('img', 'alt').endswith('loss 0.1')
    page.close()


def test_an_interrupt_ends_the_training_in_order_and_is_given_back(stored):
    import signal
    from fastai.callback.core import Callback
    class Press(Callback):
        order = 70
        def after_batch(self):
            if self.training and self.epoch == 0 and self.iter == 2: signal.raise_signal(signal.SIGINT)
    before = signal.getsignal(signal.SIGINT); learn, monitor = learner(stored, 1), W.TrainingMonitor(); quiet(learn, 3, monitor, Press())
    assert monitor.step == 4 and monitor.stop and 'stopped' in monitor.said() and signal.getsignal(signal.SIGINT) is before
    class Fail(Callback):
        def before_batch(self): raise RuntimeError('a fault')
    with pytest.raises(RuntimeError, match='a fault'): quiet(learner(stored, 1), 1, W.TrainingMonitor(), Fail())
    with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)         # fit is over: as ever
    assert signal.getsignal(signal.SIGINT) is before


def test_headless_monitor_shows_one_figure(stored, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    monkeypatch.setenv('LIBKD_WIDGETS', 'headless'); InteractiveShell.instance()
    try:
        learn = learner(stored)
        with capture_output() as out: quiet(learn, 1, W.TrainingMonitor(every=0))
        assert len(out.outputs) == 1 and '<figure' in out.outputs[0].data['text/html'] and out.stdout == ''
    finally: InteractiveShell.clear_instance()


@pytest.mark.slow
@pytest.mark.parametrize('make', [explorer, viewer, points], ids=['explorer', 'attention', 'points'])
@pytest.mark.parametrize('how', [dict(), dict(color_scheme='dark'), dict(viewport=dict(width=390, height=800))], ids=['light', 'dark', 'phone'])
def test_axe_finds_nothing_and_nothing_sticks_out(show, make, how):
    axe = pytest.importorskip('axe_playwright_python', reason='axe is not installed: pip install "libkd[dev]"')
    page = show(make(), **how); page.add_script_tag(path=f'{axe.__path__[0]}/axe.min.js')
    found = page.evaluate("axe.run(document).then(r => r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html).slice(0, 3).join(' | ')))")
    assert not found, found
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')


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
    z = teachers[0].logits(dls.valid.one_batch()[0], stats=dls.stats)
    np.testing.assert_allclose(w.preds['resnet-mini'], z - z.max(1, keepdim=True).values, atol=2e-3)
    v = distill_learner(dls, 'civt_nano', teachers=teachers, check=False).explore_attention(rows=2, others=4, shuffles=1)
    assert v.maps.guides == {'conv': 'resnet-mini', 'inv': 'rednet-mini'} and v.maps.targets[1] == 'the saliency of resnet-mini' and v.rows.tolist() == [0, 1]
    with pytest.raises(ValueError, match='knows no live teachers'): distill_learner(dls, 'civt_nano').explore_disagreement()


# -- bad input ---------------------------------------------------------------------------------------------------------

SAY = lambda C=C, n=N: np.random.default_rng(C).normal(0, 2, (n, C)).astype('f4')
MAPS = np.random.default_rng(0).dirichlet(np.ones(19), (4, 3, 2, 19))
FEATURES = np.random.default_rng(0).normal(0, 1, (N, 8))
REFUSED = {
    'one teacher': (lambda: W.explore_disagreement(IMGS, dict(conv=SAY(), student=SAY()), Y), 'two teachers or more; given: conv'),
    'NaN in answers': (lambda: W.explore_disagreement(IMGS, dict(conv=SAY()*np.nan, inv=SAY()), Y), 'conv hold NaN or .∞ in 150 of 150 rows'),
    'NaN in pictures': (lambda: W.explore_disagreement(IMGS*np.nan, PREDS, Y), 'images hold NaN'),
    'NaN in labels': (lambda: W.explore_disagreement(IMGS, PREDS, Y*np.nan), 'labels are NaN; an image without a label has the label -1'),
    'a label too many': (lambda: W.explore_disagreement(IMGS, PREDS, Y + 1), 'label 6 does not fit 6 classes'),
    'other classes': (lambda: W.explore_disagreement(IMGS, dict(conv=SAY(), inv=SAY(7)), Y), r"different numbers of classes: {'conv': 6, 'inv': 7}"),
    'sizes': (lambda: W.explore_disagreement([*IMGS[1:], IMGS[0, :4]], PREDS, Y), r'different sizes, \[\(4, 8, 3\), \(8, 8, 3\)\]'),
    'nothing': (lambda: W.explore_disagreement(IMGS[:0], dict(conv=SAY(n=0), inv=SAY(n=0))), 'no image here'),
    'NaN in attention': (lambda: W.explore_attention(IMGS[:4], MAPS*np.nan, tokens=('cls', 'conv', 'inv')), 'attention holds NaN'),
    'no attention': (lambda: W.explore_attention(IMGS[:4]), 'pictures alone have no attention'),
    'other tokens': (lambda: W.explore_attention(IMGS[:4], MAPS), '18 patches beside 1 tokens are no square'),
    'NaN in features': (lambda: W.explore_features(IMGS, FEATURES*np.nan, PREDS, Y), 'features hold NaN'),
    'one feature': (lambda: W.explore_features(IMGS, FEATURES[:, :1], PREDS, Y), r'shape \(150, 1\); needed are two images or more, with two numbers')}

@pytest.mark.parametrize('what', REFUSED)
def test_what_cannot_be_shown_is_refused_in_a_sentence(what):
    make, words = REFUSED[what]
    with pytest.raises(ValueError, match=words): make()


@pytest.mark.slow
@pytest.mark.parametrize('preds, y, classes, cases', [
    (dict(conv=PREDS['conv'], inv=PREDS['conv']), Y, None, {'both right', 'both wrong'}), (PREDS, np.where(Y > 2, -1, Y), None, None),
    (dict(conv=SAY(1500), inv=SAY(1500)), Y, None, None), (PREDS, Y, ['قطة', 'כלב', 'گربه', *'abc'], None)],
    ids=['no disagreement', 'some labels', '1,500 classes', 'right to left'])
def test_what_is_odd_is_shown(show, preds, y, classes, cases):
    w = W.explore_disagreement(IMGS, preds, y, classes=classes); page = show(w)
    assert page.locator('[role=option]').count() >= 8 and w.snapshot().png()
    if cases: assert set(w.df.case) <= cases and w.df.js.max() == pytest.approx(0, abs=1e-9)
    if classes: assert all(name in page.text_content('.kd') for name in classes[:3])
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')


def test_an_old_browser_shows_the_figure_and_says_so(browser, tmp_path):
    ctx = browser.new_context(java_script_enabled=False); page = ctx.new_page()
    page.goto(explorer().to_html(tmp_path/'p.html').as_uri())
    assert 'This browser cannot show the view' in page.text_content('#view') and page.locator('figure img').is_visible()
    assert page.locator('figure img').get_attribute('alt').startswith('The teachers conv and inv')
    ctx.close()


@pytest.mark.slow
def test_points_of_tsne_depend_on_the_seed_alone():
    one, same, other = (W.explore_features(IMGS, FEATURES, PREDS, Y, method='tsne', seed=s).points for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same); assert one.shape == (N, 2) and not np.allclose(one, other)


@pytest.mark.slow
def test_a_learner_writes_its_report_as_one_page(browser, stored, tmp_path):
    learn = learner(stored); file = learn.report(tmp_path/'r.html'); page = browser.new_page(viewport=dict(width=390, height=800))
    asked = []; page.on('request', lambda r: asked.append(r.url)); page.goto(file.as_uri())
    assert page.eval_on_selector_all('h2', 'all => all.map(h => h.textContent)') == ['How good they are', 'How honest their confidence is', 'Where they disagree', 'Where it looks']
    assert all(page.eval_on_selector_all('figure img', 'all => all.map(i => i.complete && i.naturalWidth > 0 && i.alt === i.closest("section").querySelector(".said").textContent)'))
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth') and not [u for u in asked if not u.startswith(('data:', 'file:'))]
    page.close()
