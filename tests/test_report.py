"""The page of a run: what it says, in which order, on any screen, and nothing from elsewhere."""
import io, json, os, re, shutil, sys
from pathlib import Path
import pandas as pd, pytest
from PIL import Image
from libkd import UserError, report, runs

CHROMIUM = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), None)


def folder(tmp_path, **facts):
    "A run that is finished, with names that would be html"
    from libkd.plots import plot_paired
    results = pd.DataFrame([dict(arm=a, seed=s, accuracy=v + s/100) for a, v in (('a', .5), ('b', .7)) for s in (0, 1)])
    record = runs.Run(tmp_path/'run', '<script>alert(1)</script>', dict(data='<i>'))
    record.seconds = dict(arms=3., table=1.)
    record.figure(plot_paired(results, 'a'), 'paired', 'caption <i>')
    row = {'arm': '<b>', **{f'column {i}': 1000.*i for i in range(12)}}
    record.done(**dict(dict(conclusion=['Take <b>.', 'BEATS: b beats <a>.'], verdict='BEATS', table=[row], subject='<b>'), **facts))
    return record.folder


def page(tmp_path, **facts): return report.report(folder(tmp_path, **facts)).read_text(encoding='utf-8')


def test_the_page_escapes_every_name_and_loads_nothing(tmp_path):
    said = page(tmp_path, warnings=['<b>'], best=dict(name='<b>', kind='<i>', accuracy=.5, folder='<a>', why='<b>'), facts=['<i>'])
    for raw in ('<script', '<i>', '<a>', '<b>'): assert raw not in said
    assert 'url(http' not in said and 'href=&#39;http' not in said                  # nor from inside a picture
    images = re.findall(r"<img [^>]*>", said)
    assert images and all(re.search(r"alt='[^']{20,}'", i) and "src='data:" in i for i in images)
    said = re.sub(r"src='data:[^']*'", '', said)
    assert not re.search(r'''(?:src|href)=(?!['"]?data:)''', said) and 'url(' not in said


def test_the_first_sentence_of_the_page_is_the_first_of_the_conclusion(tmp_path):
    said = page(tmp_path, conclusion=['A teacher beats the student: x.', 'BEATS: so b beats a.'])
    assert said.index('A teacher beats') < said.index('b beats a.') < said.index('<table')


def test_warnings_stand_right_below_the_first_sentence(tmp_path):
    said = page(tmp_path, warnings=['few pictures', 'a poor teacher'])
    places = [said.index(s) for s in ('Take &lt;b&gt;', 'few pictures', 'a poor teacher', 'B beats')]
    assert places == sorted(places)


def test_the_model_to_take_is_named_with_the_words_that_use_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    best = dict(name='taught, seed 1', kind='a student', accuracy=.8142, part='test', folder='best', why='It is cheap.')
    said = page(tmp_path, best=best, student='student')
    assert 'taught, seed 1' in said and '81.4 % right' in said and 'on the test images' in said and 'It is cheap.' in said
    assert 'libkd predict run/best PICTURES' in said and 'libkd export run/best --onnx' in said and str(tmp_path) not in said
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path/'elsewhere')
    assert f'libkd predict {tmp_path}/run/student PICTURES' in page(tmp_path, student='student')


@pytest.mark.parametrize('even, epochs, said', [(3.2, 20., True), (20., 3.2, False), (5., 5., False), (None, 5., False)])
def test_stored_answers_are_praised_only_where_they_paid(tmp_path, even, epochs, said):
    assert ('Stored answers pay from epoch' in page(tmp_path, plan=dict(break_even=even, epochs=epochs))) == said


def test_what_cannot_be_a_result_is_a_sentence(tmp_path):
    at = folder(tmp_path)
    shutil.rmtree(at/'figures')
    assert 'is not in the folder of the run' in report.report(at).read_text()
    for text, says in (('[]', 'holds no result of a run'), ('{"title"', 'cannot be read')):
        (at/'result.json').write_text(text)
        with pytest.raises(UserError, match=says): report.report(at)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine: apt-get install chromium')
def test_the_page_on_small_large_light_and_dark_screens(tmp_path):
    sync = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install "libkd[dev]"')
    file, looks = report.report(folder(tmp_path, student='student', warnings=['w'])), {}
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        for scheme in ('light', 'dark'):
            for width in (400, 1200):
                tab = browser.new_page(viewport=dict(width=width, height=800), color_scheme=scheme)
                tab.goto(file.as_uri())
                looks[scheme, width] = tab.evaluate('''() => { const css = (s, k) => getComputedStyle(document.querySelector(s))[k]; return {
                    wide: document.documentElement.scrollWidth, ground: css('body', 'backgroundColor'), 
                    hint: css('.hint', 'display'), image: document.querySelector('img').getBoundingClientRect().width,
                    moves: document.querySelector('.scroll').scrollWidth > document.querySelector('.scroll').clientWidth} }''')
                shot = Image.open(io.BytesIO(tab.locator('figure img').first.screenshot())).convert('L')
                looks[scheme, width]['paper'] = shot.getpixel((3, 3))
        browser.close()
    assert all(looks[s, w]['wide'] == w for s, w in looks)                                   # the page itself never moves sideways
    assert looks['light', 1200]['ground'] != looks['dark', 1200]['ground']
    assert looks['light', 1200]['paper'] > 240 and looks['dark', 1200]['paper'] < 60         # figures follow the page
    assert looks['light', 400]['moves'] and looks['light', 400]['hint'] == 'block' and looks['light', 1200]['hint'] == 'none'
    assert looks['light', 400]['image'] >= 600                                               # or its letters are too small to read
