"""The site is complete and asks nobody: built without network, no warning, no dead link, no picture without a text."""
import json, os, re, shutil, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'.ci'/'docs'))


def offline():
    "A prefix that takes the network away, where the system allows that to us."
    prefix = ['unshare', '--map-root-user', '--net']
    able = shutil.which('unshare') and subprocess.run([*prefix, 'true'], capture_output=True).returncode == 0
    return prefix if able else []


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')/'html'
    done = subprocess.run([*offline(), sys.executable, str(ROOT/'.ci'/'docs'/'build.py'), str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return out


@pytest.mark.slow
def test_every_notebook_has_its_page(site):
    import pages
    expected = {pages.page_name(p.relative_to(pages.NBS)) + '.html' for p in pages.NBS.rglob('[!_]*.ipynb') if not any(o[0] in '_.' for o in p.parts)}
    built = {p.relative_to(site).as_posix() for p in site.rglob('*.html')}
    assert expected <= built and (site/'searchindex.js').exists()


@pytest.mark.slow
def test_entries_links_and_formulas_are_there(site):
    page = (site/'losses.html').read_text(encoding='utf-8')
    assert 'id="kd_loss"' in page and '<math' in page and '<dl' in page
    assert any('losses.html#kd_loss"><code' in p.read_text(encoding='utf-8') for p in site.rglob('*.html') if p.name != 'losses.html'), 'a name in backticks leads to its entry'


def test_a_lesson_tells_no_answer_before_it_is_asked_for():
    from libkd.course import lessons, open_lesson, tags_of
    import pages
    for name in lessons():
        nb = open_lesson(name); cells = pages.page(nb, name, {})
        for above, cell in zip(cells, cells[1:]):
            tags = tags_of(cell)
            if {'solution', 'check'} & set(tags): assert 'hide-cell' in tags
            if 'predict' in tags: assert 'hide-output' in tags and cell['metadata']['mystnb']['code_prompt_show']
            if 'predict' not in tags_of(above) or cell['cell_type'] == 'code': continue
            assert cell['source'].startswith(('<details>', '#', '**')), cell['source'][:60]


def test_faults_of_a_site_are_found(tmp_path):
    from after import faults
    (tmp_path/'x.png').touch()
    (tmp_path/'a.html').write_text('<h1 id="top">a</h1><a href="b.html#here">b</a><a href="https://example.org">elsewhere</a><img src="x.png" alt="x">')
    (tmp_path/'b.html').write_text('<a href="a.html#top">a</a><p id="here">')
    assert faults(tmp_path) == []
    for fault, why in [('<script src="https://cdn.example.org/x.js"></script>', 'loads https'), ('<link rel="stylesheet" href="//fonts.example.org/x.css">', 'loads //fonts'),
                       ('<a href="c.html">c</a>', 'does not exist'), ('<a href="a.html#nowhere">a</a>', 'no such anchor'), ('<img src="x.png">', 'without alt text'),
                       ('<img src="y.png" alt="y">', 'y.png is not there')]:
        (tmp_path/'b.html').write_text('<p id="here">' + fault)
        assert [f for f in faults(tmp_path) if why in f], fault
    (tmp_path/'b.html').write_text('<p id="here">')
    (tmp_path/'c.css').write_text('@import url("https://fonts.example.org/css");')
    assert len(faults(tmp_path)) == 1


def test_a_page_is_written_as_the_standard_wants_it(tmp_path):
    from PIL import Image
    from after import Page, faults
    for old, new in [('<!doctype html><br/>', '<!DOCTYPE html><br>'), ('<button>a</button>', '<button type="button">a</button>'), ('a  \nb', 'a\nb'),
                     ('<script defer="defer"></script>', '<script defer></script>'), ('<p id="a"></p><a id="a">x</a>', '<p id="a"></p><a>x</a>'),
                     ('<table><thead><tr><th>a</th></tr></thead><tr><th>b</th></tr></table>', '<table><thead><tr><th scope="col">a</th></tr></thead><tr><th scope="row">b</th></tr></table>'),
                     ('<summary><p class="x">a</p></summary>', '<summary><span class="x">a</span></summary>'), ('<div><style>a{}</style>b</div>', '<div>b</div>'),
                     ('<svg viewBox="0 0 1 1"><use href="#a"/></svg>', '<svg viewBox="0 0 1 1"><use href="#a"/></svg>'), ('<td align="left">&lt;a&gt;</td>', '<td>&lt;a&gt;</td>')]:
        assert Page(old).text == new
    inside = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8/5+hHgAHggJ/PchI7wAAAABJRU5ErkJggg=='
    for name in ('a.html', 'demo.html'): (tmp_path/name).write_text(f'<img alt="a" src="data:image/png;base64,{inside}">')
    assert faults(tmp_path, write=True) == [] and len(list((tmp_path/'_images').iterdir())) == 1
    assert 'src="_images/' in (tmp_path/'a.html').read_text() and 'width="1" height="1"' in (tmp_path/'a.html').read_text()
    assert 'data:image' in (tmp_path/'demo.html').read_text(), 'one file stays one file'
    (tmp_path/'a.html').write_text('<iframe title="a" style="height:9px" srcdoc="&lt;!doctype html&gt;&lt;p&gt;live"></iframe>')
    assert faults(tmp_path, write=True) == [] and [p.read_text() for p in (tmp_path/'_frames').iterdir()] == ['<!DOCTYPE html><p>live']
    (tmp_path/'_frames'/'old.html').write_text('<p>shown by no page any more')
    assert faults(tmp_path, write=True) == [] and len([*(tmp_path/'_frames').iterdir()]) == 1
    assert ' height="9" src="_frames/' in re.sub(r'( src="[^"]*")( height="9")', r'\2\1', (tmp_path/'a.html').read_text())
    Image.new('RGB', (8, 8), 'white').save(tmp_path/'white.png')
    (tmp_path/'a.html').write_text('<img class="chart" alt="a" src="white.png"><img alt="b" src="white.png">')
    assert faults(tmp_path, write=True) == [] and (tmp_path/'a.html').read_text().count('class="chart"') == 2


def test_charts_are_told_from_photographs():
    import numpy as np
    from after import chart
    from PIL import Image
    drawn = np.full((60, 80, 3), 255, np.uint8)
    drawn[10:50, 10:30], drawn[10:50, 40:60] = (0, 114, 178), (230, 159, 0)
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    assert chart(Image.fromarray(drawn)) and not chart(Image.fromarray(noise)) and not chart(Image.fromarray(np.where(drawn == 255, 0, drawn)))


# -- as a reader meets it ----------------------------------------------------------------------------------------------------

@pytest.fixture
def looks():
    "A look at pages with Chromium and axe, where both are here."
    import check
    for module in ('playwright', 'axe_playwright_python'):
        pytest.importorskip(module, reason=f'{module} is not installed: pip install "libkd[dev]"')
    if not check.chromium(): pytest.skip('no Chromium on the PATH')
    return check.seen


@pytest.mark.slow
def test_pages_hold_for_every_reader(site, looks):
    pages = ['index.html', 'demo.html', 'gallery.html', 'tutorials/the_whole_game.html', 'diagnose.html', 'search.html', '404.html']
    assert looks(site, pages) == []


@pytest.mark.slow
def test_pages_say_what_they_are(site):
    page = (site/'diagnose.html').read_text(encoding='utf-8')
    for needed in ('<meta name="description" content="Measure how good', 'property="og:title" content="Diagnose"',
                   'rel="canonical"', 'favicon.svg', 'edit/main/nbs/10_diagnose.ipynb', 'gh-pages/latest/notebooks/diagnose.ipynb',
                   'href="notebooks/diagnose.ipynb"', 'placeholders: libkd is not published yet'): assert needed in page, needed
    listed = (site/'sitemap.xml').read_text(encoding='utf-8')
    assert '/tutorials/the_whole_game.html</loc>' in listed and '404' not in listed and (site/'.nojekyll').exists() and (site/'404.html').exists()


@pytest.mark.slow
def test_a_look_names_page_and_fault(tmp_path, looks):
    good = '<!doctype html><html lang="en"><title>t</title><meta name="viewport" content="width=device-width"><main><h1>t</h1>%s</main></html>'
    light = {'light': (dict(width=390, height=800), 'light')}
    pale = '<p style="color:#aaa">pale</p>'
    asks = '<script>fetch("http://example.org/x").catch(() => 0)</script>'
    for fault, why in [('<p>well</p>', None), (pale, 'color-contrast'), (f'<details>{pale}</details>', 'color-contrast'),
                       ('<div style="width:900px">w</div>', 'pixels wider'), (asks, 'asks for http://example.org')]:
        (tmp_path/'a.html').write_text(good % fault)
        found = looks(tmp_path, ['a.html'], light)
        assert not found if why is None else any(f.startswith('a.html (light): ') and why in f for f in found), (fault, found)


@pytest.mark.slow
def test_a_look_sees_cut_folds_and_widths_in_between(tmp_path, looks):
    page = '<!doctype html><html lang="en"><title>t</title><meta name="viewport" content="width=device-width"><main><h1>t</h1>%s</main></html>'
    cut = '<details style="overflow:hidden"><summary style="margin-top:-1em">more</summary><p>more</p></details>'
    wide = '<style>div{width:9px} @media(min-width:1050px) and (max-width:1200px){div{width:1300px}}</style><div>w</div>'
    for fault, why in [(cut, '(light): 1 closed folds cut'), (wide, '(1100 pixels): 2')]:
        (tmp_path/'a.html').write_text(page % fault)
        assert any(why in f for f in looks(tmp_path, ['a.html'], {'light': (dict(width=390, height=800), 'light')}))


def cell(source, *outputs): return dict(cell_type='code', source=source, outputs=list(outputs), metadata={})
def picture(**data): return dict(output_type='display_data', data=data)


def test_what_would_be_built_wrong_is_named():
    import before
    def f(): pass
    def g(): "says it"
    rooms = []
    for name, own in dict(one=[f, g], two=[g]).items():
        rooms.append(room := type(sys)(name))
        room.__all__ = [o.__name__ for o in own]
        for o in own: setattr(room, o.__name__, o); o.__module__ = name
    books = {'a.ipynb': [cell('x = 1'), cell('x + 1')], 'b.ipynb': [cell('x + 1', {})], 'c.ipynb': [cell('x = 1'), cell('test_eq(x, 1)')],
             'd.ipynb': [cell('plot()', picture(**{'image/png': 'A'}))], 'e.ipynb': [cell('plot()', picture(**{'text/html': ['<img src="x">']}))],
             'f.ipynb': [cell('#| fig-alt: a line\nplot()', picture(**{'image/png': 'A'}))], '01_a.ipynb': [cell('#| export\ndef h(): "x"'), cell('#| export\ndef h(): "y"')]}
    books = {k: dict(cells=v) for k, v in books.items()}
    assert before.silent(books) == ['a.ipynb: shows code and no output; execute it']
    assert [o[:8] for o in before.wordless_pictures(books)] == ['d.ipynb:', 'e.ipynb:']
    assert before.wordless_exports(rooms) == ['one.f: exported without a docstring']
    assert before.twice(books, rooms) == ['page a.html: stands twice, in a.ipynb and 01_a.ipynb', 'name g: stands twice, in one and two',
                                          'definition of h in 01_a.ipynb: stands twice, in a cell and a cell']


@pytest.fixture
def no_sphinx(monkeypatch):
    "A build that comes as far as Sphinx ends there."
    import build
    from sphinx.cmd import build as sphinx
    monkeypatch.setattr(build, 'put_playground', lambda *a: None)
    monkeypatch.setattr(sphinx, 'main', lambda argv: 'Sphinx was called')


@pytest.mark.parametrize('wrong, said', [
    ([cell('1 + 1')], 'a.ipynb: shows code and no output; execute it'),
    ([cell('plot()', picture(**{'image/png': 'A'}))], "a.ipynb: a picture without alt text below 'plot()'"),
    ([cell('#| export\ndef h(): "x"'), cell('#| export\ndef h(): "y"')], 'definition of h in a.ipynb: stands twice, in a cell and a cell'),
    ([], 'room.mute: exported without a docstring')])
def test_no_site_is_built_from_what_is_wrong(tmp_path, monkeypatch, no_sphinx, wrong, said):
    import before, build, pages, words
    monkeypatch.setattr(pages, 'main', lambda *a: [])
    def mute(): pass
    mute.__module__ = 'room'
    room = type(sys)('room')
    room.__all__, room.mute = [] if wrong else ['mute'], mute
    monkeypatch.setattr(before, 'notebooks', lambda: {'a.ipynb': dict(cells=wrong)})
    monkeypatch.setattr(words, 'rooms', lambda: [room])
    assert build.main(tmp_path/'html').splitlines() == ['no site is built:', said] and not (tmp_path/'html').exists()


def test_types_lead_to_who_documents_them():
    from pages import Links
    links = Links('howto/a', {'Teacher': 'teachers.html#teacher'})
    text = links('`dict[str, Teacher] | Tensor`{.type}')
    assert text.count('<a ') == 4 and '<a href="../teachers.html#teacher">Teacher</a>' in text and '#torch.Tensor">Tensor</a>' in text
    assert links('`list[Odd]`{.type}').endswith('>list</a>[Odd]</code>') and links.lost == {'Odd'}


def test_a_type_that_nobody_documents_is_named(tmp_path, monkeypatch, no_sphinx):
    import before, build, pages, words
    monkeypatch.setattr(before, 'faults', lambda books, modules: [])
    monkeypatch.setattr(words, 'rooms', lambda: [])
    monkeypatch.setattr(pages, 'contents', lambda: {'': ['00_files.ipynb']})
    monkeypatch.setattr(pages, 'ELSEWHERE', {k: v for k, v in pages.ELSEWHERE.items() if k != 'tqdm'})
    assert build.main(tmp_path/'html').splitlines() == ['no site is built:', 'files: the type tqdm leads nowhere; pages.ELSEWHERE can name its page']


def test_a_method_is_shown_where_it_is_told_from_others():
    import pages
    box = cell('#| export\nclass Box: "b"\n@patch\ndef pour(self:Box): "x"\n@patch\ndef to(self:Box): "y"')
    books = {'a': dict(cells=[box, cell('b = Box()\nb.to(1)'), cell('b.pour()'), cell('Box.to(b)')]), 'b': dict(cells=[cell('c.pour()')])}
    assert pages.examples(books) == {'Box': ('a', 1), 'Box.pour': ('a', 2), 'Box.to': ('a', 3)}


def test_every_export_has_an_example():
    import before, pages, words
    shown = pages.examples({pages.page_name(p): nb for p, nb in before.notebooks().items()})
    bare = [n for n, obj in words.exported(words.rooms()) if n.count('.') == 1 and n.partition('.')[2] not in shown]
    assert not bare, f'show these in a cell that a reader sees: {bare}'


def test_the_committed_notebooks_are_right():
    import before, words
    assert before.faults(before.notebooks(), words.rooms()) == []


@pytest.mark.slow
def test_the_api_is_told_in_words():
    import words
    params, returns, errors = words.wordless(words.rooms())
    assert (params, returns, errors) == ([], [], [])


def test_what_is_not_told_is_counted():
    import words
    def f(a, b, # A number
          dls=None, *args, **kwargs):
        "Of `kwargs`"
        if a: raise ValueError(a)
        return {}
    def g(a) -> bool:
        "Whether `a` is 1; `KeyError` where it is not known"
        if a is None: raise KeyError(a)
        return a == 1
    def h() -> dict: # name -> number
        "A table"
        return {}
    assert words.unsaid('f', f) == (['f: a', 'f: args'], ['f: returns something'], ['f: raises ValueError'])
    assert words.unsaid('g', g) == words.unsaid('h', h) == ([], [], [])
    def k() -> dict: "A table"; return {}
    assert words.unsaid('k', k)[1] == ['k: returns dict']


def test_properties_and_class_methods_are_counted():
    import words
    from fastcore.basics import patch
    class Room:
        "Has them"
        @property
        def size(self): "Of it"; return {}
        @classmethod
        def open(cls, a): "One"
    @patch(cls_method=True)
    def close(cls:Room, b): "It"
    room = type(sys)('room')
    room.__all__, room.Room = ['Room'], Room
    for o in (Room, Room.size.fget, Room.open.__func__, close.__func__ if hasattr(close, '__func__') else vars(Room)['close'].f): o.__module__ = 'libkd.room'
    assert words.wordless([room]) == (['room.Room.open: a', 'room.Room.close: b'], ['room.Room.size: returns something'], [])


@pytest.mark.slow
def test_what_is_said_above_is_said_there():
    import before, pages
    bare, seen = [], 0
    for path, nb in before.notebooks().items():
        for entry in (c['source'] for c in pages.page(nb, pages.page_name(path), {}) if c['source'].startswith('<a id=')):
            for m in re.finditer(r'^(.*)\n: as said above$', entry, re.M):
                told = [n for n in re.findall(r'\*\*`(\w+)`\*\*', m[1]) if not re.search(rf'`\*{{0,2}}{n}\b', entry[:m.start()])]
                seen += 1
                if told: bare.append((path, entry.split('\n')[2], told))
            assert '&nbsp;' not in entry
    assert seen > 50 and not bare


def test_what_a_class_takes_as_its_base_does_is_told_there():
    import api
    class Base:
        def __init__(self, a, b=1): pass
    class Own(Base):
        "Ours"
    Own.__init__.__module__ = 'elsewhere'
    class Named(Base):
        "Ours, too"
        def __init__(self, c: int, # How many
                     ): pass
    assert api.signature('Own', Own) == 'Own(Base)' and api.parameters(Own) == ''
    assert api.signature('Named', Named) == 'Named(c)' and api.parameters(Named) == '**`c`** `int`{.type}\n: How many'


def test_sentences_break_and_columns_do_not():
    import polish
    output = '<div class="output stream highlight"><pre>%s</pre></div>'
    assert polish.broken(output % 'short\nlines') == output % 'short\nlines'
    assert 'class="output stream long highlight"' in polish.broken(output % f'short\n<span>{"words " * 20}</span>')


def test_a_fold_says_what_the_notebook_calls_it():
    import pages
    made = lambda **directives: pages.code_cell(dict(metadata={}, outputs=[]), directives, '1')['metadata']
    summary = {'code-fold': 'true', 'code-summary': '"Solution to 2"'}
    assert made(**summary) == dict(tags=['hide-input'], mystnb=dict(code_prompt_show='Solution to 2', code_prompt_hide='Solution to 2'))
    assert made() == {}


def test_tiles_have_a_dark_side():
    import gallery, io
    from libkd.plots import LibkdFigure
    from PIL import Image, PngImagePlugin
    im, said, data = Image.new('RGB', (8, 8), 'white'), PngImagePlugin.PngInfo(), io.BytesIO()
    dark = gallery.turned(im, [[0, 0, 2, 3]])
    assert [dark.getpixel(o) for o in ((0, 0), (1, 2), (2, 0), (0, 3))] == [(255,)*3, (255,)*3, (20,)*3, (20,)*3]
    said.add_text('Staying', '[[0, 0, 2, 3]]')
    im.save(data, 'png', pnginfo=said)
    tile = gallery.Tile('a', 1, 't', 'alt', data.getvalue(), 'plot_it')
    assert list(tile.files()) == [tile.file, tile.dark_file] and all(f'class="only-{o}" src="{f}"' in tile.html() for o, f in zip(('light', 'dark'), tile.files()))
    assert '<code>plot_it</code>' in tile.html()
    im.save(data := io.BytesIO(), 'png')
    plain = gallery.Tile('a', 1, 't', 'alt', data.getvalue())
    assert list(plain.files()) == [plain.file] and 'class="chart"' in plain.html()
    assert 'Staying' in Image.open(io.BytesIO(LibkdFigure(1, 1).png())).info


def test_what_screen_readers_and_previews_get():
    import polish
    assert polish.spoken('<th></th><th class="blank" >&nbsp;</th><th>a</th>') == '<td></td><td class="blank" >&nbsp;</td><th>a</th>'
    assert polish.spoken('<p class="caption" role="heading"><span>a</span></p>') == '<h2 class="caption"><span>a</span></h2>'
    assert polish.title_and_promise('<h1>A &amp; b<a>¶</a></h1>\n<blockquote>\n<p>You <em>can</em>.</p></blockquote><p>x</p>', 'd') == ('A & b', 'You can.')
    assert polish.title_and_promise('', 'd') == ('', 'd') and polish.shortened('one two three', 9) == 'one two …'
    assert '&quot;q&quot;' in polish.previews('"q"', 'p', 'https://a/', '') and 'og:image' not in polish.previews('t', 'p', 'https://a/', '')


# -- what stands where --------------------------------------------------------------------------------------------------------

class Found(HTMLParser):
    "(links of the article, [caption or link of the sidebar])"
    def __init__(self, page):
        super().__init__()
        self.article, self.tree, self.at, self.caption = [], [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag in ('article', 'div'): self.at.append('article' if tag == 'article' else 'tree' if a.get('class') == 'sidebar-tree' else '')
        self.caption |= tag == 'h2' and 'tree' in self.at
        if tag == 'a' and a.get('href') and 'article' in self.at: self.article.append(a['href'])
        if tag == 'a' and a.get('href') and 'tree' in self.at: self.tree.append(a['href'])

    def handle_data(self, data):
        if self.caption and data.strip(): self.tree.append(data.strip())

    def handle_endtag(self, tag):
        if tag in ('article', 'div') and self.at: self.at.pop()
        if tag == 'h2': self.caption = False


@pytest.mark.slow
def test_the_sidebar_is_that_of_quarto(site):
    import pages
    wanted = [o for section, notebooks in pages.contents().items()
              for o in [*[section] * bool(section), *(f'{pages.page_name(nb)}.html' for nb in notebooks if nb != 'index.ipynb')]]
    assert Found((site/'index.html').read_text(encoding='utf-8')).tree == wanted


def clicks(site, start, most):
    "page#anchor -> the fewest clicks on links of the text that lead there."
    far, todo = {start: 0}, [start]
    for page in todo:
        if far[page] == most: continue
        for link in Found((site/page).read_text(encoding='utf-8')).article:
            if re.match(r'\w+:|//|#', link): continue
            target = os.path.relpath((site/page).parent/link.split('#')[0], site)
            if target not in far and target.endswith('.html') and (site/target).exists(): far[target] = far[page] + 1; todo.append(target)
    return far


@pytest.mark.slow
def test_a_newcomer_finds_in_three_clicks(site):
    far = clicks(site, 'index.html', 3)
    for page in ('tutorials/the_whole_game.html', 'widgets.html', 'howto/own_images.html', 'losses.html'): assert far.get(page, 9) <= 3, page
    assert '<math' in (site/'losses.html').read_text(encoding='utf-8')


@pytest.mark.slow
def test_tiles_lead_to_the_cells_that_made_them(site):
    import before, gallery, pages
    tiles = gallery.tiles({pages.page_name(p): nb for p, nb in before.notebooks().items()})
    page = (site/'gallery.html').read_text(encoding='utf-8')
    assert len(tiles) > 70 and all(f'href="{t.page}.html#cell-{t.cell}"' in page and (site/t.file).exists() and t.alt for t in tiles)
    assert 'src="demo.html"' in (site/'index.html').read_text(encoding='utf-8') and (site/'demo.html').stat().st_size < 1_800_000


@pytest.mark.slow
def test_notebooks_to_run_install_first(site):
    for p in [*(site/'notebooks').rglob('*.ipynb')]:
        nb = json.loads(p.read_text(encoding='utf-8'))
        assert nb['cells'][0]['source'] == '%pip install -q "libkd[all]"' and not any(c.get('outputs') for c in nb['cells'])
    assert (site/'notebooks'/'tutorials'/'the_whole_game.ipynb').exists()


@pytest.mark.slow
def test_pages_are_light(site):
    size = sorted(p.stat().st_size for p in site.rglob('*.html') if p.name != 'demo.html' and p.parent.name != '_frames')     # live networks are loaded when they are seen
    assert size[len(size)//2] <= 162_000 and size[-1] <= 254_000, size[-3:]


def test_versions_stand_beside_each_other(tmp_path, monkeypatch):
    import pages, versions
    built = tmp_path/'built'
    (built/'_static').mkdir(parents=True)
    for name in ('index.html', '404.html', 'sitemap.xml', '.nojekyll', '_static/versions.js'): (built/name).write_text('old')
    versions.main(tmp_path/'root', built, release=True)
    (built/'new.html').write_text('new')
    monkeypatch.setitem(pages.cfg, 'version', '0.2.0')
    versions.main(tmp_path/'root', built, release=False)
    assert versions.kept(tmp_path/'root') == ['latest', '0.1'] and not (tmp_path/'root'/'0.1'/'new.html').exists()
    told = (tmp_path/'root'/'0.1'/'_static'/'versions.js').read_text()
    assert json.loads(told.split(' = ')[1].rstrip(';\n')) == {'latest': ['404.html', 'index.html', 'new.html'], '0.1': ['404.html', 'index.html']}
    assert 'latest/index.html' in (tmp_path/'root'/'index.html').read_text() and (tmp_path/'root'/'404.html').exists()


def test_pictures_show_on_a_package_index():
    text = subprocess.run([sys.executable, '-c', "import runpy, setuptools; setuptools.setup = lambda **k: print(k['long_description']); runpy.run_path('setup.py')"],
                          cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pictures = re.findall(r'!\[[^\]]*\]\(([^)]*)\)', text)
    assert len(pictures) >= 3 and all(p.startswith('https://raw.githubusercontent.com/libkd/libkd/main/nbs/images/') for p in pictures)


def test_the_picture_that_waits_for_the_playground_is_plain_html():
    import io
    from PIL import Image
    from front import strict
    from libkd.plots import figure_html
    paper = io.BytesIO(); Image.new('RGB', (8, 8), 'white').save(paper, 'png')
    made = strict(f'<!doctype html><html><head></head><body>{figure_html(paper.getvalue(), "white")}</body></html>')
    figure = made[made.index('<figure'):]
    assert 'kd-paper' in figure and 'alt="white"' in figure
    assert 'style=' not in figure and '<style' not in figure and '.kd-paper' in made[:made.index('</head>')]


@pytest.mark.skipif(shutil.which('node') is None, reason='no node on this machine')
def test_a_long_report_of_the_validator_is_read_to_its_end(tmp_path):
    from check import invalid
    (tmp_path/'a.html').write_text('')
    program = tmp_path/'validator'
    program.write_text("""#!/usr/bin/env node
const messages = Array.from({ length: 20000 }, (_, line) => ({ line, ruleId: 'rule', message: 'm' }))
process.stdout.write(JSON.stringify([{ filePath: process.argv.at(-1), messages }]))
process.exit(1)
""")
    program.chmod(0o755)
    assert len(invalid(tmp_path, ['a.html'], program)) == 20_000
