"""The site is complete and asks nobody: built without network, no warning, no dead link, no picture without a text."""
import shutil, subprocess, sys
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


def test_faults_of_a_site_are_found(tmp_path):
    from build import faults
    (tmp_path/'a.html').write_text('<h1 id="top">a</h1><a href="b.html#here">b</a><a href="https://example.org">elsewhere</a><img src="x.png" alt="x">')
    (tmp_path/'b.html').write_text('<a href="a.html#top">a</a><p id="here">')
    assert faults(tmp_path) == []
    for fault, why in [('<script src="https://cdn.example.org/x.js"></script>', 'loads https'), ('<link rel="stylesheet" href="//fonts.example.org/x.css">', 'loads //fonts'),
                       ('<a href="c.html">c</a>', 'does not exist'), ('<a href="a.html#nowhere">a</a>', 'no such anchor'), ('<img src="x.png">', 'without alt text')]:
        (tmp_path/'b.html').write_text('<p id="here">' + fault)
        assert [f for f in faults(tmp_path) if why in f], fault
    (tmp_path/'b.html').write_text('<p id="here">')
    (tmp_path/'c.css').write_text('@import url("https://fonts.example.org/css");')
    assert len(faults(tmp_path)) == 1


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
    pages = ['index.html', 'tutorials/the_whole_game.html', 'diagnose.html', 'search.html', '404.html']
    assert looks(site, pages) == []


@pytest.mark.slow
def test_pages_say_what_they_are(site):
    page = (site/'diagnose.html').read_text(encoding='utf-8')
    for needed in ('<meta name="description" content="Measure how good', 'property="og:title" content="Diagnose"',
                   'rel="canonical"', 'favicon.svg', 'nbs/10_diagnose.ipynb" rel="edit"'): assert needed in page, needed
    listed = (site/'sitemap.xml').read_text(encoding='utf-8')
    assert '/tutorials/the_whole_game.html</loc>' in listed and '404' not in listed and (site/'.nojekyll').exists() and (site/'404.html').exists()


def test_a_look_names_page_and_fault(tmp_path, looks):
    good = '<!doctype html><html lang="en"><title>t</title><meta name="viewport" content="width=device-width"><main><h1>t</h1>%s</main></html>'
    light = {'light': dict(viewport=dict(width=390, height=800))}
    pale = '<p style="color:#aaa">pale</p>'
    asks = '<script>fetch("http://example.org/x").catch(() => 0)</script>'
    for fault, why in [('<p>well</p>', None), (pale, 'color-contrast'), (f'<details>{pale}</details>', 'color-contrast'),
                       ('<div style="width:900px">w</div>', 'pixels wider'), (asks, 'asks for http://example.org')]:
        (tmp_path/'a.html').write_text(good % fault)
        found = looks(tmp_path, ['a.html'], light)
        assert not found if why is None else any(f.startswith('a.html (light): ') and why in f for f in found), (fault, found)


def test_notebooks_were_executed_and_exports_have_words():
    import check, json, pages
    cell = lambda source, *outputs: dict(cell_type='code', source=source, outputs=list(outputs), metadata={})
    books = dict(a=[cell('x = 1'), cell('x + 1')], b=[cell('x + 1', {})], c=[cell('x = 1'), cell('test_eq(x, 1)')])
    assert check.silent_notebooks({k: dict(cells=v) for k, v in books.items()}) == ['a: shows code and no output']
    committed = [p for group in pages.contents().values() for p in group]
    assert check.silent_notebooks({p: json.loads((pages.NBS/p).read_text(encoding='utf-8')) for p in committed}) == []
    def f(): pass
    def g(): "says it"
    room = type(sys)('room'); room.__all__ = ['f', 'g']; room.f, room.g = f, g; f.__module__ = g.__module__ = 'room'
    assert check.wordless_exports([room]) == ['room.f: exported without a docstring']


def test_what_screen_readers_and_previews_get():
    import polish
    assert polish.spoken('<th></th><th class="blank" >&nbsp;</th><th>a</th>') == '<td></td><td class="blank" >&nbsp;</td><th>a</th>'
    assert 'aria-level="2"' in polish.spoken('<p class="caption" role="heading">')
    assert polish.title_and_promise('<h1>A &amp; b<a>¶</a></h1>\n<blockquote>\n<p>You <em>can</em>.</p></blockquote><p>x</p>', 'd') == ('A & b', 'You can.')
    assert polish.title_and_promise('', 'd') == ('', 'd') and polish.shortened('one two three', 9) == 'one two …'
    assert '&quot;q&quot;' in polish.previews('"q"', 'p', 'https://a/', '') and 'og:image' not in polish.previews('t', 'p', 'https://a/', '')
