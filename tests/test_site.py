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
