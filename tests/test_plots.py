"""Figures that say what they show, weigh little, need no colour, and hold any name."""
import io, json, re, sys
import numpy as np, pandas as pd, pytest, torch
from matplotlib.text import Text
from hypothesis import given, strategies as st
from PIL import Image
from libkd import UnknownName, UserError
import libkd.plots as P

rng = np.random.default_rng(0)
N, C = 60, 5
Y = rng.integers(0, C, N)
PREDS = {k: 3*np.eye(C)[Y] + rng.normal(0, s, (N, C)) for k, s in dict(conv=1.5, inv=2., student=1.).items()}
IMGS = rng.integers(0, 255, (N, 8, 8, 3), dtype=np.uint8)
ATTN = torch.rand(4, 2, 19, 19).softmax(-1)
BOARD = pd.DataFrame(dict(role=['teacher', 'student'], accuracy=[.5, .25], params=[1000, np.nan]), index=['a', 'b'])
RUNS = pd.DataFrame([dict(arm=a, seed=s, accuracy=.5 + .1*(a == 'b') + .01*s*(a == 'b')) for a in 'ab' for s in range(3)])
CURVES = pd.DataFrame(dict(epoch=[0, 1], train_loss=[2., 1.], valid_loss=[2.5, 1.25], kd_conv=[.5, .25], accuracy=[.1, .75], time=['00:01', '00:02']))
MATRIX = pd.DataFrame([[0, .125], [.125, 0]], list('ab'), list('ab'))

# every figure of the room, and what its alternative text must say
FIGURES = dict(
    scoreboard=(lambda: P.plot_scoreboard(BOARD), 'a 50.0 %, b 25.0 %'),
    paired=(lambda: P.plot_paired(RUNS), r'3 seeds.*b \+11.0 \(± 2.5\)'),
    curves=(lambda: P.plot_curves(CURVES), 'valid_loss 1.25, kd_conv 0.25, accuracy 0.75'),
    reliability=(lambda: P.plot_reliability(PREDS, Y), r'conv 0\.\d{3}, inv 0\.\d{3}'),
    matrix=(lambda: P.plot_matrix(MATRIX, 'Differ'), 'Differ: a: a 0.000, b 0.125'),
    confusion=(lambda: P.plot_confusion(PREDS['conv'], Y, names=('conv', 'truth')), r'conv and truth differ on \d+ of 60 images; most often conv says'),
    softened=(lambda: P.plot_softened({k: z[0] for k, z in PREDS.items()}, 4, list('abcde'), 2), r'temperature 4: conv says [a-e] \(0\.\d\d\);.*true class c'),
    disagreement=(lambda: P.plot_disagreement(IMGS, PREDS, Y), r'conv and inv decide differently on \d+ of 60 images'),
    attention=(lambda: P.plot_attention(IMGS[0], ATTN, 3, (4, 4), saliency=dict(conv=np.ones((2, 2)))), r'layer 4 of 4 to a 4×4 grid.*cls token row \d, column \d'),
    frontier=(lambda: P.plot_frontier(BOARD.assign(MACs=[5e6, 4e6]), 'a'), r'cheaper than: b 25.0 % for 4.0M, a 50.0 % for 5.0M'),
    top_losses=(lambda: P.plot_top_losses(IMGS, PREDS['conv'], Y), r'\d+ of 60 answers are wrong. The largest losses: [0-4] for [0-4];'),
    distance=(lambda: P.plot_attention_distance({'x': np.full((2, 3), 1.5)}, (4, 4)), 'x from 1.50 in the first layer to 1.50 in the last; uniform attention 2.01'))


@pytest.mark.parametrize('name', FIGURES)
def test_figures_say_what_they_show_and_stay_light(name):
    make, said = FIGURES[name]
    fig = make(); img = Image.open(io.BytesIO(fig.png()))
    assert re.search(said, fig.alt), fig.alt
    assert img.mode == 'P' and len(img.getcolors(256)) > 3 and len(fig.png()) < 60_000
    assert img.convert('RGB').getpixel((0, 0)) == (255, 255, 255)          # white paper, unless a page turns it dark
    assert fig._repr_mimebundle_().keys() == {'text/html', 'text/plain'} and fig._repr_mimebundle_()['text/plain'] == fig.alt


def test_figures_of_a_teacher_that_does_not_know_every_class(recwarn):
    preds = PREDS | dict(conv=np.where(np.arange(C) == 1, -np.inf, PREDS['conv']))
    alts = [fig.alt for fig in (P.plot_reliability(preds, Y), P.plot_disagreement(IMGS, preds, Y), P.plot_confusion(preds['conv'], preds['inv']),
                                P.plot_softened({k: z[0] for k, z in preds.items()})) if fig.png()]
    assert len(alts) == 4 and not re.search('nan|inf(?!i|or| )', ' '.join(alts)) and not [w for w in recwarn if w.category is RuntimeWarning]


def test_an_infinite_number_has_a_bar_to_the_end_and_says_so():
    board = BOARD.assign(NLL=[np.inf, .5])
    fig = P.plot_scoreboard(board, 'NLL'); bars = fig.axes[0].patches
    assert fig.png() and 'a infinite, b 0.5' in fig.alt and bars[0].get_width() > bars[1].get_width() == .5
    assert P.plot_scoreboard(board[:1], 'NLL').png()


@pytest.mark.parametrize('teachers', [2, 3])
@pytest.mark.parametrize('known', [True, False])
def test_captions_below_pictures_do_not_run_into_each_other(teachers, known):
    rng, names = np.random.default_rng(0), ['longsleeve', 'outwear', 't-shirt', 'a class with a very long name indeed']
    preds = {f'teacher {t}': rng.normal(size=(24, 4)) for t in range(teachers)}
    fig = P.plot_disagreement(np.zeros((24, 8, 8, 3), np.uint8), preds, rng.integers(0, 4, 24) if known else None, classes=names)
    fig.canvas.draw()
    boxes = [text.get_window_extent() for text in fig.axes[0].texts]
    assert len(boxes) == 24 and not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def as_seen(browser, html, **page):
    "The pixels of the picture in a page, (height, width, 3)"
    page = browser.new_page(**page); page.set_content(f'<style>:root{{color-scheme:light dark}}</style>{html}')
    page.wait_for_function('() => [...document.images].every(i => i.complete && i.naturalWidth)')
    seen = np.asarray(Image.open(io.BytesIO(page.locator('img').screenshot())).convert('RGB')).astype(int); page.close()
    return seen


@pytest.mark.slow
def test_figures_follow_a_dark_page(browser):
    fig = P.plot_disagreement(IMGS, PREDS, Y); html, light = P.figure_html(fig.png(), fig.alt), np.asarray(Image.open(io.BytesIO(fig.png())).convert('RGB')).astype(int)
    white, dark = (as_seen(browser, html, color_scheme=s, viewport=dict(width=1100, height=400)) for s in ('light', 'dark'))
    assert abs(white - light[:white.shape[0], :white.shape[1]]).max() <= 2
    stays = json.loads(Image.open(io.BytesIO(fig.png())).info['Staying']); ours = np.zeros(dark.shape[:2], bool)
    assert len(stays) == min(24, len(IMGS)) + 1                                        # the thumbnails, and the confusion of two teachers
    for x, y, w, h in stays: ours[y+1:y+h-1, x+1:x+w-1] = True
    assert abs(dark - white)[ours].max() <= 2                                          # pictures and colour scales are what they were
    for x, y, w, h in stays: ours[y-2:y+h+2, x-2:x+w+2] = True
    paper = (white == 255).all(-1) & ~ours
    assert paper.mean() > .5 and abs(dark[paper] - 28).max() <= 3                      # white paper is dark,
    assert white[~ours].min(-1).min() < 60 and dark[~ours].max(-1).max() > 200         # dark ink is light,
    blue = (abs(white - [0, 114, 178]).max(-1) < 6) & ~ours; assert blue.sum() > 100
    assert (dark[blue].argmax(-1) == 2).all() and dark[blue].min(0)[2] > 230           # and blue is a lighter blue


@pytest.mark.parametrize('theme', [True, False])
def test_figures_follow_the_theme_of_jupyterlab_against_the_system(browser, theme):
    fig = P.plot_matrix(MATRIX); page = f'<body data-jp-theme-light="{str(theme).lower()}">{P.figure_html(fig.png(), fig.alt)}</body>'
    seen = as_seen(browser, page, color_scheme='dark' if theme else 'light')
    assert abs(seen[2, 2] - (255 if theme else 28)).max() <= 3


def test_any_png_can_follow_a_dark_page(browser):
    out = io.BytesIO(); Image.new('RGB', (30, 20), 'white').save(out, 'png')
    seen = as_seen(browser, f'<img src="{P.follows_dark(out.getvalue())}">', color_scheme='dark')
    assert seen.shape == (20, 30, 3) and abs(seen - 28).max() <= 3


@pytest.mark.parametrize('name', FIGURES)
def test_no_text_leaves_the_picture(name):
    fig = FIGURES[name][0](); fig.canvas.draw(); box = fig.bbox
    for ax in fig.axes:
        ticks = [t.label1 if t.label1.get_visible() else t.label2 for axis in (ax.xaxis, ax.yaxis) for t in axis.get_major_ticks()
                 if ax.axison and min(axis.get_view_interval()) <= t.get_loc() <= max(axis.get_view_interval())]
        labels = [ax.title, ax._left_title, *([ax.xaxis.label, ax.yaxis.label] if ax.axison else []), *ax.texts, *ticks]
        for t in [t for t in labels if t.get_text() and t.get_visible()]:
            b = t.get_window_extent()
            assert b.x0 >= -1 and b.y0 >= -1 and b.x1 <= box.x1 + 1 and b.y1 <= box.y1 + 1, f'{t.get_text()!r} is cut off'


def test_names_are_data_never_markup():
    bad = '<b>$\\frac{x$</b>"'
    fig = P.plot_softened({bad: [1., 2.], 'b': [2., 1.]}, 1, [bad, '$5'], 0); html = fig._repr_mimebundle_()['text/html']
    assert '<b>' not in html and '&lt;b&gt;' in html and bad in fig.alt and len(fig.png()) > 1000
    for make in (lambda: P.plot_confusion(PREDS['conv'], Y, [bad]*C, (bad, 'truth')), lambda: P.plot_matrix(MATRIX.rename(columns={'a': bad})),
                 lambda: P.plot_disagreement(IMGS, {bad: PREDS['conv'], 'x': PREDS['inv']}, Y, classes=[bad]*C)): make().png()


def test_colour_is_never_alone():
    looks = P.looks(['conv', 'inv', 'student', *'abcde'])
    for what in zip(*looks.values()): assert len(set(what)) == 8           # colour, hatch, marker and dash each tell all eight apart
    assert P.looks(['inv', 'x'])['inv'] == P.looks(['conv', 'y', 'inv'])['inv']


def test_thumbnails_are_one_picture():
    assert len(P.plot_disagreement(IMGS, PREDS, Y, show=60).axes) == 3
    sheet = P.contact_sheet(IMGS[:5], cols=2, size=8, pad=(0, 0))
    assert sheet.shape == (24, 16, 3)
    np.testing.assert_array_equal(sheet[8:16, 8:], IMGS[3]); assert (sheet[16:, 8:] == 255).all()


def test_disagreement_shows_the_most_divergent_images_first():
    from libkd.diagnose import sample_disagreement
    js = sample_disagreement(PREDS, Y, 2.).js.to_numpy(); shown = []
    original = P._thumbs
    try:
        P._thumbs = lambda ax, imgs, captions, **k: shown.append(imgs)
        P.plot_disagreement(IMGS, PREDS, Y, show=7)
    finally: P._thumbs = original
    np.testing.assert_array_equal(shown[0], IMGS[np.argsort(-js, kind='stable')[:7]])


@pytest.mark.parametrize('imgs', [IMGS[..., 0], IMGS[..., :1], torch.tensor(IMGS).permute(0, 3, 1, 2).float()/255, IMGS], ids=['grey', 'one channel', 'tensor', 'bytes'])
def test_images_come_in_many_shapes(imgs):
    rgb = P.as_rgb(imgs)
    assert rgb.shape == IMGS.shape and rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb[..., 0], IMGS[..., 0])


def test_names_that_share_a_prefix_stay_different():
    names = [f'class {i}' for i in range(11)]; synsets = ['n02123045', 'n02123159', 'n02124075', 'n02127052']
    assert P.short_names(names, 5) == [f'…{i}' for i in range(11)]
    for given in (names, synsets, ['a'*40, 'a'*39 + 'b'], ['cat', 'dog']):
        short = P.short_names(given, 6)
        assert len(set(short)) == len(given)
    assert P.short_names(['cat', 'dog']) == ['cat', 'dog'] and P.middle('abcdefgh', 5) == 'ab…gh'


def test_maps_share_one_scale_and_say_their_percentile():
    maps = P.TokenMaps(IMGS[:2], (4, 4), ATTN[None].expand(2, -1, -1, -1, -1), tokens=('cls', 'conv', 'inv'), percentiles=np.full((2, 2, 4, 3, 4), 12.), rivals=(9, 3))
    fig = P.plot_token_maps(maps, 1, 0); texts = [t.get_text() for ax in fig.axes for t in ax.texts] + [t.get_text() for t in fig.texts]
    assert texts.count('12 %') == 12 and any('9 other pictures' in t for t in texts)
    bright, dark = (P._heat(np.full((4, 4), v), 8, 4.) for v in (4., 1.))
    assert bright.mean() > dark.mean()                                     # equal colours are equal numbers
    alone = P.plot_token_maps(P.TokenMaps(IMGS[:1], (4, 4), tokens=(), saliency=dict(conv=np.ones((1, 4, 4)))))
    assert 'conv row 1, column 1' in alone.alt


def test_many_classes_and_few_images():
    big = {k: rng.normal(size=(3, 120)) for k in ('conv', 'inv')}
    figs = P.plot_disagreement(IMGS[:3], big), P.plot_confusion(big['conv'], big['inv']), P.plot_softened({k: z[0] for k, z in big.items()})
    assert 'on %d of 3 images' % (big['conv'].argmax(1) != big['inv'].argmax(1)).sum() in figs[0].alt
    assert all(f.alt and f.png().startswith(b'\x89PNG') for f in figs)


def test_one_seed_has_no_interval():
    fig = P.plot_paired(RUNS.query('seed==0'))
    assert 'over 1 seed, ' in fig.alt and fig.alt.endswith('b +10.0 (one seed).') and '+10.0 (one seed)' in [t.get_text() for t in fig.axes[0].texts]
    apart = P.plot_paired(RUNS[(RUNS.arm == 'a') == (RUNS.seed == 0)])
    assert apart.alt.endswith('b no common seed.') and 'nan' not in ' '.join(t.get_text() for t in apart.axes[0].texts)


def test_figures_live_outside_pyplot():
    import matplotlib.pyplot as plt
    before = plt.get_fignums(); P.plot_matrix(MATRIX)
    assert plt.get_fignums() == before


def test_notebooks_get_one_copy_of_the_picture():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from matplotlib.figure import Figure
    shell = InteractiveShell.instance()
    shell.display_formatter.formatters['image/png'].for_type(Figure, lambda f: b'a full-size picture')       # as %matplotlib inline does
    try:
        with capture_output() as out: shell.display_formatter.format(P.plot_matrix(MATRIX))
        assert [set(o.data) for o in out.outputs] == [{'text/html', 'text/plain'}]
    finally: InteractiveShell.clear_instance()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=12))
def test_nobody_prefers_a_model_to_one_of_the_frontier(models):
    board = pd.DataFrame(models, columns=['accuracy', 'MACs']).rename(index=str)/[10, 1]
    kept = board.loc[P.frontier(board)]
    assert (kept['MACs'].diff().dropna() > 0).all() and (kept['accuracy'].diff().dropna() > 0).all()       # what is better is dearer
    for _, r in board.iterrows(): assert ((kept['accuracy'] >= r['accuracy']) & (kept['MACs'] <= r['MACs'])).any()


def test_the_frontier_is_drawn_and_told():
    board = pd.DataFrame(dict(role=['teacher', 'student', 'taught student', 'teachers'], accuracy=[.7, .6, .65, .8], MACs=[60e6, 8e6, 8e6, np.nan]),
                         index=['lite', 'untaught', 'taught', 'mean'])
    fig = P.plot_frontier(board, best='taught')
    assert fig.alt == 'accuracy against MACs; nothing is both better and cheaper than: taught 65.0 % for 8.0M, lite 70.0 % for 60.0M.'
    ring = [line for line in fig.axes[0].lines if line.get_markersize() == 17]
    assert [(r.get_xdata()[0], r.get_ydata()[0]) for r in ring] == [(8e6, .65)]
    assert {t.get_text().split()[0] for t in fig.axes[0].texts} == {'lite', 'untaught', 'taught'}                                # the mean of the teachers has no price
    one = P.plot_frontier(board.iloc[:1])
    assert one.png() and not [line for line in one.axes[0].lines if line.get_markersize() == 17]
    for wrong in (dict(price='cost'), dict(metric='F1')):
        with pytest.raises(UnknownName, match='no column'): P.plot_frontier(board, **wrong)


def test_names_of_equal_models_do_not_lie_upon_each_other():
    board = pd.DataFrame(dict(accuracy=[.5, .5, .501, .9], MACs=[3., 3., 3., 1.]), index=['a', 'b', 'c', 'far'])
    fig = P.plot_frontier(board)
    fig.canvas.draw()
    boxes = sorted((Text.get_window_extent(t) for t in fig.axes[0].texts), key=lambda b: b.ymin)
    assert all(low.ymax < high.ymin for low, high in zip(boxes, boxes[1:])) and boxes[-1].xmax < fig.bbox.width


def test_the_largest_losses_come_first_and_unlabelled_ones_not_at_all():
    z = np.log(np.array([[.9, .1], [.2, .8], [.6, .4], [.99, .01]]))
    imgs, y = np.zeros((4, 8, 8, 3), np.uint8), np.array([1, 1, 0, -1])
    fig = P.plot_top_losses(imgs, z, y, ['cat', 'dog'], n=2)
    assert fig.alt == '1 of 3 answers are wrong. The largest losses: cat for dog; cat for cat.'
    assert [t.get_text() for t in fig.axes[0].texts] == ['cat 90%\n(dog)', 'cat 60%\n(cat)']
    with pytest.raises(UserError, match='3 images, 4 answers and 4 labels'): P.plot_top_losses(imgs[:3], z, y)


@pytest.mark.parametrize('classes', [list('abcde'), ['t-shirt', 'longsleeve', 'outwear', 'dress', 'x'*40]], ids=['short', 'long'])
def test_the_words_below_a_confusion_table_are_on_the_picture(classes):
    fig = P.plot_confusion(PREDS['conv'], Y, classes, ('conv', 'truth'))
    fig.canvas.draw()
    words = [fig.axes[0].xaxis.label, fig.axes[0].yaxis.label, *fig.axes[0].get_xticklabels(), *fig.axes[0].get_yticklabels()]
    boxes = [w.get_window_extent() for w in words]
    assert all(b.ymin >= 0 and b.xmin >= 0 and b.ymax <= fig.bbox.height for b in boxes)
