"""Losses against three foreign oracles: published code (recorded), timm's task (live), and formulas in plain numpy,
differentiated by complex step, so that neither values nor gradients share anything with torch."""
import json
from pathlib import Path
import numpy as np, pytest, torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
import libkd.losses as L
from libkd import UserError
from libkd.cache import top_k

PUBLISHED = json.loads((Path(__file__).parent/'fixtures/published_losses.json').read_text())
rng = np.random.default_rng(7)
S, Tt, Y = rng.normal(size=(6, 5))*1.5, rng.normal(size=(6, 5))*3, rng.integers(0, 5, 6)


def ours(loss, s, t, y=None, **kw):
    "Value and gradient of our loss, in float64"
    z = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    v = L.LOSSES[loss](z, torch.tensor(t, dtype=torch.float64), None if y is None else torch.as_tensor(y), **kw)
    return v.item(), torch.autograd.grad(v, z)[0].numpy()

@pytest.mark.parametrize('case', PUBLISHED['cases'], ids=lambda c: f"{c['loss']}-T{c['arguments']['T']:g}")
def test_published_value_and_gradient(case):
    v, g = ours(case['loss'], *(PUBLISHED[k] for k in ('student', 'teacher', 'target')), **case['arguments'])
    assert v == pytest.approx(case['value'], abs=1e-9)
    np.testing.assert_allclose(g, case['gradient'], atol=1e-9)

# -- the formulas of the papers, row by row in numpy; complex numbers allowed ---------------------------------------------

def softmax(z):
    e = np.exp(z - z.real.max())
    return e/e.sum()

def kd_np(s, t, y, T): return T**2*sum(p*np.log(p/q) for p,q in zip(softmax(t/T), softmax(s/T)))
def hard_np(s, t, y, T): return -np.log(softmax(s)[t.real.argmax()])
def dkd_np(s, t, y, T, alpha=1., beta=8.):
    p, q = softmax(t/T), softmax(s/T)
    binary = p[y]*np.log(p[y]/q[y]) + (1-p[y])*np.log((1-p[y])/(1-q[y]))
    rest = sum(p[c]/(1-p[y])*np.log((p[c]/(1-p[y]))/(q[c]/(1-q[y]))) for c in range(len(p)) if c != y)
    return T**2*(alpha*binary + beta*rest)
def nkd_np(s, t, y, T, gamma=1.5):
    p, q, pT, qT = softmax(t), softmax(s), softmax(t/T), softmax(s/T)
    rest = sum(pT[c]/(1-pT[y])*np.log(qT[c]/(1-qT[y])) for c in range(len(p)) if c != y)
    return -p[y]*np.log(q[y]) - gamma*T**2*rest
def ofa_np(s, t, y, T, eps=1.):
    p, q = softmax(t/T), softmax(s/T)
    return -sum(((p[c] + (c == y))**eps - (c == y))*np.log(q[c]) for c in range(len(p)))
def rho(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a*b).sum()/(np.sqrt((a*a).sum())*np.sqrt((b*b).sum()))
def dist_np(S, T_, Y, T, beta=1., gamma=1.):
    P, Q = np.stack([softmax(z/T) for z in T_]), np.stack([softmax(z/T) for z in S])
    rows, cols = [1 - rho(p, q) for p,q in zip(P, Q)], [1 - rho(p, q) for p,q in zip(P.T, Q.T)]
    return T**2*(beta*np.mean(rows) + gamma*np.mean(cols))
def by_row(f): return lambda S, T_, Y, T, **kw: np.mean([f(s, t, y, T, **kw) for s,t,y in zip(S, T_, Y)])

FORMULAS = dict(kd=by_row(kd_np), hard=by_row(hard_np), dkd=by_row(dkd_np), nkd=by_row(nkd_np), ofa=by_row(ofa_np), dist=dist_np)

def complex_step(f, S):
    "Gradient of a real analytic function: Im f(x + ih)/h, without any cancellation"
    g, h = np.zeros_like(S), 1e-30
    for i in np.ndindex(*S.shape):
        z = S.astype(complex); z[i] += 1j*h
        g[i] = f(z).imag/h
    return g

@pytest.mark.parametrize('loss,T', [(n, T) for n in FORMULAS for T in (1., .5, 4.) if n != 'hard' or T == 1])   # an argmax has no temperature
def test_formula_and_its_complex_step_gradient(loss, T):
    f = lambda z: FORMULAS[loss](z, Tt, Y, T)
    v, g = ours(loss, S, Tt, Y, T=T)
    tol = 1e-4 if loss == 'dist' else 1e-9   # 1e-8 in DIST's denominator is the authors' code, not the paper's formula
    assert v == pytest.approx(f(S.astype(complex)).real, abs=tol)
    np.testing.assert_allclose(g, complex_step(f, S), atol=tol)

@pytest.mark.parametrize('T', [1., 3.])
def test_kd_equals_timms_task(T):
    from timm.task import LogitDistillationTask
    net = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 7))
    torch.manual_seed(0)
    student, teacher, x, y = net(), net(), torch.randn(5, 3, 2, 2), torch.arange(5)
    for m in (student, teacher): m.num_classes, m.in_chans, m.pretrained_cfg = 7, 3, dict(mean=(0., 0., 0.), std=(1., 1., 1.))
    task = LogitDistillationTask(student, teacher, criterion=torch.nn.CrossEntropyLoss(), temperature=T, verbose=False)
    assert L.kd_loss(student(x), teacher(x), T=T).item() == pytest.approx(task(x, y)['kd_loss'].item(), abs=1e-6)

@given(st.integers(2, 40), st.integers(1, 9), st.floats(.3, 20), st.integers(0, 999))
def test_kd_gradient_has_its_closed_form(C, B, T, seed):
    g = torch.Generator().manual_seed(seed)
    s, t = torch.randn(B, C, generator=g, dtype=torch.float64, requires_grad=True), torch.randn(B, C, generator=g, dtype=torch.float64)*5
    grad, = torch.autograd.grad(L.kd_loss(s, t, T=T), s)
    torch.testing.assert_close(grad, T/B*((s/T).softmax(-1) - (t/T).softmax(-1)).detach())

# -- what all of them promise -------------------------------------------------------------------------------------------

def tensors(B=6, C=5, dtype=torch.float32): return torch.tensor(S, dtype=dtype), torch.tensor(Tt, dtype=dtype), torch.tensor(Y)
def separable(name): return {'gamma': 0.} if name == 'dist' else {}

@pytest.mark.parametrize('name', L.LOSSES)
def test_none_is_one_number_a_sample_and_its_mean_is_the_loss(name):
    s, t, y = tensors()
    each = L.LOSSES[name](s, t, y, reduction='none', **separable(name))
    assert each.shape == (6,)
    torch.testing.assert_close(each.mean(), L.LOSSES[name](s, t, y, **separable(name)))
    alone = torch.cat([L.LOSSES[name](s[i:i+1], t[i:i+1], y[i:i+1], reduction='none', **separable(name)) for i in range(6)])
    torch.testing.assert_close(each, alone)

@pytest.mark.parametrize('name', L.LOSSES)
def test_no_gradient_reaches_the_teacher(name):
    s, t, y = tensors()
    s.requires_grad_(); t.requires_grad_()
    L.LOSSES[name](s, t, y).backward()
    assert s.grad.abs().sum() > 0 and t.grad is None

@pytest.mark.parametrize('name', L.LOSSES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    s, t, y = tensors()
    half = L.LOSSES[name](s.to(dtype), t.to(dtype), y)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, L.LOSSES[name](s.to(dtype).float(), t.to(dtype).float(), y))

@pytest.mark.parametrize('name', L.LOSSES)
def test_extreme_logits_stay_finite(name):
    s = torch.tensor([[1e4, -1e4, 0.], [0., 50., -1e4]], requires_grad=True)
    v = L.LOSSES[name](s, s.detach().flip(1), torch.tensor([0, 1]))
    assert torch.isfinite(v) and torch.isfinite(torch.autograd.grad(v, s)[0]).all()

@pytest.mark.parametrize('name', L.LOSSES)
def test_classes_that_the_teacher_does_not_know_get_no_gradient(name):
    s, t, y = tensors()
    t[:, 2], y, known = -torch.inf, torch.where(y == 2, 3, y), [0, 1, 3, 4]
    s.requires_grad_()
    each = lambda s, t, y: L.LOSSES[name](s, t, y, reduction='none', **separable(name))
    grad, = torch.autograd.grad(each(s, t, y).sum(), s)
    assert grad.isfinite().all() and not grad[:, 2].any() and grad.any()
    torch.testing.assert_close(each(s, t, y), each(s[:, known], t[:, known], y - (y > 2).long()))
    torch.testing.assert_close(L.LOSSES[name](s, t, y), L.LOSSES[name](s[:, known], t[:, known], y - (y > 2).long()))
    unknown = each(s, t, torch.full((6,), 2))                     # labels that the teacher does not know
    assert unknown.isfinite().all() and torch.autograd.grad(unknown.sum(), s)[0].isfinite().all()

@pytest.mark.parametrize('name', sorted({*L.LOSSES} - {'hard'}))
@pytest.mark.parametrize('y', [0, 2])
def test_a_teacher_that_knows_one_class_teaches_nothing(name, y):
    s, t = tensors()[0].requires_grad_(), torch.full((6, 5), -torch.inf)
    t[:, 0] = 1.
    loss = L.LOSSES[name](s, t, torch.full((6,), y))
    assert (loss == 0 or name == 'dist') and torch.autograd.grad(loss, s)[0].eq(0).all()    # DIST: a constant column is like none

BAD = dict(zero_T=(dict(T=0.), 'above 0'), negative_T=(dict(T=-1.), 'above 0'), nan_T=(dict(T=float('nan')), 'above 0'), endless_T=(dict(T=float('inf')), 'finite'),
           reduction=(dict(reduction='sum'), "reduction='sum'"), classes=(dict(teacher=torch.zeros(6, 4)), 'class_map'),
           nan_teacher=(dict(teacher=torch.full((6, 5), torch.nan)), 'NaN'), nan_student=(dict(student=torch.full((6, 5), torch.nan)), 'learning rate'),
           text_T=(dict(T='2'), "T='2'"), inf_teacher=(dict(teacher=torch.tensor([[0., 1., torch.inf, 0., 0.]]*6)), 'NaN or .∞.*verify'),
           silent_teacher=(dict(teacher=torch.full((6, 5), -torch.inf)), 'nothing but'), integers=(dict(teacher=torch.zeros(6, 5, dtype=torch.long)), 'before softmax'), flat=(dict(student=torch.zeros(6)), r'\(B, C\)'))

@pytest.mark.parametrize('name', L.LOSSES)
@pytest.mark.parametrize('bad', BAD)
def test_bad_arguments_are_named(name, bad):
    s, t, y = tensors()
    change, words = BAD[bad]
    if name == 'hard' and 'T' in change: words = 'no temperature'
    args = {'student': s, 'teacher': t, 'target': y, **change}
    with pytest.raises((ValueError, TypeError), match=words): L.LOSSES[name](**args)

@pytest.mark.parametrize('name', L.NEEDS_TARGET)
@pytest.mark.parametrize('target,words', [(None, 'give target='), (torch.tensor([0, 1, 2, 3, 4, -1]), 'unlabelled'), (torch.tensor([0, 1, 2, 3, 4, 5]), '0 to 4'),
                                          (torch.rand(6, 5), 'argmax'), (torch.tensor([1, 2]), r'\(6,\)')])
def test_a_loss_that_needs_a_target_says_so(name, target, words):
    s, t, _ = tensors()
    with pytest.raises(ValueError, match=words): L.LOSSES[name](s, t, target)

def test_the_others_need_none():
    s, t, y = tensors()
    for n in set(L.LOSSES) - set(L.NEEDS_TARGET): assert L.LOSSES[n](s, t) == L.LOSSES[n](s, t, torch.full((6,), -1))

def test_dist_refuses_what_has_no_value_for_one_sample():
    s, t, _ = tensors()
    with pytest.raises(ValueError, match='samples of a batch'): L.dist_loss(s, t, reduction='none')
    with pytest.raises(ValueError, match='two samples'): L.dist_loss(s[:1], t[:1])

@pytest.mark.parametrize('name', L.LOSSES)
def test_under_compile_without_graph_break(name):
    s, t, y = tensors()
    torch.testing.assert_close(torch.compile(L.LOSSES[name], backend='eager', fullgraph=True)(s, t, y), L.LOSSES[name](s, t, y))

# -- top-k targets ------------------------------------------------------------------------------------------------------

@given(st.integers(3, 30), st.floats(.5, 8), st.integers(0, 999), st.data())
def test_top_k_is_the_divergence_of_lumped_distributions(C, T, seed, data):
    k, g = data.draw(st.integers(1, C-1)), torch.Generator().manual_seed(seed)
    s, t = torch.randn(4, C, generator=g, dtype=torch.float64), torch.randn(4, C, generator=g, dtype=torch.float64)*3
    want = []
    for a,b in zip(s/T, t/T):
        p, q, kept = b.softmax(0), a.softmax(0), b.topk(k)[1]
        p, q = (torch.cat([o[kept], (o.sum() - o[kept].sum()).view(1)]) for o in (p, q))
        want.append(T**2*(p*(p/q).log()).sum())
    got = L.kd_loss(s, top_k(t, k, T=T), T=T, reduction='none')
    torch.testing.assert_close(got.double(), torch.stack(want), atol=2e-3, rtol=2e-4)
    assert (got.double() <= L.kd_loss(s, t, T=T, reduction='none') + 1e-3).all()

def test_top_k_gradient_is_that_of_the_lumped_student():
    s, t = torch.tensor(S).requires_grad_(), torch.tensor(Tt)
    lumped, tk = torch.zeros(6, 5, dtype=torch.float64), top_k(t, 2)
    p, q = t.softmax(-1), s.detach().softmax(-1)
    for i,kept in enumerate(tk.indices):
        rest = [c for c in range(5) if c not in kept.tolist()]
        lumped[i,kept] = q[i,kept] - p[i,kept]
        lumped[i,rest] = q[i,rest]*(1 - p[i,rest].sum()/q[i,rest].sum())
    torch.testing.assert_close(torch.autograd.grad(L.kd_loss(s, tk), s)[0], lumped/6, atol=1e-6, rtol=1e-5)

def test_top_k_keeps_its_temperature_and_classes():
    s, t, _ = tensors()
    tk = top_k(t, 2)
    with pytest.raises(ValueError, match='summed at T=1'): L.kd_loss(s, tk, T=2.)
    with pytest.raises(ValueError, match='5 classes'): L.kd_loss(s, tk._replace(classes=7))
    with pytest.raises(ValueError, match='leave a tail'): top_k(t, 5)
    for T in (0, -1., float('inf')):
        with pytest.raises(UserError, match=f'T={T}: a temperature must be above 0'): top_k(t, 2, T)
        with pytest.raises(UserError, match='a temperature must be above 0'): tk.at(T)
    with pytest.raises(TypeError, match='dense'): L.nkd_loss(s, tk, tensors()[2])
    assert (tk.at(4.).tail >= top_k(t, 2, T=4.).tail - 1e-5).all()      # an even tail has the largest mass at a higher T
    torch.testing.assert_close(tk.dense().logsumexp(-1), t.logsumexp(-1))   # and the exact mass at its own
    assert L.hard_kd_loss(s, tk) == L.hard_kd_loss(s, t)

def test_top_k_in_half_precision_as_a_cache_stores_it():
    s, t, _ = tensors()
    tk = top_k(t, 2)
    half = tk._replace(values=tk.values.half(), tail=tk.tail.half(), indices=tk.indices.to(torch.int16))
    torch.testing.assert_close(L.kd_loss(s, half), L.kd_loss(s, tk), atol=5e-3, rtol=5e-3)

# -- several teachers ---------------------------------------------------------------------------------------------------

@given(st.integers(2, 5), st.integers(0, 999), st.floats(.5, 5))
def test_several_teachers_on_one_head_are_their_mean(K, seed, T):
    g = torch.Generator().manual_seed(seed)
    teachers, w = torch.randn(K, 3, 6, generator=g, dtype=torch.float64)*3, torch.rand(K, generator=g, dtype=torch.float64) + .1
    w /= w.sum()
    q = torch.randn(3, 6, generator=g, dtype=torch.float64, requires_grad=True)
    mean = (w.view(-1, 1, 1)*(teachers/T).softmax(-1)).sum(0).log()*T
    each = [L.kd_loss(q, t, T=T, reduction='none') for t in teachers]
    js = L.combine_losses([L.kd_loss(mean, t, T=T, reduction='none') for t in teachers], w)
    total = L.combine_losses(each, w)
    torch.testing.assert_close(total, L.kd_loss(q, mean, T=T, reduction='none') + js)
    torch.testing.assert_close(torch.autograd.grad(total.sum(), q)[0], torch.autograd.grad(L.kd_loss(q, mean, T=T, reduction='none').sum(), q)[0])

def test_combining_and_its_errors():
    losses = torch.tensor([[1., 2.], [3., 6.]])
    torch.testing.assert_close(L.combine_losses(losses, [1, 3]), torch.tensor([2.5, 5.]))
    torch.testing.assert_close(L.combine_losses(losses, torch.tensor([[1., 0.], [0., 1.]])), torch.tensor([1., 6.]))
    for w in ([1], [-1, 2], [0, 0]):
        with pytest.raises(ValueError, match='weights'): L.combine_losses(losses, w)
    with pytest.raises(ValueError, match="reduction='none'"): L.combine_losses([torch.tensor(1.), torch.tensor(2.)])

def test_confidence_weights_are_those_of_the_published_formula():
    t, y = torch.tensor(np.stack([Tt, Tt[::-1].copy(), S])), torch.tensor(Y)
    ce = np.array([[-np.log(softmax(z[i])[Y[i]].real) for i in range(6)] for z in t.numpy()])
    e = np.exp(ce - ce.max(0))
    np.testing.assert_allclose(L.confidence_weights(t, y), (1 - e/e.sum(0))/2, rtol=1e-6)
    with pytest.raises(ValueError, match='at least two'): L.confidence_weights(t[:1], y)

def test_drop_easiest_keeps_the_largest():
    z = torch.tensor([1., 5., 2., 4.], requires_grad=True)
    assert L.drop_easiest(z, .5) == 4.5 and L.drop_easiest(z, 0.) == 3.
    assert torch.autograd.grad(L.drop_easiest(z, .5), z)[0].tolist() == [0, .5, 0, .5]
    with pytest.raises(ValueError): L.drop_easiest(z, 1.)

def test_names():
    assert L.get_loss('dkd') is L.dkd_loss and L.get_loss(F.mse_loss) is F.mse_loss
    with pytest.raises(KeyError, match='Did you mean'): L.get_loss('ofaa')


@pytest.mark.parametrize('known, k', [(3, 5), (3, 3), (1, 1), (1, 4), (2, 9), (4, 3)])
@pytest.mark.parametrize('T', [1., 4.])
def test_top_k_of_a_teacher_that_knows_few_classes(known, k, T):
    "Nothing is lost when k covers all that it knows: values and gradients are those of all logits; else they are finite."
    g = torch.Generator().manual_seed(0)
    z = torch.full((6, 10), -torch.inf)
    for row in z: row[torch.randperm(10, generator=g)[:known]] = torch.randn(known, generator=g)
    s = torch.randn(6, 10, generator=g, requires_grad=True)
    few, full = L.kd_loss(s, top_k(z, k, T), T=T), L.kd_loss(s, z, T=T)
    ours, want = (torch.autograd.grad(loss, s)[0] for loss in (few, full))
    assert few.isfinite() and ours.isfinite().all()
    if k >= known: torch.testing.assert_close(few, full); torch.testing.assert_close(ours, want, atol=1e-6, rtol=1e-4)
