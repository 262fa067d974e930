"""What the notebook cannot show well: all shapes and types, foreign weights, compiled and exported modules, memory."""
import math, os, pickle, subprocess, sys, textwrap
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest, timm, torch, torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import nn

import libkd.involution as inv
from libkd import UserError
from libkd.involution import Involution2d, RedNet, involution2d, rednet_filter

torch.set_num_threads(1)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 5e-3}   # relative to the largest value


def by_hand(x, weight, stride):
    "The formula of the paper, one offset after the other, in float64; independent of both paths"
    (B, C, H, W), (G, KK), K = x.shape, weight.shape[1:3], math.isqrt(weight.shape[2])
    x, weight, p = x.double(), weight.double().repeat_interleave(C//G, 1), K//2
    y = x.new_zeros(B, C, *weight.shape[-2:])
    for u in range(y.shape[2]):
        for v in range(y.shape[3]):
            for k in range(KK):
                r, c = u*stride + k//K - p, v*stride + k % K - p
                if 0 <= r < H and 0 <= c < W: y[:, :, u, v] = y[:, :, u, v] + weight[:, :, k, u, v]*x[:, :, r, c]
    return y


@st.composite
def cases(draw):
    K, s, G, Cg = draw(st.sampled_from([1, 3, 5, 7])), draw(st.sampled_from([1, 2, 3])), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    B, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return torch.randn(B, G*Cg, h*s, w*s, generator=gen), torch.randn(B, G, K*K, h, w, generator=gen), s


def close(a, b, dtype):
    assert a.dtype == dtype and a.shape == b.shape
    assert (a.double() - b.double()).abs().max() <= TOLERANCE[dtype] * max(1., b.abs().max().item())


@given(cases(), st.sampled_from(list(TOLERANCE)), st.sampled_from(['lean', 'reference']))
def test_each_path_is_the_formula(case, dtype, backend):
    x, w, s = case[0].to(dtype), case[1].to(dtype), case[2]
    close(involution2d(x, w, s, backend), by_hand(x, w, s), dtype)


@given(cases(), st.sampled_from(list(TOLERANCE)))
def test_gradients_of_the_lean_path_are_those_of_the_formula(case, dtype):
    x, w = (o.to(dtype).requires_grad_() for o in case[:2])
    g = torch.randn(by_hand(x, w, case[2]).shape, dtype=torch.float64)
    expected = torch.autograd.grad(by_hand(x, w, case[2]), (x, w), g)
    got = torch.autograd.grad(involution2d(x, w, case[2], 'lean'), (x, w), g.to(dtype))
    for a, b in zip(got, expected): close(a, b.double(), dtype)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype):
    "Forward and both gradients are float32's, rounded"
    x, w, g = (torch.randn(size).to(dtype) for size in ((2, 16, 8, 8), (2, 1, 49, 8, 8), (2, 16, 8, 8)))
    def run(*inputs):
        x, w, g = (o.detach().requires_grad_() for o in inputs)
        y = involution2d(x, w, backend='lean')
        return y, *torch.autograd.grad(y, (x, w), g)
    for half, full in zip(run(x, w, g), run(x.float(), w.float(), g.float()), strict=True): assert torch.equal(half, full.to(dtype))


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('K', [3, 5, 7])
def test_gradcheck(K, stride):
    x = torch.randn(1, 4, 2, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(1, 2, K*K, 2//stride, 4//stride, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: involution2d(x, w, stride, 'lean'), (x, w))


def test_custom_operator_keeps_the_rules_of_torch():
    x, w = torch.randn(2, 4, 4, 4, requires_grad=True), torch.randn(2, 2, 9, 2, 2, requires_grad=True)
    assert set(torch.library.opcheck(inv._lean, (x, w, 2)).values()) == {'SUCCESS'}


def test_batches_of_many_chunks_and_no_images():
    x, w = torch.randn(5, 16, 128, 128), torch.randn(5, 1, 9, 128, 128)
    assert len(list(inv._chunks(x))) > 1
    close(involution2d(x, w), involution2d(x, w, backend='reference').double(), torch.float32)
    assert involution2d(x[:0], w[:0]).shape == (0, 16, 128, 128)


def test_memory_layout_does_not_matter():
    x, w = torch.randn(2, 32, 8, 8, requires_grad=True), torch.randn(2, 2, 9, 8, 8, requires_grad=True)
    y = involution2d(x, w)
    g = torch.randn_like(y)
    z = involution2d(x.contiguous(memory_format=torch.channels_last), w.transpose(-1, -2).contiguous().transpose(-1, -2))
    other = torch.autograd.grad(z, (x, w), g.contiguous(memory_format=torch.channels_last))
    for a, b in zip((y, *torch.autograd.grad(y, (x, w), g)), (z, *other), strict=True): torch.testing.assert_close(a, b)


def test_a_half_and_a_float_meet_in_float():
    x, w = torch.randn(2, 16, 4, 4), torch.randn(2, 1, 9, 4, 4).bfloat16()
    assert involution2d(x, w).dtype == torch.float32
    layer = Involution2d(16, 3)
    with torch.autocast('cpu', torch.bfloat16): y = layer(x)
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


def test_zero_span_weight_is_a_depthwise_convolution():
    layer = Involution2d(32, 5, stride=2).eval()
    nn.init.zeros_(layer.span.weight)
    taps = layer.span.bias.detach().view(2, 1, 5, 5).repeat_interleave(16, 0)
    x = torch.randn(2, 32, 12, 8)
    with torch.no_grad(): torch.testing.assert_close(layer(x), F.conv2d(x, taps, stride=2, padding=2, groups=32))


def test_commutes_with_translation_away_from_the_border():
    layer, x = Involution2d(16, 3).eval(), torch.randn(1, 16, 12, 12)
    with torch.no_grad(): a, b = layer(x.roll((2, 3), (2, 3))), layer(x).roll((2, 3), (2, 3))
    torch.testing.assert_close(a[..., 4:-2, 5:-2], b[..., 4:-2, 5:-2])


@pytest.mark.parametrize('change, words', [
    (dict(backend='trition'), "Did you mean 'triton'"), (dict(x=torch.ones(2, 7, 8, 8)), '7 channels do not divide'),
    (dict(weight=torch.ones(2, 2, 4, 8, 8)), 'odd kernel'), (dict(weight=torch.ones(2, 2, 9, 8, 4)), r'needs \(2, 2, 9, 8, 8\)'),
    (dict(x=torch.ones(2, 8, 7, 8), stride=2), r'Pad it to 8x8 first, F.pad\(x, \(0, 0, 0, 1\)\)'), (dict(weight=torch.ones(2, 2, 9)), 'needs x of shape')])
def test_refusals_name_the_way_out(change, words):
    args = dict(x=torch.ones(2, 8, 8, 8), weight=torch.ones(2, 2, 9, 8, 8)) | change
    with pytest.raises(ValueError, match=words): involution2d(**args)


def test_the_padding_that_is_advised_helps():
    x = torch.ones(2, 16, 7, 7)
    with pytest.raises(ValueError, match=r'F.pad\(x, \(0, 1, 0, 1\)\)'): Involution2d(16, 3, 2)(x)
    assert Involution2d(16, 3, 2)(F.pad(x, (0, 1, 0, 1))).shape == (2, 16, 4, 4)


@pytest.mark.parametrize('args, words', [((40,), 'such as 48'), ((32, 4), 'use 3 or 5')])
def test_layers_that_cannot_be(args, words):
    with pytest.raises(ValueError, match=words): Involution2d(*args)


# Extra memory of a fresh process, by the system's own account: the lean path must not hold the 49 copies.
PEAK = """
    import resource, sys, torch
    from libkd.involution import involution2d
    torch.set_num_threads(1)
    def peak():        # bytes; Linux hands getrusage's figure down from the process that started this one, and that is a large one
        try: return next(1024*int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))
        except OSError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == 'darwin' else 1024)
    x, w = torch.zeros(16, 64, 32, 32, requires_grad=True), torch.zeros(16, 4, 49, 32, 32, requires_grad=True)
    x.grad, w.grad, seed = torch.zeros_like(x), torch.zeros_like(w), torch.ones(16, 64, 32, 32)
    small = torch.zeros(1, 16, 8, 8, requires_grad=True)
    involution2d(small, torch.zeros(1, 1, 49, 8, 8), backend=sys.argv[1]).sum().backward()
    before = peak()
    involution2d(x, w, backend=sys.argv[1]).backward(seed)
    print((peak() - before)/x.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no getrusage')
def test_the_lean_path_makes_no_copies():
    def peak(backend): return float(subprocess.run([sys.executable, '-c', textwrap.dedent(PEAK), backend], capture_output=True, text=True, check=True).stdout)
    lean = peak('lean')                                # in inputs; the output and both gradients alone are 1 + 1 + 3
    assert lean < 10 and peak('reference') > 10*lean


# -- Triton, without a GPU: its interpreter gives numbers, its compiler gives machine code ---------------------------------

INTERPRETED = """
    import sys, torch
    from libkd import involution
    from libkd.involution import involution2d
    dtype = getattr(torch, sys.argv[1])
    # K, stride, G, C/G, H', W': a row more than a tile, a group of 20 in a block of 32, wider than the lanes
    shapes = (3, 1, 2, 4, 5, 3), (3, 2, 1, 20, 3, 3), (5, 3, 1, 2, 2, 3), (7, 1, 1, 2, 5, 4), (1, 2, 1, 2, 3, 70), (5, 1, 1, 3, 3, 4), (9, 1, 1, 1, 2, 3)
    for K, s, G, Cg, h, w_ in shapes if dtype == torch.float32 else shapes[:2]:
        torch.manual_seed(0)
        x, w, g = (torch.randn(o).to(dtype) for o in ((3, G*Cg, h*s, w_*s), (3, G, K*K, h, w_), (3, G*Cg, h, w_)))
        def run(backend, x, w, g):
            x, w = x.requires_grad_(), w.requires_grad_()
            y = involution2d(x, w, s, backend)
            return y, *torch.autograd.grad(y, (x, w), g)
        involution._MUCH = 2**17 if s == 2 or K == 5 else 0      # both gradients in one launch, or in two
        last = x.contiguous(memory_format=torch.channels_last)
        assert run('triton', last, w, g)[0].is_contiguous(memory_format=torch.channels_last)
        for got, expected in zip(run('triton', x, w, g), run('reference', x.double(), w.double(), g.double()), strict=True):
            assert got.dtype == dtype
            torch.testing.assert_close(got, expected.to(dtype), rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', 'float64'])
def test_triton_kernels_are_the_formula(dtype):
    pytest.importorskip('triton')
    env = os.environ | {'TRITON_INTERPRET': '1'}
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(INTERPRETED), dtype], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def compiled(kernel, rows, capability, s, Wo, **which):
    "The kernel as a GPU would run it, for K 7 and maps of `Wo` columns, compiled without one"
    import triton
    from triton.backends.compiler import GPUTarget
    tile = inv._tile(16, Wo, rows)
    warps, tensors = tile.pop('num_warps'), 5 if which else 3
    fixed = dict(s=s, K=7, Cg=16, XP=Wo*Wo*s*s, YP=Wo*Wo, ACC=triton.language.float32) | tile | which
    signature = {o: 'constexpr' if o in fixed else '*bf16' if n < tensors else 'i32' for n, o in enumerate(kernel.arg_names)}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    return triton.compile(source, target=GPUTarget('cuda', capability, 32), options=dict(num_warps=warps))


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:TRITON_DEFAULT_FP_FUSION')
@pytest.mark.parametrize('capability, s, Wo', [(80, 1, 56), (90, 1, 7), (90, 2, 28)])
def test_triton_kernels_compile_for_gpus_and_stay_in_registers(capability, s, Wo, tmp_path, monkeypatch):
    "Neighbouring lanes read neighbouring columns, and nothing goes through shared memory to change its layout"
    pytest.importorskip('triton')
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    for kernel, rows, which in ((inv._forward_kernel, 4, {}), (inv._backward_kernel, 2, dict(GX=1, GW=1)), (inv._backward_kernel, 4, dict(GX=1, GW=0))):
        made = compiled(kernel, rows, capability, s, Wo, **which)
        assert made.asm['cubin'] and made.metadata.shared == 0 and 'convert_layout' not in made.asm['ttgir']
        assert 'threadsPerWarp = [1, 1, 32]' in made.asm['ttgir']


LAUNCHES = """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from libkd import involution
    from libkd.involution import involution2d
    launches, ops = [], []
    launch = involution._launch
    def counted(kernel, *args, **kw): launches.append(kernel.__name__); launch(kernel, *args, **kw)
    involution._launch = counted
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            ops.append(str(f)); return f(*args, **kwargs or {})
    x, w = torch.randn(1, 2, 3, 3, requires_grad=True), torch.randn(1, 1, 1, 3, 3, requires_grad=True)
    def loss(backend): return involution2d(x, w, backend=backend).square().sum()
    with Seen(): torch.autograd.grad(loss('triton'), (x, w))
    assert launches == ['_forward_kernel', '_backward_kernel'] and not any('libkd' in o for o in ops), (launches, ops)
    def twice(backend):
        gx, gw = torch.autograd.grad(loss(backend), (x, w), create_graph=True)
        return torch.autograd.grad(gx.square().sum() + gw.pow(3).sum(), (x, w))
    for a, b in zip(twice('triton'), twice('reference'), strict=True): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    y = involution2d(x, w, backend='triton')
    op = torch.ops.libkd.involution2d_triton(x, w, 1)
    assert torch.equal(y, op)
    for a, b in zip(*(torch.autograd.grad(o.sum(), (x, w)) for o in (y, op)), strict=True): assert torch.equal(a, b)
"""


@pytest.mark.slow
def test_a_triton_step_is_two_launches_past_the_dispatcher():
    "One for the output, one for both gradients; `torch.compile`'s operator gives the same numbers; gradients have gradients"
    pytest.importorskip('triton')
    env = os.environ | {'TRITON_INTERPRET': '1'}
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(LAUNCHES)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_triton_without_a_gpu_says_so():
    pytest.importorskip('triton')
    with pytest.raises(ValueError, match="needs x on a GPU"): involution2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 9, 3, 3), backend='triton')


# -- numba on a CPU --------------------------------------------------------------------------------------------------------

needs_numba = pytest.mark.skipif(not find_spec('numba'), reason="numba is not installed: pip install 'libkd[fast]'")
SHAPES = [(2, 2, 5, 5, 7, 7, 1), (2, 1, 16, 16, 16, 7, 1), (1, 2, 3, 3, 2, 3, 2), (2, 1, 4, 8, 24, 5, 2), (1, 1, 1, 1, 1, 1, 1), (2, 1, 6, 9, 19, 9, 1),
          (1, 1, 16, 4, 4, 3, 2), (1, 2, 4, 2, 5, 1, 2), (1, 1, 2, 3, 3, 7, 3), (1, 1, 2, 40, 17, 3, 1), (3, 2, 7, 6, 21, 9, 2)]   # B, G, C/G, H', W', K, stride


def problem(B, G, Cg, h, w, K, s):
    gen = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=gen) for size in ((B, G*Cg, h*s, w*s), (B, G, K*K, h, w), (B, G*Cg, h, w))]


def all_three(x, w, g, s, backend='fast'):
    "Output and both gradients"
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = involution2d(x, w, s, backend)
    return y.detach(), *torch.autograd.grad(y, (x, w), g)


@pytest.mark.parametrize('backend', ['lean', pytest.param('fast', marks=needs_numba)])
@pytest.mark.parametrize('K, stride', [(3, 1), (3, 2), (5, 1)])
def test_gradients_have_gradients(backend, K, stride):
    "A penalty on gradients, by each path as by the unfold"
    x, w = (o.requires_grad_() for o in problem(2, 2, 3, 4, 4, K, stride)[:2])
    def penalty(backend):
        gx, gw = torch.autograd.grad(involution2d(x, w, stride, backend).square().sum(), (x, w), create_graph=True)
        return torch.autograd.grad(gx.square().sum() + gw.pow(3).sum(), (x, w))
    for a, b in zip(penalty(backend), penalty('reference'), strict=True): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def near(got, expected, tolerance=1e-5):
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape and (a.double() - b).abs().max() <= tolerance*b.abs().max().clamp(min=1)


@pytest.mark.slow
@needs_numba
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_fast_path_is_the_reference_in_float64(shape):
    "Odd widths, groups that four does not divide, all strides and kernels"
    x, w, g = problem(*shape)
    near(all_three(x, w, g, shape[-1]), all_three(x.double(), w.double(), g.double(), shape[-1], 'reference'))


@needs_numba
@pytest.mark.parametrize('shape', [(2, 2, 4, 8, 8, 3, 1), (2, 1, 8, 4, 6, 5, 2)], ids=str)
def test_fast_path_takes_any_memory_layout(shape):
    x, w, g = problem(*shape)
    last = [o.contiguous(memory_format=torch.channels_last) for o in (x, g)]
    every = torch.stack([x, x], -1)[..., 0], torch.stack([w, w], -1)[..., 0], torch.stack([g, g], -1)[..., 0]
    assert not any(o.is_contiguous() for o in (*last, *every))
    plain = all_three(x, w, g, shape[-1])
    for other in (all_three(last[0], w, last[1], shape[-1]), all_three(*every, shape[-1])):
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


@needs_numba
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_fast_path_rounds_once(dtype):
    half = [o.to(dtype) for o in problem(2, 2, 4, 8, 8, 3, 1)]
    for a, b in zip(all_three(*half, 1), all_three(*(o.float() for o in half), 1), strict=True): assert torch.equal(a, b.to(dtype))


@needs_numba
def test_fast_path_is_taken_where_it_can_be():
    "And the lean one, which has the same values, where it cannot"
    x, w, _ = problem(2, 2, 4, 8, 8, 3, 1)
    assert inv._choose('fast', x) is inv._fast and inv._choose('fast', x.bfloat16()) is inv._fast
    assert inv._choose('fast', x.double()) is inv._lean and inv._choose('fast', x.to('meta')) is inv._lean
    assert inv._choose('auto', x) is inv._lean
    with torch.autocast('cpu', torch.bfloat16): assert inv._choose('fast', x) is inv._lean
    seen = []
    torch.func.vmap(lambda a: (seen.append(inv._choose('fast', a)), a)[1])(x)
    assert seen == [inv._lean]


@needs_numba
def test_fast_layer_compiles_and_exports_without_numba():
    layer, x = Involution2d(16, 3, backend='fast').eval(), torch.randn(2, 16, 8, 8)
    seen = []
    def look(graph, inputs): seen.extend(str(n.target) for n in graph.graph.nodes); return graph.forward
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend=look)(x), layer(x), rtol=1e-4, atol=1e-5)
    program = torch.export.export(layer, (x,))
    names = [str(n.target) for n in program.graph.nodes]
    assert any('libkd.involution2d' in n or 'libkd_involution2d' in n for n in seen) and not any('fast' in n for n in seen)
    assert not any('libkd' in n for n in names)


@needs_numba
def test_fast_operator_keeps_the_rules_of_torch():
    x, w = torch.randn(2, 4, 4, 4, requires_grad=True), torch.randn(2, 2, 9, 2, 2, requires_grad=True)
    assert set(torch.library.opcheck(inv._fast, (x, w, 2)).values()) == {'SUCCESS'}


@needs_numba
def test_fast_layer_is_pickled_and_copied():
    layer, x = Involution2d(16, 3, backend='fast').eval(), torch.randn(2, 16, 8, 8)
    y = layer(x)
    again = pickle.loads(pickle.dumps(layer))
    assert again.backend == 'fast' and torch.equal(again(x), y)


@needs_numba
def test_fast_path_in_several_threads_at_once(monkeypatch):
    "Callers side by side, and threads of its own over several chunks: the same bits"
    monkeypatch.setattr(inv, '_chunks', lambda x: [slice(i, i + 1) for i in range(len(x))])
    problems = [problem(4, 2, 4, 8, 8, 3, 1), problem(4, 1, 8, 6, 11, 5, 1), problem(3, 2, 4, 4, 4, 3, 1)]
    alone = [all_three(*p, 1) for p in problems]
    inv._compiled.cache_clear()                        # so that callers compile at once, too
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 3)
    with ThreadPoolExecutor(3) as pool: together = list(pool.map(lambda p: all_three(*p, 1), problems))
    for a, b in zip(alone, together, strict=True): assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


FORKED = """
    import os, signal, torch
    import libkd.involution as inv
    torch.set_num_threads(1)
    x, w = torch.randn(4, 8, 8, 8), torch.randn(4, 1, 9, 8, 8)
    inv._chunks, torch.get_num_threads = (lambda x: [slice(i, i + 1) for i in range(len(x))]), (lambda: 2)
    y = inv.involution2d(x, w, backend='fast')
    child = os.fork()
    if child == 0: signal.alarm(30)                    # a lost thread would be waited for without end
    if child == 0: os._exit(0 if torch.equal(inv.involution2d(x, w, backend='fast'), y) else 1)
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@needs_numba
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')
def test_fast_path_survives_a_fork():
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(FORKED)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_numba_waits_for_its_first_use_and_is_missed_in_words(monkeypatch):
    code = "import sys, libkd.involution as i, torch; i.Involution2d(16)(torch.ones(2, 16, 8, 8)); sys.exit('numba' in sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True)
    monkeypatch.setattr(inv, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'libkd\[fast\]'"): involution2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 9, 3, 3), backend='fast')


# -- a second implementation with the official module names, to read official checkpoints ---------------------------------

class ConvModule(nn.Module):
    "mmcv's names: `conv`, `bn`"
    def __init__(self, i, o, k=1, s=1, bn=True):
        super().__init__()
        self.conv = nn.Conv2d(i, o, k, s, k//2, bias=not bn)
        if bn: self.bn = nn.BatchNorm2d(o)
    def forward(self, x): return self.bn(self.conv(x)).relu() if hasattr(self, 'bn') else self.conv(x)


class OfficialInvolution(nn.Module):
    def __init__(self, c, k, s):
        super().__init__()
        self.s, self.conv1, self.conv2 = s, ConvModule(c, c//4), ConvModule(c//4, k*k*(c//16), bn=False)
    def forward(self, x):
        w = self.conv2(self.conv1(F.avg_pool2d(x, self.s)))
        return by_hand(x, w.unflatten(1, (x.shape[1]//16, -1)), self.s).float()


class OfficialBottleneck(nn.Module):
    def __init__(self, i, o, s):
        super().__init__()
        m = o//4
        self.conv1, self.bn1, self.conv2, self.bn2 = nn.Conv2d(i, m, 1, bias=False), nn.BatchNorm2d(m), OfficialInvolution(m, 7, s), nn.BatchNorm2d(m)
        self.conv3, self.bn3 = nn.Conv2d(m, o, 1, bias=False), nn.BatchNorm2d(o)
        if s > 1 or i != o: self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, s, bias=False), nn.BatchNorm2d(o))
    def forward(self, x):
        y = self.bn3(self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()))
        return (y + (self.downsample(x) if hasattr(self, 'downsample') else x)).relu()


class OfficialRedNet(nn.Module):
    def __init__(self, depths):
        super().__init__()
        self.backbone, self.head, i = nn.Module(), nn.Module(), 64
        b = self.backbone
        b.stem = nn.Sequential(ConvModule(3, 32, 3, 2), OfficialInvolution(32, 3, 1), nn.BatchNorm2d(32), nn.ReLU(), ConvModule(32, 64, 3))
        for n, depth in enumerate(depths):
            o = 256*2**n
            setattr(b, f'layer{n+1}', nn.Sequential(*[OfficialBottleneck(i if k == 0 else o, o, 2 if n and k == 0 else 1) for k in range(depth)]))
            i = o
        self.head.fc = nn.Linear(i, 5)
    def forward(self, x):
        b = self.backbone
        return self.head.fc(b.layer2(b.layer1(F.max_pool2d(b.stem(x), 3, 2, 1))).mean((2, 3)))


@pytest.fixture(scope='module')
def official():
    torch.manual_seed(0)
    model = OfficialRedNet((1, 2)).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t in (m.weight.data, m.running_var): t.uniform_(0.5, 1.5)
            for t in (m.bias.data, m.running_mean): t.normal_(0, 0.1)
    return model


@pytest.mark.parametrize('wrap', [lambda d: d, lambda d: {'state_dict': d}, lambda d: {f'module.{k}': v for k, v in d.items()},
    lambda d: {k.removeprefix('backbone.').removeprefix('head.'): v for k, v in d.items()}], ids=['plain', 'checkpoint', 'parallel', 'bare'])
def test_official_weights_give_official_logits(official, wrap):
    ours = RedNet((1, 2), (256, 512), (7, 7), (1, 2), num_classes=5).eval()
    ours.load_state_dict(rednet_filter(wrap(official.state_dict())))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(): torch.testing.assert_close(ours(x), official(x), rtol=1e-4, atol=1e-5)


def test_our_own_keys_pass_the_filter_unchanged():
    keys = timm.create_model('rednet_mini').state_dict().keys()
    assert list(rednet_filter(dict.fromkeys(keys))) == list(keys)


@pytest.mark.parametrize('depth, millions', [(26, 9.233), (38, 12.387), (50, 15.541), (101, 25.653), (152, 33.985)])
def test_published_sizes(depth, millions):
    "README of d-li14/involution"
    with torch.device('meta'): model = timm.create_model(f'rednet{depth}')
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == millions


def test_mini_is_small_and_takes_16_to_64_pixels():
    model = timm.create_model('rednet_mini').eval()
    assert 30_000 <= sum(p.numel() for p in model.parameters()) <= 60_000
    with torch.no_grad(): assert all(model(torch.randn(1, 3, n, n)).shape == (1, 10) for n in (16, 32, 64))


# -- compile, export, trace ------------------------------------------------------------------------------------------------

def test_export_is_portable_and_equal():
    "Only torch's own operators, so that the program runs without libkd; any batch size"
    layer, x = Involution2d(16, 3, 2).eval(), torch.randn(2, 16, 8, 8)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim('B', min=1, max=64)},))
    assert all(str(n.target).startswith('aten.') for n in program.graph.nodes if n.op == 'call_function' and '.' in str(n.target))
    x = torch.randn(5, 16, 8, 8)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.filterwarnings('ignore')                  # the exporter's own, and those of tracing
def test_onnx_needs_no_libkd(tmp_path):
    onnx = pytest.importorskip('onnx')
    from onnx.reference import ReferenceEvaluator
    layer, x = Involution2d(16, 3, 2).eval(), torch.randn(2, 16, 8, 8)
    torch.onnx.export(layer, (x,), str(tmp_path/'layer.onnx'), dynamo=False, opset_version=18)
    graph = onnx.load(tmp_path/'layer.onnx')
    assert {n.domain for n in graph.graph.node} == {''}
    y, = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), layer(x).detach(), rtol=1e-4, atol=1e-5)


def test_fx_sees_one_node():
    layer, x = Involution2d(16, 3).eval(), torch.randn(2, 16, 8, 8)
    graph = torch.fx.symbolic_trace(layer)
    assert [n.target for n in graph.graph.nodes if n.target is inv.involution2d] == [inv.involution2d]
    torch.testing.assert_close(graph(x), layer(x))


@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=pytest.mark.slow)])
def test_compiled_forward_and_backward_are_equal(backend):
    layer, x = Involution2d(16, 3, 2), torch.randn(2, 16, 8, 8, requires_grad=True)
    def run(f):
        y = f(x)
        return y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    for a, b in zip(run(torch.compile(layer, fullgraph=True, backend=backend)), run(layer), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_stride_of_none_is_refused():
    with pytest.raises(UserError, match='stride=0'): involution2d(torch.zeros(1, 16, 4, 4), torch.zeros(1, 1, 9, 4, 4), 0)
