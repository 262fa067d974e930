"""Measures against other people's implementations of them, and models that are left exactly as they were found."""
import numpy as np, pandas as pd, pytest, timm, torch
import fastai.callback.progress                              # gives Learner no_bar
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from hypothesis import given, strategies as st
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, log_loss, matthews_corrcoef
from torch import nn
from libkd import UserError
import libkd.diagnose as D

rng = np.random.default_rng(0)
Z, W, Y = rng.normal(0, 2, (400, 7)), rng.normal(0, 2, (400, 7)), rng.integers(0, 7, 400)
logits = st.integers(0, 10_000).map(lambda s: np.random.default_rng(s).normal(0, 4, (6, 5)))


def guo(z, y, bins=15):
    "Guo et al.'s ECE, written from the formula with a loop over bins (lo, hi]."
    p = torch.tensor(z).softmax(1); conf, said = p.max(1); right = (said == torch.tensor(y)).double(); total = 0.
    for lo, hi in zip(torch.linspace(0, 1, bins + 1)[:-1], torch.linspace(0, 1, bins + 1)[1:]):
        inside = (conf > lo) & (conf <= hi)
        if inside.any(): total += inside.double().mean()*(right[inside].mean() - conf[inside].mean()).abs()
    return float(total)


# -- quality ---------------------------------------------------------------------------------------------------------------

def test_ece_is_guos_also_where_confidence_is_one():
    sure = Z.copy(); sure[:150] *= 100
    assert (torch.tensor(sure).softmax(1).max(1).values == 1).sum() > 50
    for z in (Z, sure, 4*Z): assert D.ece(z, Y) == pytest.approx(guo(z, Y), abs=1e-9)


def test_ece_equals_torchmetrics_below_confidence_one():
    from torchmetrics.functional.classification import multiclass_calibration_error as other
    assert D.ece(Z, Y) == pytest.approx(other(torch.tensor(Z).softmax(1), torch.tensor(Y), 7, n_bins=15).item(), abs=1e-6)


def test_quality_equals_scikit_learn():
    few = np.where(Y == 3, 0, Y)                                  # a class that never occurs
    with pytest.warns(UserWarning, match='not in y_true'): want = balanced_accuracy_score(few, Z.argmax(1))
    assert D.macro_accuracy(Z, few) == pytest.approx(want, abs=1e-12)
    assert D.nll(Z, Y) == pytest.approx(log_loss(Y, D.soften(Z)), abs=1e-9)


def test_images_without_label_do_not_count():
    y = Y.copy(); y[::2] = -1
    for f in (D.accuracy, D.macro_accuracy, D.ece, D.nll, D.brier): assert f(Z, y) == f(Z[1::2], Y[1::2])


def test_accuracy_is_also_a_fastai_metric():
    x, y = torch.randn(40, 4), torch.randint(0, 3, (40,))
    learn = Learner(DataLoaders.from_dsets(list(zip(x, y)), list(zip(x, y)), bs=20, device='cpu'), nn.Linear(4, 3), CrossEntropyLossFlat(), metrics=D.accuracy)
    with learn.no_bar(): assert learn.validate()[1] == pytest.approx(D.accuracy(learn.model(x), y))


# -- difference ------------------------------------------------------------------------------------------------------------

def test_error_consistency_is_cohens_kappa_of_right_and_wrong():
    a, b = Z + 2*np.eye(7)[Y], W + 2*np.eye(7)[Y]
    ra, rb = a.argmax(1) == Y, b.argmax(1) == Y
    assert D.error_consistency(a, b, Y) == pytest.approx(cohen_kappa_score(ra, rb))
    row = D.diversity(dict(a=a, b=b), Y).iloc[0]
    assert row.rho == pytest.approx(matthews_corrcoef(ra, rb)) and row.double_fault == pytest.approx((~ra & ~rb).mean())
    n = pd.crosstab(ra, rb).to_numpy(); q = (n[1, 1]*n[0, 0] - n[0, 1]*n[1, 0])/(n[1, 1]*n[0, 0] + n[0, 1]*n[1, 0])
    assert row.q == pytest.approx(q) and row.oracle == pytest.approx((ra | rb).mean())


@given(logits, logits, logits, st.floats(.3, 10))
def test_js_is_bounded_symmetric_and_the_mean_kl_to_the_mixture(a, b, c, T):
    js, P = D.js_divergence([a, b, c], T), np.stack([D.soften(z, T) for z in (a, b, c)])
    assert (js >= 0).all() and (js <= np.log(3) + 1e-9).all()
    np.testing.assert_allclose(js, D.js_divergence([c, a, b], T), atol=1e-12)
    np.testing.assert_allclose(js, (P*np.log(P/P.mean(0))).sum(-1).mean(0), atol=1e-9)


@pytest.mark.parametrize('T', [0, -1, float('nan'), float('inf')])
def test_a_temperature_that_is_none_is_refused(T):
    "Below 0 the least likely class would become the likeliest; kl and js of it are numbers, too"
    from libkd.datafree import competition_loss
    from libkd.plots import plot_softened
    z = np.array([[1., 2, 4]])
    for f in (lambda: D.soften(z, T), lambda: D.js_divergence([z, -z], T), lambda: D.kl_divergence(z, -z, T),
              lambda: D.sample_disagreement({'a': z, 'b': -z}, T=T), lambda: D.head_agreement({'cls': z}, {'a': z}, 'kl', T),
              lambda: plot_softened({'a': z[0]}, T), lambda: competition_loss(torch.tensor(z), torch.tensor(-z), T)):
        with pytest.raises(UserError, match=f'T={T}: a temperature must be above 0 and finite'): f()


def test_kl_is_that_of_torch():
    t, s = torch.tensor(Z), torch.tensor(W)
    want = nn.functional.kl_div((s/3).log_softmax(1), (t/3).log_softmax(1), reduction='none', log_target=True).sum(1)
    np.testing.assert_allclose(D.kl_divergence(t, s, 3), want, atol=1e-12)


def test_cases_name_the_teacher_that_is_right():
    preds = {k: np.eye(4)[v] for k, v in dict(conv=[0, 0, 1, 1], inv=[0, 1, 0, 2]).items()}
    assert list(D.sample_disagreement(preds, [0, 0, 0, 0]).case) == ['both right', 'only conv', 'only inv', 'both wrong']
    assert list(D.sample_disagreement(preds, [0, -1, 0, 0]).case)[1] == 'no label'
    assert list(D.sample_disagreement(preds).case) == ['agree', 'disagree', 'disagree', 'disagree']
    three = D.sample_disagreement({**preds, 'attn': np.eye(4)[[0, 0, 0, 0]]}, [0, 0, 0, 0]).case
    assert list(three) == ['all right', 'only conv + attn', 'only inv + attn', 'only attn']


def test_head_agreement_finds_the_teacher_of_each_head():
    heads = dict(conv=Z + .1*W, inv=W + .1*Z); teachers = dict(a=Z, b=W)
    follows = D.head_agreement(heads, teachers, 'follows')
    assert follows.loc['conv', 'a'] > .9 and follows.loc['inv', 'b'] > .9 and follows.sum(axis=1).tolist() == pytest.approx([1, 1])
    assert D.head_agreement(heads, teachers, 'kl').idxmin(1).to_dict() == dict(conv='a', inv='b')


# -- classes that a teacher does not know: −∞ -------------------------------------------------------------------------------

PART = np.where(np.arange(7) == 2, -np.inf, Z)                    # its class_map leads to all classes but 2
KNOWN, REST, W_REST = Y != 2, np.delete(Z, 2, 1), np.delete(W, 2, 1)

@pytest.mark.parametrize('measure', [D.accuracy, D.macro_accuracy, D.ece, D.nll, D.brier], ids=lambda f: f.__name__)
def test_among_known_classes_quality_is_that_of_a_model_of_these_classes(measure):
    assert measure(PART[KNOWN], Y[KNOWN]) == pytest.approx(measure(REST[KNOWN], Y[KNOWN] - (Y[KNOWN] > 2)), abs=1e-12)


def test_an_unknown_class_has_the_probability_0():
    assert (D.soften(PART, 3)[:, 2] == 0).all() and D.ece(PART, Y) == pytest.approx(guo(PART, Y), abs=1e-9)
    assert D.accuracy(PART, Y) == (REST.argmax(1) == Y - (Y > 2))[KNOWN].sum()/len(Y) and D.nll(PART, Y) == np.inf
    assert D.brier(PART, Y) == pytest.approx(((D.soften(PART) - np.eye(7)[Y])**2).sum(1).mean())


@pytest.mark.parametrize('T', [1., 3.])
def test_js_with_unknown_classes_is_scipys(T):
    from scipy.spatial.distance import jensenshannon              # its square is the divergence
    for other in (W, np.where(np.arange(7) == 4, -np.inf, W), np.where(np.arange(7) == 2, -np.inf, W)):
        want = jensenshannon(D.soften(PART, T), D.soften(other, T), axis=1)**2
        np.testing.assert_allclose(D.js_divergence([PART, other], T), want, atol=1e-9)


@pytest.mark.parametrize('T', [1., 3.])
def test_kl_is_what_kd_loss_minimises_also_where_the_teacher_does_not_know_a_class(T):
    from libkd.losses import kd_loss
    got = D.kl_divergence(PART, W, T)
    np.testing.assert_allclose(T**2*got, kd_loss(torch.tensor(W), torch.tensor(PART), T=T, reduction='none'), atol=1e-9)
    np.testing.assert_allclose(got, D.kl_divergence(REST, W_REST, T), atol=1e-9)
    assert (D.kl_divergence(W, PART, T) == np.inf).all()          # what the teacher expects, the student excludes
    only = lambda c: np.where(np.arange(7) == c, 0, -np.inf)[None]
    assert D.kl_divergence(only(1), only(2), T).tolist() == [np.inf] and D.kl_divergence(only(1), only(1), T).tolist() == [0]


def test_tables_of_difference_hold_numbers_where_a_class_is_unknown():
    preds = dict(a=PART, b=W, student=Z + W)
    df = D.sample_disagreement(preds, Y, 2.)
    assert np.isfinite(df.drop(columns='case').to_numpy(float)).all() and not (df.says_a == 2).any()
    np.testing.assert_allclose(df.kl_a, D.kl_divergence(REST, np.delete(Z + W, 2, 1), 2.), atol=1e-9)
    assert D.disagreement_matrix(preds, Y).loc['a', 'b'] == (PART.argmax(1) != W.argmax(1)).mean()
    assert D.diversity(preds, Y).notna().all(axis=None) and D.teacher_confusion(W, PART)[:, 2].sum() == 0


def test_who_is_followed_is_told_among_the_classes_that_all_teachers_know():
    heads, few = dict(a=Z + .1*W, b=W + .1*Z, c=Z[::-1]), np.where(np.arange(7) < 3, Z, -np.inf)
    got = D.head_agreement(heads, dict(a=few, b=W), 'follows', 2.)
    want = D.head_agreement({k: z[:, :3] for k, z in heads.items()}, dict(a=Z[:, :3], b=W[:, :3]), 'follows', 2.)
    pd.testing.assert_frame_equal(got, want)
    one = np.where(np.arange(7) == 0, 1., -np.inf) + 0*Z
    with pytest.raises(UserError, match='fewer than two classes in common on 400 of 400 images'): D.head_agreement(heads, dict(a=one, b=W), 'follows')


@pytest.mark.parametrize('bad,words', [(np.nan, 'hold NaN or .∞ in 1 of 400 rows: did training diverge'), (np.inf, 'hold NaN or .∞ in 1 of 400 rows'),
                                       (-np.inf, 'hold −∞ for every class in 1 of 400 rows.*class_map')], ids=['NaN', '+∞', 'only −∞'])
def test_what_is_no_answer_is_refused_everywhere(bad, words):
    z = Z.copy(); z[7] = bad if bad < 0 else np.where(np.arange(7) == 3, bad, z[7])
    for f in (lambda: D.accuracy(z, Y), lambda: D.ece(z, Y), lambda: D.soften(z), lambda: D.js_divergence([W, z]), lambda: D.kl_divergence(z, W), lambda: D.kl_divergence(W, z),
              lambda: D.sample_disagreement(dict(a=W, b=z)), lambda: D.teacher_confusion(W, z), lambda: D.teacher_confusion(z, W), lambda: D.head_agreement(dict(h=W), dict(a=z), 'follows')):
        with pytest.raises(UserError, match=words): f()


# -- attention -------------------------------------------------------------------------------------------------------------

def civt():
    from libkd.students import create_student
    return create_student('civt_nano', 5, (16, 16))

def vit(name='vit_tiny_patch16_224', **kw): return timm.create_model(name, num_classes=5, img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, **kw)

NETS = dict(civt=civt, vit=vit, distilled=lambda: vit('deit_tiny_distilled_patch16_224'), qk_norm=lambda: vit(qk_norm=True),
            registers=lambda: vit('vit_tiny_patch16_224', reg_tokens=4), gap=lambda: vit(class_token=False, global_pool='avg'))

def explicit(net, x):
    "softmax(q k^T / sqrt(d)) of every block, from what enters its qkv."
    seen = []
    hooks = [b.attn.register_forward_pre_hook(lambda m, a: seen.append((m, a[0]))) for b in net.blocks]
    with torch.no_grad(): net.eval()(x)
    for h in hooks: h.remove()
    out = []
    for m, t in seen:
        B, N, _ = t.shape
        q, k, _ = m.qkv(t).reshape(B, N, 3, m.num_heads, -1).permute(2, 0, 3, 1, 4)
        out.append((m.q_norm(q) @ m.k_norm(k).transpose(-1, -2) / q.shape[-1]**.5).softmax(-1))
    return torch.stack(out, 1).detach()

def image_for(net): return torch.randn(2, 3, *net.patch_embed.img_size)


@pytest.mark.parametrize('fused', [True, False, 'mixed'])
@pytest.mark.parametrize('name', NETS)
def test_attention_is_the_explicit_softmax(name, fused):
    torch.manual_seed(0)
    net = NETS[name](); x = image_for(net)
    with torch.no_grad(): [b.attn.qkv.weight.mul_(8) for b in net.blocks]         # far from uniform
    for i, b in enumerate(net.blocks): b.attn.fused_attn = bool(i % 2) if fused == 'mixed' else fused
    A = D.attention_maps(net, x)
    n, (gh, gw) = D.token_layout(net)
    assert A.shape == (2, len(net.blocks), net.blocks[0].attn.num_heads, n + gh*gw, n + gh*gw)
    torch.testing.assert_close(A, explicit(net, x), atol=1e-5, rtol=0)
    assert [b.attn.fused_attn for b in net.blocks] == [bool(i % 2) if fused == 'mixed' else fused for i in range(len(net.blocks))]


def test_attention_maps_leave_the_model_as_it_was_also_after_an_error():
    net = vit(drop_rate=.1, attn_drop_rate=.5).train(); net.blocks[1].eval()
    for b, f in zip(net.blocks, (True, False)): b.attn.fused_attn = f
    state = lambda: ([m.training for m in net.modules()], [b.attn.fused_attn for b in net.blocks], sum(len(m._forward_pre_hooks) for m in net.modules()))
    before = state()
    torch.testing.assert_close(D.attention_maps(net, image_for(net)).sum(-1), torch.ones(2, 2, 3, 17))      # no dropout in the maps
    assert state() == before
    boom = net.norm.register_forward_hook(lambda *_: 1/0)
    with pytest.raises(ZeroDivisionError): D.attention_maps(net, image_for(net))
    boom.remove()
    assert state() == before


def test_models_without_one_map_are_refused():
    with pytest.raises(TypeError, match='attention maps exist for'): D.attention_maps(timm.create_model('resnet10t', num_classes=3), torch.randn(1, 3, 32, 32))
    with pytest.raises(TypeError, match='within windows'): D.attention_maps(timm.create_model('swin_tiny_patch4_window7_224', depths=(1, 1), num_classes=3), torch.randn(1, 3, 224, 224))


def test_distance_ignores_prefix_tokens_and_says_what_they_took():
    n, grid = 3, (4, 5); N = n + 20
    A = torch.full((1, 1, 1, N, N), .02/20); A[..., :n] = .98/3                     # nearly all attention on the three tokens
    assert D.mean_attention_distance(A, n, grid).item() == pytest.approx(D.uniform_distance(grid))
    assert D.mean_attention_distance(A, n, grid, renormalise=False).item() == pytest.approx(.02*D.uniform_distance(grid), rel=1e-5)
    assert D.prefix_mass(A, n).item() == pytest.approx(.98) and D.mean_attention_distance(A, n, grid, patch=16).item() == pytest.approx(16*D.uniform_distance(grid))


def test_rollout_of_one_direction_only():
    A = torch.eye(3).repeat(1, 2, 1, 1, 1); A[0, 0, 0] = torch.tensor([[0., 1, 0], [0, 1, 0], [0, 0, 1]])   # layer 0: token 0 looks at 1
    A[0, 1, 0] = torch.tensor([[1., 0, 0], [0, 1, 0], [1, 0, 0]])                                           # layer 1: token 2 looks at 0
    torch.testing.assert_close(D.rollout(A)[0], torch.tensor([[.5, .5, 0], [0, 1, 0], [.25, .25, .5]]))    # 2 sees 1 through 0


# -- saliency --------------------------------------------------------------------------------------------------------------

class Conv(nn.Module):
    def __init__(self):
        super().__init__(); self.a, self.b, self.act, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(inplace=True), nn.Linear(8, 4)
    def forward(self, x): return self.head(self.act(self.b(self.a(x).relu())).mean((2, 3)))


def test_grad_cam_is_the_textbooks_and_leaves_no_gradient():
    torch.manual_seed(1); net, x = Conv(), torch.randn(3, 3, 16, 16)
    cam = D.grad_cam(net, x, layer='b')
    assert all(p.grad is None for p in net.parameters()) and not any(len(m._forward_hooks) for m in net.modules())
    act = net.b(net.a(x).relu()); z = net.head(act.relu().mean((2, 3)))
    act.retain_grad(); z.max(1).values.sum().backward()
    want = (act.grad.mean((2, 3), keepdim=True)*act).sum(1).relu()
    torch.testing.assert_close(cam, (want/want.amax((1, 2), keepdim=True).clamp_min(1e-12)).detach())


def test_grad_cam_of_a_frozen_network():
    net = Conv().requires_grad_(False)
    with torch.inference_mode(False): assert D.grad_cam(net, torch.randn(1, 3, 16, 16)).shape == (1, 4, 4)


# -- does a map tell anything? ---------------------------------------------------------------------------------------------

def test_percentile_by_hand():
    corner = np.eye(4).reshape(4, 2, 2)                            # four pictures, the object in another corner of each
    maps = np.stack([corner, np.repeat(corner[:1], 4, 0), corner[::-1], np.ones((4, 2, 2))], 1)     # finds it | stares | mirrored | flat
    got = D.map_percentile(maps, corner)
    assert got[:, 0].tolist() == [100]*4 and got[:, 1].tolist() == [50]*4 and got[:, 3].tolist() == [50]*4
    # mirrored: picture 0 has the map of corner 3; of the rivals (corners 2, 1, 0) two fit as badly and one fits: (0 + 2/2)/3
    np.testing.assert_allclose(got[:, 2], [100/3]*4)
    assert D.map_fit(corner[0], corner[1]) == pytest.approx(-1/3)

def test_percentile_among_given_rivals():
    goal = np.array([[[4., 0], [0, 0]]]); own = np.array([[[2., 1], [1, 0]]])
    rivals = np.array([[[[0., 1], [0, 0]]], [[[9, 0], [0, 0]]], [[[2, 1], [1, 0]]], [[[0, 0], [0, 1]]]])     # worse, better, equal, worse
    assert D.map_percentile(own, goal, rivals).tolist() == [62.5]

def test_random_maps_are_at_chance():
    r = np.random.default_rng(0); got = D.map_percentile(r.random((200, 5, 4, 4)), r.random((200, 4, 4)))
    assert got.shape == (200, 5) and abs(got.mean() - 50) < 3

def test_token_maps_are_the_rows_of_the_prefix_tokens():
    A = torch.rand(2, 3, 2, 11, 11).softmax(-1); maps = D.token_maps(A, 2, (3, 3))
    assert maps.shape == (2, 3, 2, 4, 3, 3)
    for t, h in ((0, 1), (1, 0)):
        row = A[1, 2, h, t, 2:]; np.testing.assert_allclose(maps[1, 2, t, h].ravel(), row/row.mean(), rtol=1e-4)
    row = A[1, 2, :, 1, 2:].mean(0); np.testing.assert_allclose(maps[1, 2, 1, 2].ravel(), row/row.mean(), rtol=1e-4)
    row = D.rollout(A[:, :2])[0, 0, 2:]; np.testing.assert_allclose(maps[0, 1, 0, 3].ravel(), row/row.mean(), rtol=1e-4)
    with pytest.raises(ValueError, match='11 tokens are not 3 prefix tokens'): D.token_maps(A, 3, (3, 3))

def test_shuffled_weights_are_the_same_numbers_elsewhere():
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)); before = [p.clone() for p in net.parameters()]
    other = D.shuffled(net, 3)
    for p, q, b in zip(net.parameters(), other.parameters(), before):
        assert torch.equal(p, b) and torch.equal(p.flatten().sort().values, q.flatten().sort().values)
    assert not torch.equal(net[0].weight, other[0].weight) and torch.equal(D.shuffled(net, 3)[0].weight, other[0].weight)

def test_every_kind_of_model_gives_what_it_has():
    from libkd.data import Samples
    from libkd.teachers import as_teacher, model_for
    from libkd.views import image_dls
    imgs = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), dtype=np.uint8)
    dls = image_dls(Samples.from_arrays(imgs, np.arange(40) % 4), bs=8, device='cpu')
    make = lambda n: model_for(n, dls)
    teachers = {n: as_teacher(make(m), dls, name=n) for n, m in dict(a='resnet_mini', b='rednet_mini', c='vit_nano').items()}
    got = D.read_maps(make('civt_nano'), dls, rows=[5, 2], teachers=teachers, others=3, shuffles=2)
    n, L, T, H2 = got.maps.shape[:4]
    assert got.labels == ['5', '2'] and got.tokens == ('cls', 'conv', 'inv') and got.guides == dict(conv='a', inv='b') and got.rivals == (4, 2)
    assert got.percentiles.shape == (2, n, L, T, H2) and np.isfinite(got.percentiles).all() and list(got.saliency) == ['a', 'b', 'c']
    assert [D.saliency_kind(t) for t in teachers.values()] == ['Grad-CAM', 'kernel energy', 'attention rollout']
    valid = [np.asarray(s.source) for s in dls.samples.valid]; assert np.abs(got.imgs[0].astype(int) - valid[5]).max() <= 1
    plain = D.read_maps(make('vit_nano'), dls, rows=1, others=2, shuffles=0)
    assert plain.tokens == ('cls',) and plain.targets == ('the edges of the picture',) and np.isnan(plain.percentiles[1]).all()
    cnn = D.read_maps(make('resnet_mini'), dls, rows=1, others=2, teachers=teachers)
    assert cnn.attn is None and list(cnn.saliency) == ['student', 'a', 'b', 'c'] and 'attention maps exist for' in cnn.notes[0]
    mlp = D.read_maps(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), dls, rows=1, others=2)
    assert not mlp.saliency and any('no convolution' in n for n in mlp.notes)


# -- the scoreboard --------------------------------------------------------------------------------------------------------

class FakeTeacher:
    "What a teacher looks like from here."
    name = 'fake'
    def __init__(self, model): self.model, self.stats = model.eval(), []
    def logits(self, x, stats=None, amp=False): self.stats.append(stats); return self.model(x)

class Odd(nn.Module):
    "Answers differently in training mode, so that forgetting eval() shows."
    def __init__(self): super().__init__(); self.head = nn.Linear(12, 3); self.drop = nn.Dropout(.9)
    def forward(self, x): return self.head(self.drop(x.flatten(1)))

@pytest.fixture
def setup():
    torch.manual_seed(0)
    x, y = torch.randn(50, 3, 2, 2), torch.randint(0, 3, (50,))
    dls = DataLoaders.from_dsets(list(zip(x, y)), list(zip(x, y)), bs=16, device='cpu')
    return x, y, Learner(dls, Odd(), CrossEntropyLossFlat()), FakeTeacher(Odd())


def test_predictions_are_clean_in_order_and_restore_the_mode(setup):
    x, y, learn, teacher = setup; learn.model.train()
    preds, got = D.predictions(dict(s=learn, t=teacher, m=learn.model))
    assert got.tolist() == y.tolist() and learn.model.training and learn.model.drop.training
    with torch.no_grad(): np.testing.assert_allclose(preds['s'], learn.model.head(x.flatten(1)), atol=1e-6)
    np.testing.assert_array_equal(preds['s'], preds['m'])
    assert teacher.stats[0] == ((0.,)*3, (1.,)*3)                  # these batches are not normalised, and the teacher is told


def test_every_part_is_seen_clean_and_in_its_order():
    from libkd.data import Samples
    from libkd.views import image_dls
    imgs = np.random.default_rng(0).integers(0, 255, (60, 8, 8, 3), dtype=np.uint8)
    dls = image_dls(Samples.from_arrays(imgs, np.arange(60) % 3).split(valid=.2, test=.2), bs=8, device='cpu')
    for part in ('train', 'valid', 'test'):                        # training images without their augmentation
        samples = getattr(dls.samples, part)
        assert np.abs(D.clean_images(dls, part).astype(int) - np.stack([s.source for s in samples])).max() <= 1
        assert D.predictions([nn.Sequential(nn.Flatten(), nn.Linear(192, 3))], dls, part)[1].tolist() == samples.labels.tolist()
    with pytest.raises(ValueError, match='no test part'): D.clean_dl(image_dls(Samples.from_arrays(imgs, np.arange(60) % 3), device='cpu'), 'test')


def test_scoreboard_has_the_teachers_mean_and_numbers_equal_names(setup):
    x, y, learn, teacher = setup
    board = D.scoreboard([teacher, FakeTeacher(Odd()), learn], timing=False)
    assert list(board.index) == ['fake', 'fake (2)', 'Odd', 'mean of the teachers'] and 'ms/image' not in board
    p = [D.soften(z) for z in D.predictions([teacher, learn])[0].values()]
    assert board.loc['Odd', 'accuracy'] == pytest.approx((p[1].argmax(1) == y.numpy()).mean())
    assert board.loc['Odd', 'MACs'] == 36 and board.loc['Odd', 'params'] == 39 and 'not a verdict' in board._repr_html_()
    assert D.scoreboard([teacher, learn], timing=False).index.tolist() == ['fake', 'Odd']


def test_the_scoreboard_says_which_teacher_does_not_know_every_class(setup):
    x, y, learn, teacher = setup
    class Partial(FakeTeacher):
        def logits(self, x, **kw): return super().logits(x).index_fill(1, torch.tensor(2), -torch.inf)
    board = D.scoreboard({'part': Partial(Odd()), 'fake': teacher, 'learn': learn}, timing=False)
    assert board.loc['part', 'NLL'] == np.inf and np.isfinite(board.drop(index='part').NLL).all() and np.isfinite(board.ECE).all()
    assert 'part knows 2 of 3 classes' in board.attrs['note'] and 'NLL is infinite' in board._repr_html_()
    assert 'classes' not in D.scoreboard([teacher, learn], timing=False).attrs['note']


def test_macs_are_the_published_ones():
    x = torch.randn(1, 3, 224, 224)
    assert D.macs(timm.create_model('deit_tiny_patch16_224'), x)/1e9 == pytest.approx(1.25, abs=.01)
    assert D.macs(timm.create_model('resnet18'), x)/1e9 == pytest.approx(1.81, abs=.01)


def test_macs_count_the_involution_itself():
    from libkd.involution import Involution2d
    inv = Involution2d(16, 3, group_channels=8, reduction_ratio=2); x = torch.randn(1, 16, 6, 6)
    generate = 36*(16*8 + 8*9*2)                                   # two 1×1 convolutions make the kernels
    assert D.macs(inv, x) == generate + 36*16*9


def test_timing_gives_the_threads_back(setup):
    _, _, learn, _ = setup; threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert D.ms_per_image(learn, torch.randn(8, 3, 2, 2), repeats=3) > 0 and torch.get_num_threads() == 2
    finally: torch.set_num_threads(threads)


# -- what a change does to an answer -----------------------------------------------------------------------------------

def test_changes_of_pictures_by_hand():
    im = np.full((1, 4, 5, 3), .2); im[0, 1, 1] = [1, .5, 0]
    assert np.allclose(D.ground(im), .2)
    moved = D.shift_images(im, 2, -1)
    assert moved[0, 0, 3].tolist() == [1, .5, 0] and np.isclose(moved, .2).sum() == im.size - 3
    assert np.array_equal(D.shift_images(D.shift_images(im, 1, 1), -1, -1), im) and np.allclose(D.shift_images(im, 9), .2)
    shape = D.silhouettes(im)
    assert shape[0, 1, 1].tolist() == [1, .5, 0] and np.isclose(shape, .2).sum() == im.size - 3
    mixed = D.shuffle_patches(np.arange(16.).reshape(1, 4, 4, 1).repeat(3, -1), 2, seed=1)
    blocks = {tuple(mixed[0, r:r+2, c:c+2, 0].ravel()) for r in (0, 2) for c in (0, 2)}
    assert blocks == {(0, 1, 4, 5), (2, 3, 6, 7), (8, 9, 12, 13), (10, 11, 14, 15)}


def test_what_a_change_does_by_hand():
    row = np.zeros((1, 1, 5, 3)); row[0, 0, 2] = 1
    left = lambda x: np.stack([x[:, :, :3].sum((1, 2, 3)), x[:, :, 3:].sum((1, 2, 3))], 1)
    assert D.shift_consistency(left, row, reach=2) == .5 and D.shift_consistency(left, row, reach=1) == .5
    never = lambda x: np.stack([x[:, 0, 2, 0], .5 - 0*x[:, 0, 2, 0]], 1)                # is the middle light?
    assert D.shift_consistency(never, row) == 0.
    light = np.zeros((2, 2, 2, 3)); light[0, :, 0] = 1; light[1] = 1
    total = lambda x: torch.tensor(np.stack([np.full(len(x), 9.), x.sum((1, 2, 3))], 1))
    assert D.patch_shuffle_drop(total, light, [0, 1], 2) == 0.
    assert D.changed_accuracy(total, light, [0, 1], lambda x: 0*x) == .5 and D.changed_accuracy(total, light, [0, -1], lambda x: x) == 1.


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_what_tells_kinds_apart_is_the_area_under_the_roc_curve(a, b):
    from sklearn.metrics import roc_auc_score
    want = roc_auc_score([1]*len(a) + [0]*len(b), a + b)
    assert np.isclose(D.tells_apart(a, b), max(want, 1 - want))


def test_bootstrap_is_the_percentile_interval_of_redrawn_rows():
    "By hand, on the rows of all arrays together"
    rng = np.random.default_rng(1)
    a, b, y = rng.normal(size=(41, 5)), rng.normal(size=(41, 5)), rng.integers(0, 5, 41)
    for measure, args in ((D.accuracy, (a, y)), (D.error_consistency, (a, b, y))):
        draw = np.random.default_rng(0)
        rows = [draw.integers(0, 41, 41) for _ in range(500)]
        values = [measure(*(o[r] for o in args)) for r in rows]
        assert np.allclose(D.bootstrap(measure, *args), np.quantile(values, [.025, .975]), rtol=0, atol=1e-12)
        assert np.allclose(D.bootstrap(measure, *args, level=.5), np.quantile(values, [.25, .75]), rtol=0, atol=1e-12)
    with pytest.raises(ValueError): D.bootstrap(D.accuracy, a[:1], y[:1])
