"""Students: published sizes, the authors' key names, timm's own classes as oracles, heads, resolutions, one forward a step, export."""
import pytest, timm, torch
from timm.layers import resample_abs_pos_embed
from timm.models.deit import VisionTransformerDistilled
import libkd.students as S
from libkd import UserError

torch.set_num_threads(1)
OURS = [n for n in S.default_cfgs]
NANO = ['vit_civt_nano', 'vit_civt_pico', 'vit_deit_nano', 'vit_nano', 'vit_pico']
x32 = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

def nano(name='civt_nano', n=10, size=32, seed=0, **kw):
    torch.manual_seed(seed)
    return S.create_student(name, n, size, **kw)

def n_params(m): return sum(p.numel() for p in m.parameters())

# -- published sizes, and the authors' checkpoint ------------------------------------------------------------------------

# methods: counted from the code of Co-advise (github.com/OliverRensu/co-advise, models.py) with 3 heads of 1000 classes
@pytest.mark.parametrize('size,total,conv,inv', [('tiny', 7_632_906, 870_144, 806_610), ('small', 25_776_138, 1_656_768, 1_593_234),
                                                 ('base', 93_913_098, 3_230_016, 3_166_482)])
def test_official_sizes(size, total, conv, inv):
    with torch.device('meta'): m = timm.create_model(f'vit_civt_{size}_patch16_224')
    d = {'tiny': 192, 'small': 384, 'base': 768}[size]
    assert (n_params(m), n_params(m.patch_embed.conv), n_params(m.patch_embed.inv)) == (total, conv, inv)
    assert m.pos_embed.shape == (1, 199, d) and m.n_prefix == 3 and m.grid == (14, 14) and m.heads == ('cls', 'conv', 'inv')

@pytest.mark.slow
@pytest.mark.parametrize('name,giga', [('rednet26', 1.69), ('rednet38', 2.17), ('rednet50', 2.65), ('rednet101', 4.66), ('rednet152', 6.68),
                                       ('vit_civt_tiny_patch16_224', 2.84), ('vit_civt_small_patch16_224', 6.50)])
def test_multiply_adds_are_those_counted_from_the_official_code(name, giga):
    from libkd.diagnose import macs
    with torch.device('meta'): model, x = timm.create_model(name), torch.empty(1, 3, 224, 224)
    assert round(macs(model, x)/1e9, 2) == giga

def test_light_stems_cost_little():
    from libkd.diagnose import macs
    with torch.device('meta'): light, deit, x = timm.create_model('vit_civt_tiny_light_patch16_224'), timm.create_model('vit_deit_tiny_patch16_224'), torch.empty(1, 3, 224, 224)
    assert macs(light, x) < 1.05*macs(deit, x) and n_params(light) < 1.05*n_params(deit)

def official_state(d=192, n=7, depth=12):
    "Names and shapes of the authors' state dict: old timm's ViT without patch_embed, two stems, mmcv's ConvModules"
    g, sd = torch.Generator().manual_seed(1), {}
    def put(name, *shape): sd[name] = torch.randn(*shape, generator=g)*.02
    def conv(name, o, i, k, bias=False): put(f'{name}.weight', o, i, k, k); bias and put(f'{name}.bias', o)
    def bn(name, c):
        for p in ('weight', 'bias', 'running_mean'): put(f'{name}.{p}', c)
        sd[f'{name}.running_var'] = torch.rand(c, generator=g) + .5
        sd[f'{name}.num_batches_tracked'] = torch.tensor(3)
    def linear(name, o, i): put(f'{name}.weight', o, i); put(f'{name}.bias', o)
    put('cls_token', 1, 1, d); put('pos_embed', 1, 199, d)
    for i in range(depth):
        for ln in ('norm1', 'norm2'): put(f'blocks.{i}.{ln}.weight', d); put(f'blocks.{i}.{ln}.bias', d)
        for name,o,k in (('attn.qkv', 3*d, d), ('attn.proj', d, d), ('mlp.fc1', 4*d, d), ('mlp.fc2', d, 4*d)): linear(f'blocks.{i}.{name}', o, k)
    put('norm.weight', d); put('norm.bias', d)
    for h in ('head', 'head_conv', 'head_inv'): linear(h, n, d)
    conv('conv_embed.conv.0', 64, 3, 7); conv('conv_embed.conv.3', 64, 64, 3); conv('conv_embed.conv.6', 64, 64, 3)
    for i in (1, 4, 7): bn(f'conv_embed.conv.{i}', 64)
    conv('conv_embed.proj', d, 64, 8, True)
    conv('inv_embed.stem.0.conv', 32, 3, 3); bn('inv_embed.stem.0.bn', 32)
    conv('inv_embed.stem.1.conv1.conv', 8, 32, 1); bn('inv_embed.stem.1.conv1.bn', 8); conv('inv_embed.stem.1.conv2.conv', 18, 8, 1, True)
    bn('inv_embed.stem.2', 32); conv('inv_embed.stem.4.conv', 64, 32, 3); bn('inv_embed.stem.4.bn', 64)
    conv('inv_embed.proj', d, 64, 8, True)
    return sd

def official_forward(sd, x, d=192, heads=3, depth=12):
    "The authors' network on the authors' names, in plain torch calls, evaluation mode"
    F = torch.nn.functional
    def bn(x, p): return F.batch_norm(x, sd[f'{p}.running_mean'], sd[f'{p}.running_var'], sd[f'{p}.weight'], sd[f'{p}.bias'], eps=1e-5)
    def lin(x, p): return F.linear(x, sd[f'{p}.weight'], sd[f'{p}.bias'])
    def ln(x, p): return F.layer_norm(x, (d,), sd[f'{p}.weight'], sd[f'{p}.bias'], 1e-6)
    def tokens(x, p): return F.conv2d(x, sd[f'{p}.proj.weight'], sd[f'{p}.proj.bias'], stride=8).flatten(2).transpose(1, 2)
    a = x
    for i,(s,p) in zip((0, 3, 6), ((2, 3), (1, 1), (1, 1))):
        a = bn(F.conv2d(a, sd[f'conv_embed.conv.{i}.weight'], stride=s, padding=p), f'conv_embed.conv.{i+1}').relu()
    b = bn(F.conv2d(x, sd['inv_embed.stem.0.conv.weight'], stride=2, padding=1), 'inv_embed.stem.0.bn').relu()
    k = bn(F.conv2d(b, sd['inv_embed.stem.1.conv1.conv.weight']), 'inv_embed.stem.1.conv1.bn').relu()
    k = F.conv2d(k, sd['inv_embed.stem.1.conv2.conv.weight'], sd['inv_embed.stem.1.conv2.conv.bias'])
    B, _, h, w = k.shape   # two groups of 16 channels, one 3x3 kernel for each place
    b = (F.unfold(b, 3, padding=1).view(B, 2, 16, 9, h, w)*k.view(B, 2, 1, 9, h, w)).sum(3).view(B, 32, h, w)
    b = bn(F.conv2d(bn(b, 'inv_embed.stem.2').relu(), sd['inv_embed.stem.4.conv.weight'], padding=1), 'inv_embed.stem.4.bn').relu()
    a, b = tokens(a, 'conv_embed'), tokens(b, 'inv_embed')
    z = torch.cat([sd['cls_token'].expand(B, -1, -1), a.mean(1, keepdim=True), b.mean(1, keepdim=True), a + b], 1) + sd['pos_embed']
    for i in range(depth):
        q, kk, v = lin(ln(z, f'blocks.{i}.norm1'), f'blocks.{i}.attn.qkv').view(B, -1, 3, heads, d//heads).permute(2, 0, 3, 1, 4)
        att = (q @ kk.transpose(-1, -2)/(d//heads)**.5).softmax(-1) @ v
        z = z + lin(att.transpose(1, 2).reshape(B, -1, d), f'blocks.{i}.attn.proj')
        z = z + lin(F.gelu(lin(ln(z, f'blocks.{i}.norm2'), f'blocks.{i}.mlp.fc1')), f'blocks.{i}.mlp.fc2')
    z = ln(z, 'norm')
    return {'cls': lin(z[:,0], 'head'), 'conv': lin(z[:,1], 'head_conv'), 'inv': lin(z[:,2], 'head_inv')}

def test_official_state_dict_gives_the_official_answers():
    sd = official_state()
    m = timm.create_model('vit_civt_tiny_patch16_224', num_classes=7).eval()
    done = S.start_from(m, sd)
    assert not done.kept and not done.unused and len(done.loaded) == len(m.state_dict())
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad(): ours, theirs, mean = m.forward_heads(x), official_forward(sd, x), m(x)
    for h in m.heads: torch.testing.assert_close(ours[h], theirs[h], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mean, (theirs['cls'] + theirs['conv'] + theirs['inv'])/3, atol=1e-4, rtol=1e-4)

def test_official_file_loads_through_timm(tmp_path):
    sd = official_state(d=192)
    torch.save({'model': sd}, tmp_path/'civt.pth')
    m = timm.create_model('vit_civt_tiny_patch16_224', num_classes=7, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path/'civt.pth'), num_classes=7))
    torch.testing.assert_close(m.patch_embed.inv.body[3].span.weight, sd['inv_embed.stem.1.conv2.conv.weight'])
    torch.testing.assert_close(m.head_inv.bias, sd['head_inv.bias'])

# -- timm's own classes as oracles ---------------------------------------------------------------------------------------

def test_deit_nano_is_timms_distilled_deit():
    ours = nano('deit_nano').eval()
    timms = VisionTransformerDistilled(img_size=32, patch_size=4, num_classes=10, **S._SIZES['nano_plain']).eval()
    timms.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x32), timms(x32))
    ours.train().set_distilled_training(), timms.train().set_distilled_training()
    for a,b in zip(ours(x32), timms(x32)): torch.testing.assert_close(a, b)

@pytest.mark.parametrize('size', ['tiny', 'small', 'base'])
def test_deits_have_timms_names_and_sizes(size):
    with torch.device('meta'): ours, timms = S.create_student(f'deit_{size}', 1000, 224), timm.create_model(f'deit_{size}_distilled_patch16_224')
    shapes = lambda m: {k: v.shape for k,v in m.state_dict().items()}
    assert shapes(ours) == shapes(timms) and S.heads_of(f'deit_{size}') == ours.heads == ('cls', 'dist')

def test_the_baseline_has_the_size_and_grid_of_civt():
    civt, vit = nano(), nano('vit_nano')
    assert civt.grid == vit.patch_embed.grid_size and abs(n_params(vit)/n_params(civt) - 1) < .1

def test_one_head_on_plain_patches_is_timms_vit():
    ours, timms = nano('deit_nano', heads=('cls',)).eval(), nano('vit_nano').eval()
    timms.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x32), timms(x32))
    assert type(timms) is timm.models.VisionTransformer

@pytest.mark.parametrize('name', NANO)
@pytest.mark.parametrize('size', [8, 16, 24, 28, 32, 48, 64, (32, 48)])
def test_sizes_of_small_images(name, size):
    m = nano(name, size=size).eval()
    h, w = size if isinstance(size, tuple) else (size, size)
    assert m(torch.randn(1, 3, h, w)).shape == (1, 10)
    assert 16 <= m.patch_embed.num_patches <= 100 and n_params(m) < 600_000

@pytest.mark.parametrize('name', [n for n in OURS if n not in ('vit_nano', 'vit_pico')])
def test_what_timm_asks_of_its_models(name):
    "The contract of timm's own tests, for each registered name: classifier reset, head and features apart, checkpointing, intermediates"
    size = 32 if 'nano' in name else 64
    m = timm.create_model(name, num_classes=5, img_size=size, depth=2).eval()
    x = torch.randn(2, 3, size, size)
    assert name in timm.list_models('vit_*') and m.pretrained_cfg['architecture'] == name
    f = m.forward_features(x)
    assert f.shape == (2, m.n_prefix + m.grid[0]*m.grid[1], m.num_features)
    torch.testing.assert_close(m.forward_head(f), m(x))
    assert m.forward_head(f, pre_logits=True).shape == (2, m.head_hidden_size) and len(m.get_classifier()) == len(m.heads)
    last, maps = m.forward_intermediates(x, return_prefix_tokens=True)
    assert len(maps) == 2 and maps[0][0].shape == (2, m.num_features, *m.grid) and maps[0][1].shape == (2, m.n_prefix, m.num_features)
    torch.testing.assert_close(last, f)
    m.set_grad_checkpointing(); m.train()
    m(x).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in m.parameters())
    m.eval(); m.reset_classifier(3); assert m(x).shape == (2, 3)
    m.reset_classifier(0); assert m(x).shape == (2, m.num_features)
    m.reset_classifier(0, ''); assert m(x).shape == f.shape

def test_features_only():
    f = timm.create_model('vit_civt_nano', img_size=32, features_only=True, out_indices=(1, 3))
    assert [tuple(o.shape) for o in f(x32)] == [(2, f.model.embed_dim, 8, 8)]*2

@pytest.mark.parametrize('name', NANO + ['vit_civt_tiny_light_patch16_224'])
def test_saved_keys_are_exactly_timms(name):
    ours = S.create_student(name, 10, 32, **({} if 'nano' in name else {'depth': 2}))
    timms = timm.create_model(name, num_classes=10, img_size=32, **({} if 'nano' in name else {'depth': 2}))
    if hasattr(ours, 'set_distilled_training'): ours.train().set_distilled_training()
    ours(x32)
    assert list(ours.state_dict()) == list(timms.state_dict())
    timms.load_state_dict(ours.state_dict())

# -- heads ---------------------------------------------------------------------------------------------------------------

def test_dict_only_while_training_for_teachers():
    m = nano()
    assert m.train()(x32).shape == (2, 10)
    m.set_distilled_training()
    out = m(x32)
    assert tuple(out) == m.heads and all(z.shape == (2, 10) for z in out.values())
    assert m.eval()(x32).shape == (2, 10)
    assert m.set_distilled_training(False).train()(x32).shape == (2, 10)

def test_ensembles():
    m = nano().eval()
    z = torch.stack(list(m.forward_heads(x32).values()))
    torch.testing.assert_close(m(x32), z.mean(0))
    torch.testing.assert_close(m.set_ensemble('mean_probs')(x32).exp(), z.softmax(-1).mean(0))
    torch.testing.assert_close(m.set_ensemble('inv')(x32), z[2])
    with pytest.raises(ValueError, match="Did you mean 'mean_probs'"): m.set_ensemble('mean_prob')

def test_each_head_reads_its_own_token():
    m = nano().eval()
    f = m.forward_features(x32)
    for i,h in enumerate(m.heads):
        changed = f.clone(); changed[:,i] += torch.randn(m.embed_dim)
        moved = [k for k,z in m.head_logits(changed).items() if not torch.equal(z, m.head_logits(f)[k])]
        assert moved == [h]

def test_tokens_are_what_they_say():
    m = nano(heads={'cls': 'learned', 'a': 'conv', 'b': 'inv', 'c': 'learned', 'd': 'conv'}).eval()
    maps = m.patch_embed(x32)
    seq = m._pos_embed(maps) - m.pos_embed
    close = lambda i, want: torch.testing.assert_close(seq[:,i], want.expand(2, -1), atol=1e-6, rtol=1e-5)
    close(0, m.cls_token[0]); close(1, maps['conv'].mean((2, 3))); close(2, maps['inv'].mean((2, 3))); close(3, m.c_token[0]); close(4, maps['conv'].mean((2, 3)))
    torch.testing.assert_close(seq[:,5:], (maps['conv'] + maps['inv']).flatten(2).mT, atol=1e-6, rtol=1e-5)

@pytest.mark.parametrize('K', [1, 2, 5])
def test_any_number_of_teachers(K):
    m = nano(heads=('cls', *(f't{i}' for i in range(K)))).train().set_distilled_training()
    assert len(m(x32)) == K + 1 and m.n_prefix == K + 1 and {f't{i}_token' for i in range(K)} <= set(m.no_weight_decay())

def test_exactly_one_forward_a_step():
    m, calls = nano().train().set_distilled_training(), []
    hooks = [mod.register_forward_hook(lambda mod, *_: calls.append(mod)) for mod in (m.patch_embed, *m.blocks, *m.get_classifier())]
    sum(z.sum() for z in m(x32).values()).backward()
    assert len(calls) == len(set(map(id, calls))) == 1 + len(m.blocks) + 3

def test_gradients_of_one_head_reach_its_stem_only_through_what_it_reads():
    "The conv head's token is made of the conv stem; without blocks nothing of the inv stem reaches it"
    m = nano(depth=1)
    m.blocks = torch.nn.Sequential()
    m.forward_heads(x32)['conv'].sum().backward()
    assert m.patch_embed.conv.proj.weight.grad.abs().sum() > 0 and m.patch_embed.inv.proj.weight.grad.abs().sum() == 0

@pytest.mark.parametrize('heads,words', [(('a', 'conv'), "first head is 'cls'"), (('cls', 'Bad name'), 'small letters'), (('cls', 'conv', 'conv'), 'same name'),
                                         ('conv', 'tuple'), ({'cls': 'learned', 'x': 'wavelet'}, 'wavelet'), ({'cls': 'conv'}, "first head is 'cls'")])
def test_bad_heads(heads, words):
    with pytest.raises((ValueError, TypeError), match=words): nano(heads=heads)

# -- sizes, modes, precision ---------------------------------------------------------------------------------------------

def test_other_resolution_interpolates_positions():
    m, x = nano().eval(), torch.randn(1, 3, 48, 64)
    with pytest.raises(ValueError, match=r'set_input_size\(img_size=\(48, 64\)\)'): m(x)
    before = m.pos_embed.detach().clone()
    m.set_input_size(img_size=(48, 64))
    assert m(x).shape == (1, 10) and m.grid == (12, 16)
    torch.testing.assert_close(m.pos_embed[:,:3], before[:,:3])
    torch.testing.assert_close(m.pos_embed[:,3:].detach(), resample_abs_pos_embed(before[:,3:], (12, 16), (8, 8), 0))
    free = nano(dynamic_img_size=True).eval()
    free.load_state_dict({**m.state_dict(), 'pos_embed': before})
    torch.testing.assert_close(free(x), m(x))
    with pytest.raises(ValueError, match='resize the images'): free(torch.randn(1, 3, 33, 32))
    with pytest.raises(ValueError, match='made for patches'): m.set_input_size(patch_size=8)

def test_checkpoint_of_another_resolution_loads():
    small, large = nano(), nano(size=64, patch_size=4, seed=1)
    done = S.start_from(large, small)
    assert done.kept == [] and done.unused == []
    torch.testing.assert_close(large.pos_embed[:,3:].detach(), resample_abs_pos_embed(small.pos_embed[:,3:].detach(), (16, 16), (8, 8), 0))

def test_start_from_a_distilled_deit_says_what_did_not_fit():
    deit = timm.create_model('deit_tiny_distilled_patch16_224', num_classes=5, depth=2)
    m = S.create_student('civt_tiny', 5, 96, depth=3)
    own = m.pos_embed.detach().clone()
    done = S.start_from(m, deit)
    assert {'head.weight', 'cls_token', 'pos_embed', 'blocks.1.attn.qkv.weight'} <= set(done.loaded)
    assert {'dist_token', 'patch_embed.proj.weight', 'head_dist.weight'} <= set(done.unused)
    assert {'blocks.2.attn.qkv.weight', 'patch_embed.inv.proj.weight', 'head_conv.weight'} <= set(done.kept)
    torch.testing.assert_close(m.pos_embed[:,0], deit.pos_embed[:,0]); torch.testing.assert_close(m.pos_embed[:,2], own[:,2])
    assert 'kept' in repr(done)
    with pytest.raises(ValueError, match='Another width.*small 384'): S.start_from(nano(), deit)

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', NANO)
def test_mixed_precision(name, dtype):
    m = nano(name).eval()
    with torch.no_grad():
        full = m(x32)
        with torch.autocast('cpu', dtype): half = m(x32)
        assert half.dtype == dtype
        assert (half.float() - full).abs().max() < .05*full.std() + .01
    m.train()
    with torch.autocast('cpu', dtype): loss = m(x32).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in m.parameters())

@pytest.mark.parametrize('patch', [2, 4, 8, (4, 2)])
def test_projection_is_the_convolution(patch):
    torch.manual_seed(0)
    ph, pw = S.to_2tuple(patch)
    proj, x = S.PatchProj(16, 12, patch), torch.randn(2, 16, 4*ph, 3*pw, requires_grad=True)
    conv = torch.nn.functional.conv2d(x, proj.weight, proj.bias, stride=(ph, pw))
    torch.testing.assert_close(proj(x), conv, atol=1e-5, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(y.square().sum(), (x, proj.weight)) for y in (proj(x), conv))
    for a,b in zip(ours, theirs): torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)

@pytest.mark.slow
def test_compiles_without_graph_break_in_both_modes():
    m = nano().train().set_distilled_training()
    fast = torch.compile(m, backend='eager', fullgraph=True)
    assert tuple(fast(x32)) == m.heads
    m.eval()
    torch.testing.assert_close(fast(x32), m(x32))

@pytest.mark.slow
@pytest.mark.parametrize('name', NANO)
def test_exports_with_a_free_batch(name):
    m = nano(name).eval()
    program = torch.export.export(m, (x32,), dynamic_shapes={'x': {0: torch.export.Dim('batch', min=2)}}, strict=False)
    x = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(x), m(x), atol=1e-4, rtol=1e-4)

# -- names ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('short,full', S.STUDENTS.items())
def test_short_names(short, full):
    assert S.student_name(short) == full == S.student_name(full) and timm.is_model(full)

def test_unknown_name_offers_close_ones():
    with pytest.raises(ValueError, match='civt_nano'): nano('civt_nona')
    with pytest.raises(ValueError, match='vit_tiny_patch16_224'): nano('vit_tiny_patch16_244')

def test_ordinary_timm_models_are_students_with_one_head():
    for name,kw in (('vit_tiny_patch16_224', dict(patch_size=8, depth=2)), ('resnet18', {})):
        m = nano(name, in_chans=1, **kw)
        assert m(torch.randn(2, 1, 32, 32)).shape == (2, 10) and S.heads_of(m) == ('cls',)
    assert S.heads_of(nano()) == ('cls', 'conv', 'inv')
    with pytest.raises(ValueError, match='one head'): nano('vit_nano', heads=('cls', 'conv'))
    with pytest.raises(ValueError, match='patch_size=4'): nano(patch_size=5)
    with pytest.raises(TypeError, match='no_such'): nano(no_such=1)
    with pytest.raises(ValueError, match='no_embed_class'): nano(no_embed_class=True)

def test_gray_images_and_other_channels():
    for c in (1, 4): assert nano(in_chans=c)(torch.randn(2, c, 32, 32)).shape == (2, 10)


# -- attention that can act like a convolution -----------------------------------------------------------------------------

def test_conv_attention_looks_at_its_offset():
    attn = S.MultiHeadConvAttention(36, 9, grid=(5, 5), n_prefix=2).eval()
    with torch.no_grad():
        attn.sharpness.fill_(30.)                      # sharp enough to see one place
        A = attn.position_scores()[:, 2:, 2:].softmax(-1)
    centre = 2*5 + 2
    seen = [divmod(int(A[h, centre].argmax()), 5) for h in range(9)]
    assert sorted(seen) == [(y, x) for y in (1, 2, 3) for x in (1, 2, 3)] and A[:, centre].amax(-1).min() > .99      # a 3×3 convolution
    assert (attn.position_scores()[:, :2] == 0).all() and (attn.position_scores()[:, :, :2] == 0).all()

@pytest.mark.parametrize('added', [False, True])
def test_conv_attention_obeys_a_mask(added):
    torch.manual_seed(0)
    model = S.create_student('civt_nano', 5, (16, 16), conv_attention=1, depth=1).eval()
    tokens = torch.randn(1, model.pos_embed.shape[1], 64)
    mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool)
    mask[0, 1:] = False                                # the first token looks at itself alone
    if added: mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    others = torch.cat([tokens[:, :1], torch.randn_like(tokens[:, 1:])], 1)
    attn = model.blocks[0].attn
    assert torch.equal(attn(tokens, attn_mask=mask)[:, 0], attn(others, attn_mask=mask)[:, 0])
    assert not torch.allclose(attn(tokens)[:, 0], attn(others)[:, 0])
    with pytest.raises(ValueError, match='no is_causal'): attn(tokens, is_causal=True)

def test_conv_attention_is_one_attention_fused_or_not():
    torch.manual_seed(0)
    model, x = S.create_student('civt_nano', 5, (16, 16), conv_attention=2, depth=3).eval(), torch.randn(2, 3, 16, 16)
    assert [type(b.attn).__name__ for b in model.blocks] == ['MultiHeadConvAttention']*2 + ['Attention']
    fused = model(x)
    for b in model.blocks: b.attn.fused_attn = not b.attn.fused_attn
    torch.testing.assert_close(model(x), fused, atol=1e-5, rtol=1e-4)
    model.set_input_size(img_size=(16, 32))
    assert model(torch.randn(2, 3, 16, 32)).shape == (2, 5)

@pytest.mark.parametrize('kw, words', [(dict(conv_attention=9), 'there are 6 blocks'), (dict(conv_attention=1, dynamic_img_size=True), 'images of one size')])
def test_conv_attention_refuses(kw, words):
    with pytest.raises(ValueError, match=words): S.create_student('civt_nano', 5, (16, 16), **kw)

# -- timm's own tasks, pruning, other sides ------------------------------------------------------------------------------

@pytest.mark.parametrize('loss', ['soft', 'hard'])
def test_deit_learns_in_timms_own_task(loss):
    "TokenDistillationTask and DeiT's own loss unpack a pair"
    from timm.task import TokenDistillationTask
    teacher = nano('vit_nano', seed=1)
    student = nano('deit_nano')
    student.pretrained_cfg['mean'] = teacher.pretrained_cfg['mean']
    task = TokenDistillationTask(student, teacher, torch.nn.CrossEntropyLoss(), distill_type=loss, verbose=False).train()
    task(x32, torch.tensor([1, 2]))['loss'].backward()
    assert all(p.grad is not None for p in student.parameters())
    main, dist = student(x32)
    each = student.head_logits(student.forward_features(x32))
    torch.testing.assert_close(main, each['cls']); torch.testing.assert_close(dist, each['dist'])

def test_a_pruned_student_is_saved_and_loaded(tmp_path):
    from timm.models._hub import save_for_hf
    from torch.nn.utils import prune
    m = nano().eval()
    prune.l1_unstructured(m.patch_embed.conv.body[0], 'weight', .5)
    prune.random_unstructured(m.blocks[0].mlp.fc1, 'weight', .3)
    want = m(x32)
    save_for_hf(m, str(tmp_path/'s'), model_config=dict(num_classes=10), model_args=dict(img_size=32), safe_serialization=True)
    back = timm.create_model(f"local-dir:{tmp_path/'s'}", pretrained=True).eval()
    torch.testing.assert_close(back(x32), want)
    assert (back.patch_embed.conv.body[0].weight == 0).float().mean() >= .5

@pytest.mark.parametrize('size', [29, 31, 37, 58, 62, 74, (29, 31), 3])
def test_sides_without_a_sensible_patch(size):
    with pytest.raises(ValueError, match='patch'): nano(size=size)

@pytest.mark.parametrize('size, patch', [(4, 1), (6, 1), (10, 2), (13, 1), (20, 2), (22, 2), (26, 2), (36, 4), (40, 5), (96, 12), (100, 10), ((16, 64), 4)])
def test_sides_with_one(size, patch): assert S.patch_for(size) == patch

def test_nothing_that_fits_is_said():
    "Another width, another family, another head count alone"
    for other in (timm.create_model('resnet18', num_classes=10), timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=4, depth=1, num_classes=10)):
        with pytest.raises(S.CheckpointError, match='nothing in'): S.start_from(nano(), other)

@pytest.mark.parametrize('wrap', [lambda sd: {'state_dict_ema': sd, 'epoch': 1}, lambda sd: {'model': {f'module._orig_mod.{k}': v for k, v in sd.items()}}, lambda sd: {f'model.{k}': v for k, v in sd.items()}])
def test_start_from_wrapped_weights(wrap):
    m = nano(seed=1)
    done = S.start_from(m, wrap(nano().state_dict()))
    assert not done.kept and not done.unused and torch.equal(m.head.weight, nano().head.weight)

def test_positions_of_pictures_that_are_not_square():
    "A module knows its grid; a file is asked for it, and its positions are those that timm would interpolate"
    wide, m = nano(size=(16, 64), patch_size=4), nano(seed=1)        # 4×16 = 8×8 = 64 places
    want = resample_abs_pos_embed(wide.pos_embed[:, 3:].detach(), (8, 8), (4, 16), 0)
    S.start_from(m, wide); torch.testing.assert_close(m.pos_embed[:, 3:].detach(), want)
    other = nano(size=(16, 32), patch_size=4).state_dict()
    with pytest.raises(ValueError, match=r'grid=\(rows, columns\)'): S.start_from(m, other)
    S.start_from(m, other, grid=(4, 8))
    torch.testing.assert_close(m.pos_embed[:, 3:].detach(), resample_abs_pos_embed(other['pos_embed'][:, 3:], (8, 8), (4, 8), 0))

def test_another_number_of_heads():
    "A student of two teachers starts one of three: each special row stays with its token"
    two, three = nano(heads=('cls', 'conv')), nano(heads=('cls', 'conv', 'inv'), size=64, patch_size=4, seed=1)
    done = S.start_from(three, two.state_dict())
    assert {'head_inv.weight', 'head_inv.bias'} <= set(done.kept) and 'pos_embed' in done.loaded
    torch.testing.assert_close(three.pos_embed[:, :2], two.pos_embed[:, :2])


@pytest.mark.parametrize('given', [(0.5, 8), (3, 0), (3, -8), (3, (8, 0)), (3, '8'), (3, 8, 0)])
def test_sizes_that_no_student_has_are_one_sentence(given):
    with pytest.raises(UserError, match='whole numbers above 0 are needed'): S.create_student('civt_nano', *given)
