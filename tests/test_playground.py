"""The playground: networks in the page answer as torch does, what it cannot is refused by name; then played."""
import json, shutil
import numpy as np, pytest, timm, torch
from torch import nn
import libkd.playground as P
from libkd import UserError
from libkd.students import create_student
from libkd.widgets import bundle

CHROMIUM = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), None)
SIDE, C, STATS = 16, 5, ((.485, .456, .406), (.229, .224, .225))
ARGS = ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking']
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

def trained(name, seed=0, steps=60, **kw):
    "A network whose batch norms have seen something and whose answers have margins"
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=C, **{**NETS[name], **kw})
    x, y = pictures(160, 1)
    x, y = normalised(x), torch.from_numpy(y)
    opt = torch.optim.AdamW(model.parameters(), 1e-3)
    for i in range(steps):
        rows = torch.randperm(160)[:32]
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        opt.step(); opt.zero_grad()
    return model.eval()


@pytest.fixture(scope='module')
def nets(): return {n: trained(n) for n in NETS}

@pytest.fixture(scope='module')
def browser():
    sync = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install "libkd[dev]"')
    if CHROMIUM is None: pytest.skip('no Chromium on this machine: apt-get install chromium')
    with sync.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield b
        b.close()

@pytest.fixture(scope='module')
def engine(browser):
    "A blank page with `nets.js`: from a packed network and pictures to answers"
    ctx = browser.new_context(offline=True); page = ctx.new_page()
    page.add_script_tag(content=bundle('nets.js') + '\nwindow.network = network', type='module')
    page.wait_for_function('() => Boolean(window.network)')
    def run(packed, x):
        return page.evaluate('''([text, pictures]) => {
            const net = network(JSON.parse(text)), out = pictures.map(p => net.run(Float32Array.from(p)))
            const plain = o => Object.fromEntries(Object.entries(o).map(([k, v]) => [k, [...v]]))
            return { answers: out.map(o => [...o.answer]), heads: out.map(o => plain(o.heads)) } }''',
            [packed.to_json(), x.reshape(len(x), -1).tolist()])
    yield run
    ctx.close()


# -- networks in the page ----------------------------------------------------------------------------------------------

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
