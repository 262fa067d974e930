"""The playground: networks in the page answer as torch does, what it cannot is refused by name; then played."""
import json, shutil
import numpy as np, pandas as pd, pytest, timm, torch
from torch import nn
import libkd.diagnose as D
import libkd.playground as P
from libkd import UserError
from libkd.students import create_student
import libkd.widgets as W
from libkd.widgets import bundle

SIDE, C, STATS = 16, 5, ((.485, .456, .406), (.229, .224, .225))
VIT = dict(img_size=SIDE, depth=2)
NETS = dict(resnet_mini={}, rednet_mini={}, vit_nano=VIT, vit_civt_nano=VIT)


def pictures(n, seed):
    "Noise with a bar whose place and colour say the class"
    rng = np.random.default_rng(seed)
    y, x = np.arange(n) % C, rng.uniform(0, .6, (n, SIDE, SIDE, 3)).astype('f4')
    for im, c in zip(x, y): im[3*c:3*c+3, 4:12] = np.array([c & 1, c >> 1 & 1, c >> 2])*.8 + rng.uniform(0, .2, 3)
    return x, y

def normalised(x):
    mean, std = map(torch.tensor, STATS)
    return ((torch.from_numpy(x) - mean)/std).permute(0, 3, 1, 2).float()

def trained(name, seed=0, steps=25, **kw):
    "A network whose batch norms have seen something and whose answers have margins"
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=C, **{**NETS[name], **kw})
    x, y = pictures(160, 1)
    x, y = normalised(x), torch.from_numpy(y)
    opt = torch.optim.AdamW(model.parameters(), 4e-3)
    for i in range(steps):
        rows = torch.randperm(160)[:32]
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        opt.step(); opt.zero_grad()
    return model.eval()


@pytest.fixture(scope='module')
def nets(): return {n: trained(n) for n in NETS}

@pytest.fixture(scope='module')
def module(browser):
    "A blank page with a file of `libkd/static`, and a function of it that may be called"
    opened = []
    def load(name, function, first=''): # `first` runs before the file
        opened.append(browser.new_context(offline=True)); page = opened[-1].new_page()
        page.add_script_tag(content=f'{first}\n{bundle(name)}\nwindow.called = {function}', type='module')
        page.wait_for_function('() => Boolean(window.called)')
        return lambda *args: page.evaluate('args => called(...args)', list(args))
    yield load
    for ctx in opened: ctx.close()

RUN = """(text, pictures) => {
    const net = network(JSON.parse(text)), out = pictures.map(p => net.run(Float32Array.from(p)))
    const plain = o => Object.fromEntries(Object.entries(o).map(([k, v]) => [k, [...v]]))
    return { answers: out.map(o => [...o.answer]), heads: out.map(o => plain(o.heads)), lanes: Boolean(LANES) } }"""

def asked(run): return lambda packed, x: run(packed.to_json(), x.reshape(len(x), -1).tolist())

@pytest.fixture(scope='module')
def engine(module):
    "From a packed network and pictures to the answers of `nets.js`"
    return asked(module('nets.js', RUN))


# -- networks in the page ----------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize('name', NETS)
def test_the_page_answers_as_torch_does(engine, nets, name):
    x, y = pictures(250, 2)
    with torch.no_grad(): want = nets[name](normalised(x)).numpy()
    got = np.array(engine(P.pack_net(nets[name], SIDE, STATS), x)['answers'])
    assert np.ptp(want, 1).mean() > 1 and len(set(want.argmax(1))) == C             # there is something to get wrong
    assert np.abs(got - want).max() <= 1e-2 and (got.argmax(1) == want.argmax(1)).mean() >= .999


def test_every_head_answers_for_itself(engine, nets):
    x, _ = pictures(12, 3)
    with torch.no_grad(): want = nets['vit_civt_nano'].forward_heads(normalised(x))
    got = engine(P.pack_net(nets['vit_civt_nano'], SIDE, STATS), x)['heads']
    for h, z in want.items(): np.testing.assert_allclose([o[h] for o in got], z, atol=1e-2)


def test_a_packed_network_is_asked_about_some_pictures_at_a_time(nets, monkeypatch):
    "What lies between the layers of a whole test part would not fit into a laptop"
    packed, sizes, replay = P.pack_net(nets['rednet_mini'], SIDE, STATS), [], P._replayed
    monkeypatch.setattr(P, '_replayed', lambda packed, tensors, x: sizes.append(len(x)) or replay(packed, tensors, x))
    x = torch.from_numpy(pictures(150, 3)[0])
    many = P.packed_logits(packed, x)
    assert sizes == [64, 64, 22]
    torch.testing.assert_close(many, P.packed_logits(packed, x, bs=1000), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('name', ['resnet_mini', 'vit_civt_nano'])
def test_lanes_and_single_numbers_answer_alike(engine, module, nets, name):
    single = asked(module('nets.js', RUN, 'delete globalThis.WebAssembly'))
    packed, (x, _) = P.pack_net(nets[name], SIDE, STATS), pictures(6, 6)
    lanes, alone = engine(packed, x), single(packed, x)
    assert lanes['lanes'] and not alone['lanes']
    np.testing.assert_allclose(lanes['answers'], alone['answers'], atol=1e-4)


class Odds(nn.Module):
    "What the run's networks do not use: groups, dilation, both pools, SiLU, two GELUs, a norm before the convolution"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(3), nn.Conv2d(3, 12, 3, (2, 1), (1, 2), (1, 2)), nn.SiLU(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(12, 8, 3, padding=1, groups=4), nn.GELU('tanh'), nn.AvgPool2d(2, 1, 1, count_include_pad=False),
            nn.GELU(), nn.Conv2d(8, 6, 1, groups=2, bias=False))
        self.pool, self.fc = timm.layers.SelectAdaptivePool2d(flatten=True), nn.Linear(6, 7)
        self.body[0].running_mean += torch.rand(3); self.body[0].running_var *= 2
    def forward(self, x): return self.fc(self.pool(self.body(x)))


def test_operators_that_the_run_does_not_use(engine):
    torch.manual_seed(0)
    model, x = Odds().eval(), torch.rand(6, 13, 18, 3)
    packed = P.pack_net(model, (13, 18), kinds={Odds: lambda p, m, x: p.through(m, x, 'body', 'pool', 'fc')})
    with torch.no_grad(): want = model(x.permute(0, 3, 1, 2))
    np.testing.assert_allclose(engine(packed, x.numpy())['answers'], want, atol=2e-3)
    assert {'scale', 'pool'} <= {o['op'] for o in packed.ops} and np.ptp(want.numpy(), 1).min() > .05


@pytest.mark.parametrize('kw', [dict(conv_attention=2), dict(ensemble='mean_probs'), dict(ensemble='inv'),
                                dict(stem='official'), dict(heads=('cls', 'a', 'b'))])
def test_students_of_other_kinds(engine, kw):
    torch.manual_seed(0)
    model, (x, _) = create_student('civt_nano', C, SIDE, depth=2, **kw).eval(), pictures(6, 4)
    with torch.no_grad(): want = model(normalised(x))
    np.testing.assert_allclose(engine(P.pack_net(model, SIDE, STATS), x)['answers'], want, atol=1e-2)


def test_replay_is_what_the_page_answers(engine, nets):
    x, _ = pictures(8, 5)
    for model in nets.values():
        packed = P.pack_net(model, SIDE, STATS)
        want = P.packed_logits(packed, torch.from_numpy(x))
        np.testing.assert_allclose(engine(packed, x)['answers'], want, atol=2e-4)


def test_an_unknown_operator_is_refused_by_name_and_place():
    odd = timm.create_model('resnet_mini', num_classes=C)
    odd.layer2[0].act1 = nn.Hardswish()
    with pytest.raises(UserError, match=r'layer2\.0\.act1 is a Hardswish.*explore_disagreement'): P.pack_net(odd, SIDE)
    mirror = nn.Conv2d(3, 4, 3, padding=1, padding_mode='reflect')
    with pytest.raises(UserError, match='a convolution with padding .reflect.'): P.pack_net(mirror, SIDE)
    mean = timm.create_model('vit_nano', num_classes=C, img_size=SIDE, global_pool='avg')
    with pytest.raises(UserError, match='class token'): P.pack_net(mean, SIDE)


def test_a_recipe_that_is_wrong_is_noticed(nets):
    class Twice(nn.ReLU):
        def forward(self, x): return 2*super().forward(x)
    model = timm.create_model('resnet_mini', num_classes=C); model.act1 = Twice()
    wrong = {Twice: P.KINDS[nn.ReLU]}
    with pytest.raises(UserError, match='would answer otherwise'): P.pack_net(model, SIDE, kinds=wrong)
    model = timm.create_model('resnet_mini', num_classes=C); model.fc.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match='would answer otherwise'): P.pack_net(model, SIDE)


def test_packing_changes_nothing(nets):
    model = trained('resnet_mini', steps=2).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    P.pack_net(model, SIDE)
    assert model.training and model.bn1.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_module_of_networks_is_small_and_alone():
    text = bundle('nets.js')
    assert 'import' not in text.replace('important', '') and len(text.splitlines()) <= 600


# -- changes of a picture ----------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def edits(module):
    "From an edit to the pixels that the page makes of a picture"
    run = module('edits.js', '(p, H, W, e) => [...edited(Float32Array.from(p), H, W, { ...NEUTRAL, ...e })]')
    return lambda x, **e: np.array(run(x.ravel().tolist(), *x.shape[:2], e)).reshape(x.shape)


def test_the_page_changes_pictures_as_diagnose_does(edits):
    x, _ = pictures(3, 6)
    for im in x:
        np.testing.assert_allclose(edits(im), im, atol=1e-6)
        for dx, dy in ((1, 0), (-3, 2)):
            np.testing.assert_allclose(edits(im, dx=dx, dy=dy), D.shift_images(im[None], dx, dy)[0], atol=1e-6)
        np.testing.assert_allclose(edits(im, silhouette=True), D.silhouettes(im[None])[0], atol=1e-5)
        np.testing.assert_allclose(edits(im, colour=0), P._grey_pixels(im[None])[0], atol=1e-5)
        np.testing.assert_allclose(edits(im, cover=.4), P._covered(im[None])[0], atol=1e-6)


def test_shuffled_patches_are_the_same_patches(edits):
    x, _ = pictures(1, 7)
    cut = lambda im: {im[r:r+4, c:c+4].astype('f4').tobytes() for r in range(0, 16, 4) for c in range(0, 16, 4)}
    mixed = edits(x[0], shuffle=4, seed=3).astype('f4')
    assert cut(mixed) == cut(x[0]) and not np.allclose(mixed, x[0])
    np.testing.assert_array_equal(mixed, edits(x[0], shuffle=4, seed=3).astype('f4'))
    assert not np.allclose(mixed, edits(x[0], shuffle=4, seed=4))


def test_turns_scales_hues_and_noise_do_what_they_say(edits):
    x = np.zeros((9, 9, 3)); x[4, 6] = [1, .5, 0]
    np.testing.assert_allclose(edits(x, turn=90)[6, 4], [1, .5, 0], atol=1e-6)           # clockwise about the middle
    np.testing.assert_allclose(edits(x, size=2)[4, 8], [1, .5, 0], atol=1e-6)
    light = lambda p: p @ [.299, .587, .114]
    np.testing.assert_allclose(light(edits(x + .2, hue=60)), light(x + .2), atol=.2)
    np.testing.assert_allclose(edits(x, hue=360), x, atol=1e-6)
    grey = np.full((16, 16, 3), .5); spread = (edits(grey, noise=.1, seed=2) - .5).std()
    assert .09 < spread < .11


# -- the page ----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def playground(nets):
    x, y = pictures(48, 8)
    models = {'conv': nets['resnet_mini'], 'inv': nets['rednet_mini'], 'plain': nets['vit_nano'], 'student': nets['vit_civt_nano']}
    return P.bias_playground(models, x[:8], y[:8], [f'class {c}' for c in range(C)], stats=STATS, probe=(x[8:], y[8:]))


def bars(page, name): return page.eval_on_selector_all(f'[data-model="{name}"] rect', 'all => all.map(r => +r.dataset.p)')


def test_the_page_shows_what_the_networks_say(show, playground):
    page = show(playground)
    for i, T in ((0, 1.), (5, 1.), (5, 4.)):
        page.evaluate(f"libkd.model.set('selected', {i}); libkd.model.set('T', {T})")
        for name, z in playground.logits.items():
            np.testing.assert_allclose(bars(page, name), D.soften(z[i:i+1], T)[0], atol=2e-3)
    heads = page.text_content('[data-model=student] .kd-heads')
    assert [w.split()[0] for w in heads.split(' · ')] == ['cls', 'conv', 'inv']


def test_a_key_on_the_picture_shifts_it_and_all_answer(show, playground):
    page = show(playground); x = playground.imgs[:1]/255
    page.focus('.kd-easel')
    for _ in range(3): page.keyboard.press('ArrowRight')
    for name, f in playground.answers.items():
        np.testing.assert_allclose(bars(page, name), D.soften(f(D.shift_images(x, 3)), 1)[0], atol=2e-3)
    assert page.text_content('.kd-moves .kd-quiet').startswith('3 moves')
    page.click('text=Undo'); page.click('text=Start again')
    np.testing.assert_allclose(bars(page, 'conv'), D.soften(playground.logits['conv'][:1], 1)[0], atol=2e-3)


def test_drawing_covering_and_dragging(show, playground):
    page = show(playground); box = page.locator('.kd-screen').bounding_box()
    pixels = lambda: page.evaluate("[...document.querySelector('.kd-screen').getContext('2d').getImageData(0, 0, 16, 16).data]")
    before, at = pixels(), lambda x, y: (box['x'] + (x + .5)*box['width']/16, box['y'] + (y + .5)*box['height']/16)
    page.mouse.move(*at(4, 4)); page.mouse.down(); page.mouse.move(*at(7, 4)); page.mouse.up()
    moved = np.array(pixels()).reshape(16, 16, 4)[..., :3]
    np.testing.assert_allclose(moved, D.shift_images(playground.imgs[:1], 3)[0], atol=1)
    page.click('text=Start again'); assert pixels() == before
    page.click('[data-value=draw]'); page.click('[aria-label=red]')
    page.mouse.move(*at(8, 8)); page.mouse.down(); page.mouse.up()
    drawn = np.array(pixels()).reshape(16, 16, 4)
    assert drawn[8, 8, :3].tolist() == [217, 38, 26] and (drawn != np.array(before).reshape(16, 16, 4)).any(-1).sum() < 12


def test_drawing_with_the_keyboard(show, playground):
    page = show(playground)
    pixel = lambda x, y: page.evaluate(f"[...document.querySelector('.kd-screen').getContext('2d').getImageData({x}, {y}, 1, 1).data].slice(0, 3)")
    page.click('[data-value=draw]'); page.click('[aria-label=blue]'); page.focus('.kd-easel')
    for key in ('ArrowRight', 'ArrowRight', 'ArrowUp', 'Space'): page.keyboard.press(key)
    assert pixel(10, 7) == [26, 89, 217] and not page.is_hidden('.kd-brush') and page.text_content('.kd-moves .kd-quiet') == '1 move: drawn'
    page.click('[data-value=cover]'); page.focus('.kd-easel'); page.keyboard.press('Enter')
    assert pixel(10, 7) != [26, 89, 217]
    page.click('text=Undo'); assert pixel(10, 7) == [26, 89, 217]


def test_presets_play_their_steps(show, playground):
    page = show(playground, reduced_motion='reduce')
    for key in P.PRESETS: page.click(f'[data-preset={key}]')
    assert page.text_content('.kd-moves .kd-quiet').startswith('9 moves')            # four shifts and one of each other
    for key in ('silhouette', 'grey', 'cover'):
        page.click(f'[data-preset={key}]')
        x = playground.imgs[:1]/255; x = P._CHANGES[key](x)
        np.testing.assert_allclose(bars(page, 'conv'), D.soften(playground.answers['conv'](x), 1)[0], atol=5e-3)


def test_answers_stay_covered_until_there_is_a_guess(show, playground):
    page = show(playground)
    page.click('text=Start >> nth=0'); right = 0
    for i in range(len(P.PRESETS)):
        says = page.eval_on_selector_all('.kd-says', 'all => all.map(s => s.textContent)')
        labels = page.eval_on_selector_all('.kd-columns', "all => all.map(s => s.getAttribute('aria-label'))")
        heights = page.eval_on_selector_all('.kd-columns rect', "all => [...new Set(all.map(r => r.getAttribute('height')))]")
        assert says == ['?']*4 and all('covered' in t for t in labels) and len(heights) == 1
        assert page.is_hidden('.kd-p-curve') and page.evaluate("document.querySelector('.kd-col').inert")
        page.keyboard.press('Enter')                                                  # the focus is on the first guess
        assert '?' not in page.eval_on_selector_all('.kd-says', 'all => all.map(s => s.textContent)')
        right += 'You saw it coming' in page.text_content('.kd-game')
        page.keyboard.press('Enter')
    assert page.text_content('.kd-game').startswith(f'You predicted {right} of 6')
    page.click('text=Look around'); assert not page.evaluate("document.querySelector('.kd-col').inert")


def test_a_picture_of_ones_own(show, playground, tmp_path):
    from PIL import Image
    page = show(playground); Image.new('RGB', (64, 32), (200, 30, 30)).save(tmp_path/'own.png'); (tmp_path/'no.png').write_text('no picture')
    page.set_input_files('input[type=file]', tmp_path/'own.png'); page.wait_for_selector('.kd-thumb[aria-selected=true]', state='detached')
    want = D.soften(playground.answers['conv'](np.full((1, 16, 16, 3), [200/255, 30/255, 30/255])), 1)[0]
    np.testing.assert_allclose(bars(page, 'conv'), want, atol=5e-3)
    page.set_input_files('input[type=file]', tmp_path/'no.png')
    page.wait_for_function("() => document.querySelector('.kd-verdict').textContent === 'no.png is no picture that this browser can read.'")


@pytest.mark.slow
@pytest.mark.parametrize('context', [{}, dict(color_scheme='dark'), dict(viewport=dict(width=390, height=844))], ids=['light', 'dark', 'phone'])
def test_axe_finds_nothing_and_nothing_overflows(show, playground, context):
    axe = pytest.importorskip('axe_playwright_python.sync_playwright', reason='axe is not installed: pip install "libkd[dev]"')
    page = show(playground, **context)
    for step in ("document.querySelector('[data-value=draw]').click()", "document.querySelector('.kd-main').click()", "document.querySelector('[data-guess]').click()"):
        page.evaluate(step)
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')


@pytest.mark.parametrize('width', [800, 1120, 1600])
def test_a_wide_page_has_no_empty_corner(show, playground, width):
    page = show(playground, viewport=dict(width=width, height=900))
    box = lambda kind: page.locator(f'.kd-p-{kind}').bounding_box()
    foot = lambda kind: box(kind)['y'] + box(kind)['height']
    assert foot('picture') == pytest.approx(foot('answers'), abs=1) and foot('knobs') == pytest.approx(foot('curve'), abs=1)
    cards = page.eval_on_selector_all('.kd-net', 'all => all.map(o => o.getBoundingClientRect().right)')
    assert max(cards) == pytest.approx(cards[-1], abs=1), 'the last row is full'


def test_on_a_phone_the_answers_stand_at_the_picture_too(show, playground):
    page = show(playground, viewport=dict(width=390, height=844)); words = lambda: page.eval_on_selector_all('.kd-brief span', 'all => all.map(o => o.textContent)')
    says = page.eval_on_selector_all('.kd-says', 'all => all.map(o => o.textContent)')
    page.locator('.kd-tries').scroll_into_view_if_needed()
    box = page.locator('.kd-brief').bounding_box()
    assert words() == says and 0 < box['y'] < box['y'] + box['height'] <= 844 and box['width'] <= 390
    page.click('.kd-main'); assert set(words()) == {'?'}
    page.set_viewport_size(dict(width=1120, height=900)); assert not page.locator('.kd-brief').is_visible()


@pytest.mark.parametrize('width', [390, 1120])
def test_names_of_classes_stand_whole_on_a_line(show, nets, width):
    "Classes of a folder are words; `Vögel` had stood as `Vöge` above `l`"
    x, y = pictures(2, 9)
    page = show(P.bias_playground({'resnet_mini': nets['resnet_mini'], 'b': nets['rednet_mini']}, x, y, ['Vögel', 'Frösche', 'Schiffe groß', 'Katzen', 'Wetterhähne']), viewport=dict(width=width, height=844))
    for k in range(2):
        page.locator('.kd-thumb').nth(k).click()
        assert all(page.eval_on_selector_all('.kd-says', 'all => all.map(o => o.getClientRects().length == 1 && o.offsetHeight < 30 && o.scrollWidth <= o.parentElement.clientWidth)'))
    ends = page.eval_on_selector_all('.kd-net', "all => all.map(o => [...o.querySelectorAll('.kd-columns text')].map(t => t.getBoundingClientRect()).map(b => [b.left, b.right]))")
    assert all(b[0] >= a[1] - .5 for one in ends for a, b in zip(one, one[1:])), ends


def test_names_are_text_never_markup(show, nets):
    evil = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>'
    x, y = pictures(2, 9)
    page = show(P.bias_playground({evil: nets['resnet_mini']}, x, y, [evil, *'bcde'], names=[evil, 'b'], note=evil))
    page.wait_for_timeout(100)
    assert page.evaluate('window.hacked') is None and page.eval_on_selector_all('#view img', 'all => all.length') == 0


# -- Python ------------------------------------------------------------------------------------------------------------

def test_what_does_not_fit_is_said_in_a_sentence(nets):
    net, (x, y) = nets['resnet_mini'], pictures(3, 0)
    ask = lambda *a, **kw: lambda: P.bias_playground(*a, **kw)
    for f, words in ((ask({}, x), 'no networks'), (ask({'a': net}, x[:0]), 'no pictures'), (ask({'a': net}, x, y[:2]), '2 labels for 3 pictures'),
                     (ask({'a': net}, x[..., 0]), 'pictures are an array'), (ask({'a': net}, x*np.nan), 'NaN'), (ask({'a': net}, x, y, ['x']), '1 class names'),
                     (ask({'a': net}, x, y + 9), 'beyond the 5 classes'), (ask({'a': net}, x, y*np.nan), 'labels are NaN'), (ask({'a': net}, x, T=9), 'T=9; the slider'), (ask({'my net': nn.Sequential(nn.Hardswish())}, x), r'^my net: .* is a Hardswish'),
                     (ask({'a': net, 'b': timm.create_model('resnet_mini', num_classes=3)}, x), 'different numbers of classes')):
        with pytest.raises(UserError, match=words): f()


def test_a_linked_playground_shows_the_picture_that_is_chosen_elsewhere(nets):
    x, y = pictures(12, 0); w = P.bias_playground({'a': nets['resnet_mini']}, x, y, names=list('abcdefghijkl'), stats=STATS, rows=[5, 2, 9])
    z = {k: np.random.default_rng(i).normal(size=(12, C)) for i, k in enumerate('ab')}; far = W.explore_disagreement(x, z, y)
    assert w.labels == list('fcj') and w.rows.tolist() == [5, 2, 9] and len(w.state()['pixels']) == 3*16*16*3
    W.link(far, w); far.show(2)
    assert (w.selected, w.rows.tolist()) == (1, [5, 2, 9])                                # it was there
    far.show(7)
    assert (w.selected, w.rows.tolist()) == (3, [5, 2, 9, 7]) and w.labels[-1] == 'h' and (w.imgs[3] == w.pool[7]).all() and w.y[3] == y[7]
    np.testing.assert_allclose(w.logits['a'][3], w.answers['a'](w.pool[7:8]/255)[0], atol=1e-5)
    w.selected = 0; assert far.rows[far.selected] == 5
    for row in (0, 1, 3, 4, 6): w.show(row)
    assert w.rows.tolist() == [2, 9, 7, 0, 1, 3, 4, 6] and far.rows[far.selected] == 6     # no more than eight, the oldest goes
    w.show(99); assert w.rows[w.selected] == 6
    for rows in ([], [12], [-1]):
        with pytest.raises(UserError, match='give positions among the 12 pictures'): P.bias_playground({'a': nets['resnet_mini']}, x, y, rows=rows)


def test_a_live_playground_keeps_its_model_when_a_picture_comes(nets, monkeypatch):
    pytest.importorskip('anywidget', reason='anywidget is not installed: pip install "libkd[widgets]"')
    monkeypatch.setenv('LIBKD_WIDGETS', 'live'); x, y = pictures(6, 0)
    w = P.bias_playground({'a': nets['resnet_mini']}, x, y, stats=STATS, rows=[0, 1]); model = w.widget; sent = []
    model.observe(lambda c: sent.append(c['name'])); w.show(4)
    assert w.widget is model and model.selected == 2 and len(model.pixels) == 3*16*16*3 and 'meta' in sent and 'weights' not in sent
    w.close()


def test_numbers_of_presets_by_hand():
    x, y = np.zeros((2, 8, 8, 3), 'f4'), np.array([0, 1]); x[0, :, 2] = x[1, :, 5] = 1             # a bar on the left, one on the right
    n = P.preset_numbers(lambda p: p.reshape(-1, 8, 2, 4, 3).mean((1, 3, 4)), x, y)                 # says which half is brighter
    assert n['shift'] == 6/8                     # of four shifts each, the one by two pixels to the middle takes it to the other half
    assert [n[k] for k in ('silhouette', 'grey', 'noise', 'cover')] == [1, 1, 1, 1]                 # half of the bar shows beside the cover
    assert n['shuffle'] == 1 - D.accuracy(D.shuffle_patches(x).reshape(-1, 8, 2, 4, 3).mean((1, 3, 4)), y)
    half = lambda p: p.reshape(-1, 8, 2, 4, 3).mean((1, 3, 4))
    for same in ((x*255).astype(np.uint8), x.astype(bool), x.astype(int), torch.tensor(x)): assert P.preset_numbers(half, same, y) == n
    pd.testing.assert_frame_equal(P.measured({'a': half}, (x*255).astype(np.uint8), y), P.measured({'a': half}, x, y))
    blind = P.preset_numbers(lambda p: np.tile([1., 0], (len(p), 1)), x, y)
    assert blind == dict(shift=1, shuffle=0, silhouette=.5, grey=.5, noise=.5, cover=.5)


def test_pictures_with_other_numbers_are_refused():
    x, y, half = np.zeros((2, 8, 8, 3)), np.array([0, 1]), lambda p: p[:, 0, 0, :2]
    for bad, words in ((x + 255, 'images go from 0 to 255; needed are uint8'), (x - 1., 'images go from -1 to 1'), (x*np.nan, 'NaN'), (x[0], r'an array \(n, H, W, 3\)')):
        for f in (lambda: P.preset_numbers(half, bad, y), lambda: P.measured({'a': half}, bad, y), lambda: P.bias_playground({}, bad)):
            with pytest.raises(UserError, match=words): f()


def test_evidence_is_asked_by_the_names_there_are():
    for f, words in ((lambda: P.Evidence.measured('train'), "part='train'.*'valid' and on 'test'"), (lambda: P.Evidence.measured().says('as it is'), "no preset 'as it is'. There are shift"),
                     (lambda: P.Evidence(dict(shfit={})), "Did you mean 'shift'")):
        with pytest.raises(UserError, match=words): f()
    assert P.Evidence.measured('test').numbers.keys() == P.Evidence.measured().numbers.keys()


def test_a_bias_is_named_only_with_evidence(nets, playground):
    apart, alike = dict(conv=[.9, .91, .92, .93, .94], inv=[.7, .72, .75, .78, .8]), dict(conv=[.9, .8, .85, .7, .95], inv=[.8, .9, .7, .88, .86])
    x, y = pictures(2, 0)
    w = P.bias_playground({'a': nets['resnet_mini']}, x, y, evidence=dict(shift=apart, grey=alike, noise=dict(conv=[1, 2], inv=[3, 4])))
    says = {p['key']: p['says'] for p in w.data()['meta']['presets']}
    assert says['shift'] == ('Decisions that stay: convolution 92\u00a0%, involution 75\u00a0%.', 'Tells apart convolution and involution (AUC 1.00).')
    assert says['grey'][1].startswith('Does not tell apart convolution and involution (AUC 0.') and 'five are needed' in says['noise'][1]
    assert says['cover'] == ('', 'Which bias this shows: not measured here.')
    unequal = P.Evidence(dict(shift=apart, **{'as it is': dict(conv=[.9]*5, inv=[.8]*5)})).says('shift')[1]
    assert unequal == 'Not equally accurate, so not compared: convolution and involution.'


def test_what_was_measured_comes_along_and_is_said(show, playground):
    found = P.Evidence.measured(); accuracy = found.numbers['as it is']
    assert set(found.numbers) == {'as it is', *P.PRESETS} and all(len(v) >= 5 for g in found.numbers.values() for v in g.values())
    for a, b in (('conv', 'inv'), ('conv', 'attn'), ('inv', 'attn')): assert D.tells_apart(accuracy[a], accuracy[b]) < .9     # equally accurate
    assert np.ptp(np.concatenate(list(accuracy.values()))) <= .05
    page = show(playground); told = page.eval_on_selector_all('.kd-presets li', 'all => all.map(l => l.textContent)')
    for key, text in zip(P.PRESETS, told):
        g = found.numbers[key]; areas = {f'{a} and {b}': D.tells_apart(g[x], g[y]) for (a, x), (b, y) in
                                         ((('convolution', 'conv'), ('involution', 'inv')), (('convolution', 'conv'), ('attention', 'attn')), (('involution', 'inv'), ('attention', 'attn')))}
        for who, area in areas.items():
            assert f'{who} (AUC {area:.2f})' in text
            apart = text.split('Does not tell apart')[0] if 'Tells apart' in text else ''
            assert (who in apart) == (area >= .9)
    assert 'digits of 16 pixels' in page.text_content('.kd-evidence')
    assert P.bias_playground({'a': trained('resnet_mini', steps=1)}, playground.imgs, evidence={}).data()['meta']['about'] == ''


def test_the_page_says_what_it_is_about(show, playground):
    page = show(playground, viewport=dict(width=390, height=844))
    assert 'inductive bias' in page.text_content('.kd-lead') and page.locator('.kd-lead').bounding_box()['y'] < 200
    page.click('.kd-reading summary'); text = page.text_content('.kd-reading')
    assert all(P.LOOKS[k] in text for k in ('conv', 'inv', 'attn')) and P.READING in text and P.LOOKS['mlp'] not in text


def test_a_network_has_one_look_in_page_and_figure(playground):
    nets = {n['name']: n['colour'] for n in playground.data()['meta']['nets']}
    assert (nets['conv'], nets['inv'], nets['student']) == ('#0072B2', '#E69F00', '#009E73')
    assert P._alike(dict(a='conv', b='conv', c='inv', taught='attn', plain='attn')) == dict(a='conv', b='b', c='inv', taught='student', plain='plain')


def test_headless_shows_the_figure_with_its_text(monkeypatch, playground):
    monkeypatch.setenv('LIBKD_WIDGETS', 'headless'); shown = []
    monkeypatch.setattr('IPython.display.display', lambda o, **kw: shown.append(o))
    playground._ipython_display_()
    assert len(shown) == 1 and 'Playground with 4 networks (conv, inv, plain, student) and 8 pictures' in shown[0]['text/html']
    assert 'conv says' in shown[0]['text/html'] and playground._model is None


def test_live_in_a_notebook(monkeypatch, playground):
    pytest.importorskip('anywidget', reason='anywidget is not installed: pip install "libkd[widgets]"')
    monkeypatch.setenv('LIBKD_WIDGETS', 'live')
    w = playground.widget; w.selected = 3
    assert playground.selected == 3 and type(w._esm) is str and 'export default' in w._esm
    playground.close(); playground.selected = 0


@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
    "A folder as `libkd run` leaves it, with one teacher and one student that have seen next to nothing"
    import fastai.callback.progress                                                    # gives Learner no_bar
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from libkd.handover import save_student
    from libkd.sets import digits
    from libkd.teachers import fit_teacher
    from libkd.views import image_dls
    folder = tmp_path_factory.mktemp('run')
    dls = image_dls(digits(), size=8, check=False, device=torch.device('cpu'))
    fit_teacher('resnet_mini', dls, epochs=1, folder=folder/'teachers', check=False)
    torch.manual_seed(0)
    learn = Learner(dls, create_student('civt_nano', 10, (8, 8), depth=1), loss_func=CrossEntropyLossFlat())
    for seed in (0, 1): save_student(learn, folder/'students'/f'taught-{seed}-key')              # the first seed is shown
    params = dict(data='digits', size=0, valid=.2, seed=0)
    rows = [dict(arm='taught', seed=seed, files=f'taught-{seed}-key') for seed in (0, 1)]
    (folder/'result.json').write_text(json.dumps(dict(title='A <small> run', params=params, runs=rows)))
    return folder


@pytest.mark.slow
def test_a_run_becomes_one_page(browser, run_folder):
    file = P.demo(run_folder)
    assert file == run_folder/'demo.html' and file.stat().st_size < 1.8e6
    page, asked = browser.new_page(), []
    page.on('request', lambda r: asked.append(r.url)); page.goto(file.as_uri()); page.wait_for_selector('.kd-net')
    assert page.eval_on_selector_all('.kd-net', 'all => all.map(n => n.dataset.model)') == ['resnet_mini', 'taught']
    assert page.eval_on_selector_all('.kd-thumb', 'all => all.length') == 8 and 'A <small> run' in page.text_content('.kd-note')
    assert [u for u in asked if not u.startswith(('data:', 'blob:'))] == [file.as_uri()]
    page.close()


@pytest.mark.slow
def test_a_second_convolution_of_a_run_is_in_its_page(run_folder):
    from libkd.sets import digits
    from libkd.teachers import fit_teacher
    from libkd.views import image_dls
    dls = image_dls(digits(), size=8, check=False, device=torch.device('cpu'))
    fit_teacher('resnet_mini', dls, epochs=1, seed=1, folder=run_folder/P.SECOND/'teachers', check=False, verbose=False)
    try:
        text = P.demo(run_folder, run_folder/'both.html').read_text(encoding='utf-8')
        names = [n['name'] for n in json.loads(text.split('id="data">')[1].split('</script>')[0])['values']['meta']['nets']]
        assert names == ['resnet_mini', 'resnet_mini, another seed', 'taught']
    finally: shutil.rmtree(run_folder/P.SECOND)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='result.json is missing. libkd run writes one'): P.demo(tmp_path)


def test_networks_too_heavy_for_a_page_are_refused(monkeypatch, nets):
    x, y = pictures(2, 0)
    monkeypatch.setattr(P, 'HEAVIEST', 100_000)
    with pytest.raises(UserError, match='2 networks of 0.3 MB are too heavy for a page; up to 0.1 MB'):
        P.bias_playground([nets['resnet_mini']]*2, x, y)


@pytest.mark.slow
def test_the_command_makes_the_page_of_a_run(run_folder, tmp_path, capsys):
    from libkd.cli import main
    with pytest.raises(SystemExit) as e: main(['demo', str(run_folder), '-o', str(tmp_path/'page.html'), '--pictures', '3'])
    assert e.value.code == 0 and 'page.html: 0.' in capsys.readouterr().out
    assert 'Who changes their mind?' in (tmp_path/'page.html').read_text(encoding='utf-8')
    with pytest.raises(SystemExit) as e: main(['demo', str(tmp_path)])
    assert e.value.code == 2 and 'result.json is missing' in capsys.readouterr().err


def test_a_network_that_the_page_cannot_run_is_named_and_left_out(nets):
    heavy = timm.create_model('tf_efficientnet_lite0', num_classes=10)
    kept, out = P._packable({'a': nets['resnet_mini'], 'heavy': heavy}, (16, 16), None)
    assert list(kept) == ['a'] and out == ['heavy is not here: this page cannot run such a network.']
    with pytest.raises(UserError, match='none of these networks'): P._packable({'heavy': heavy}, (16, 16), None)
