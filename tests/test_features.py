"""Features of unlike networks, the rules between them, and the callback: equal to timm's own reading and to published code, no trace left behind."""
import copy, json, os, subprocess, sys
from pathlib import Path

import pytest
import timm
import torch
from fastai.callback.training import GradientAccumulation
from fastai.learner import load_learner
from fastai.callback.core import Callback, CancelFitException
from torch import nn

import tiny
from libkd import UserError
from libkd.cache import CacheMismatch, LogitCache
from libkd.distill import MultiTeacherDistill
from libkd.handover import load_student, save_student
from libkd.learner import METHODS, cakd_ramp, distill_learner
from libkd.features import (CAKD, RULES, Align, Discriminator, Feature, FeatureDistill, GroupwiseLinear, LayerTeacher, PairRule, PartiallyCrossAttention, attention_of,
                            depth_of, equal_pull, feature_layers, find_layer, make_rule, match_features, multi_view, patch_groups, probe, reading, store_features, to_grid)
from libkd.students import create_student
from libkd.teachers import Teacher, decaying, quick_adam

PUBLISHED = json.loads((Path(__file__).parent/'fixtures/published_features.json').read_text())
NETS = {'resnet18': {}, 'regnety_002': {}, 'convnext_atto': {}, 'rednet26': {}, 'efficientnet_b0': {}, 'vit_tiny_patch16_224': dict(img_size=64), 'deit_tiny_distilled_patch16_224': dict(img_size=64),
        'vit_civt_tiny_patch16_224': dict(img_size=64), 'swin_tiny_patch4_window7_224': dict(img_size=64), 'mixer_s32_224': dict(img_size=64)}
SMALL = dict(depth=3, embed_dim=32, num_heads=2, patch_size=2)


def net(name):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, **NETS[name])

def images(n=4, size=64): return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))

def scans(n=8, size=64):
    "Real handwritten digits as a batch"
    from sklearn.datasets import load_digits
    x = torch.from_numpy(load_digits().images[:n]/8 - 1).float()[:, None].expand(-1, 3, -1, -1)
    return torch.nn.functional.interpolate(x, (size, size), mode='bilinear')

class Conv(nn.Module):
    "Maps of 4 and 8 channels, with a batch norm"
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1), nn.Linear(8, 3)
        self.norm = nn.BatchNorm2d(4)
    def forward(self, x): return self.head(torch.relu(self.b(torch.relu(self.norm(self.a(x))))).mean((2, 3)))

def conv(name='conv', **kw): return Teacher(Conv(), tiny.CLASSES, name=name, **{'bias': 'conv', **kw})
def attn(): return Teacher(create_student('vit_nano', 3, (8, 8), **SMALL), tiny.CLASSES, name='attn')

def dearkd(dls=None, epochs=0, student='deit_nano', teachers=None, cbs=None, resume=None, **kw):
    torch.manual_seed(0)
    learn = distill_learner(dls or tiny.loaders(), student, teachers=teachers or conv(), method='dearkd', seed=0, verbose=False, check=False, student_kw=SMALL, cbs=cbs, resume=resume,
                            method_kw={'layers': {'blocks.0': 'a', 'blocks.1': 'b'}, **kw})
    if epochs:
        with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-2)
    return learn

def callback(learn): return next(cb for cb in learn.cbs if isinstance(cb, FeatureDistill))
def hooked(*nets): return [n for net in nets for n, m in net.named_modules() if m._forward_hooks or m._forward_pre_hooks]


# -- reading -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', NETS)
def test_reading_equals_timms_intermediates(name):
    model, x = net(name).eval(), images(2)
    table = feature_layers(model, x)
    with torch.no_grad():
        theirs = model.forward_intermediates(x, indices=len(table), intermediates_only=True, output_fmt='NCHW', **({'norm': False} if 'vit' in name or 'mixer' in name else {}))
    ours = probe(model, x, [*table.index])
    assert len(theirs) == len(ours) >= 4
    for f, t in zip(ours.values(), theirs): torch.testing.assert_close(f.map, t)
    assert table['depth'].is_monotonic_increasing and 0 < table['depth'].iloc[0] < table['depth'].iloc[-1] <= 1

def test_hooks_go_also_after_an_exception():
    model = net('vit_tiny_patch16_224')
    with pytest.raises(AssertionError):
        with reading(model, ['blocks.1', 'blocks.2']): model(images(1, 48))
    assert not hooked(model)

def test_probing_leaves_no_trace():
    model = net('rednet26')
    model.stages[0].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    feature_layers(model, images())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items()) and modes == [m.training for m in model.modules()]

def test_images_that_are_not_square():
    model = timm.create_model('vit_tiny_patch16_224', img_size=(32, 64))
    f = probe(model, torch.randn(1, 3, 32, 64), ['blocks.0'])['blocks.0']
    assert f.grid == (2, 4) and f.map.shape == (1, 192, 2, 4)
    (pair,) = match_features(model, timm.create_model('resnet18'), torch.randn(1, 3, 32, 64), layers={'blocks.0': 'layer2'})
    assert pair.t.grid == (4, 8)

@pytest.mark.parametrize('layer, words', [('blocks.99', "Did you mean 'blocks.9"), ('norm.x', 'no layer'), ('', 'no layer')], ids=['near', 'far', 'none'])
def test_unknown_layer_offers_close_names(layer, words):
    with pytest.raises(ValueError, match=words): find_layer(net('vit_tiny_patch16_224'), layer, images())

def test_layers_without_places_are_refused():
    with pytest.raises(ValueError, match='no vectors on a grid'): probe(net('resnet18'), images(), ['fc'])
    with pytest.raises(ValueError, match='single place'): match_features(net('resnet18'), net('regnety_002'), images(1, 32), layers={'layer4': 's2'})
    with pytest.raises(ValueError, match='between 0'): find_layer(net('resnet18'), 7, images())
    with pytest.raises(ValueError, match='pairs nothing'): match_features(net('resnet18'), net('regnety_002'), images(), layers={})

def test_depth_counts_weight_layers():
    vit = net('vit_tiny_patch16_224')        # patches, 12 blocks of four linear layers, head
    assert [depth_of(vit, f'blocks.{i}') for i in (0, 11)] == [5/50, 49/50]

def test_early_layers_listen_to_early_stages():
    pairs = match_features(net('vit_tiny_patch16_224'), net('resnet18'), images())
    assert [p.student for p in pairs] == ['blocks.0', 'blocks.1', 'blocks.2'] and {p.teacher for p in pairs} <= {'act1', 'layer1', 'layer2'}
    assert [p.teacher for p in pairs] == sorted(p.teacher for p in pairs)


# -- rules ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('case', PUBLISHED['cases'], ids=lambda c: c['rule'])
def test_published_values_and_gradients(case):
    s, t = (torch.tensor(PUBLISHED[f"{who}_{case['on']}"], dtype=torch.float32) for who in ('student', 'teacher'))
    s.requires_grad_()
    feature = Feature.of_map if case['on'] == 'map' else lambda v: Feature(v[:, None], (1, 1))
    loss = RULES[case['rule']](None, None)(feature(s), feature(t))
    assert loss.item() == pytest.approx(case['value'], abs=1e-5)
    torch.testing.assert_close(torch.autograd.grad(loss, s)[0].flatten(1), torch.tensor(case['gradient'], dtype=torch.float32), atol=1e-5, rtol=1e-4)

NAMES = [n for n in NETS if n != 'efficientnet_b0']
@pytest.mark.slow
@pytest.mark.parametrize('i', range(len(NAMES)))
def test_alignment_falls_by_half_between_all_kinds_of_networks(i):
    "Each network listens to another kind; all 81 pairs are in nbs/bench/features.ipynb"
    x, s, t = scans(), net(NAMES[i]).train(), net(NAMES[(i + 4) % len(NAMES)]).eval().requires_grad_(False)
    keys, (*_, pair) = list(s.state_dict()), match_features(s, t, x)
    rule, theirs = PairRule('align', [pair], Align), probe(t, x, [pair.teacher])
    opt = torch.optim.Adam([dict(params=s.parameters(), lr=2e-3), dict(params=rule.parameters(), lr=1e-2)])
    values = []
    for _ in range(50):
        with reading(s, [pair.student]) as ours: s(x)
        values.append(rule(ours, theirs)['align'])
        opt.zero_grad(); values[-1].backward()
        assert any(p.grad.abs().sum() > 0 for n, p in s.named_parameters() if n.startswith(f'{pair.student}.') and p.grad is not None)
        opt.step()
        if values[-1] < values[0]/2: break
    assert values[-1] < values[0]/2, (pair, values[0].item(), values[-1].item())
    assert list(s.state_dict()) == keys and all(p.grad is None for p in t.parameters())

def test_projectors_are_not_for_evaluation():
    (pair,) = match_features(net('resnet18'), net('vit_tiny_patch16_224'), images(), layers={'layer2': 'blocks.5'})
    for rule in (PairRule('align', [pair], Align), CAKD(net('vit_tiny_patch16_224'), pair)):
        with pytest.raises(RuntimeError, match='exist in training only'): rule.eval()({'layer2': pair.s}, {'blocks.5': pair.t})

def test_grids_are_averaged_not_skipped():
    f = Feature.of_map(torch.arange(16.).view(1, 1, 4, 4))
    assert to_grid(f, (2, 2)).tokens.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert to_grid(f, (8, 8)).grid == (8, 8) and to_grid(f, (4, 4)) is f


# -- CAKD ----------------------------------------------------------------------------------------------------------------

def qkv(B=2, H=3, N=16, d=4): return [torch.randn(B, H, N, d, generator=torch.Generator().manual_seed(i)) for i in range(3)]

def test_equal_projections_cost_nothing_and_any_entry_may_be_exchanged():
    pca, given = PartiallyCrossAttention(5, 12, 3), qkv()
    with torch.no_grad():                    # a projector that answers exactly the teacher's entries
        pca.qkv = nn.Identity()
        pca.qkv.forward = lambda _: Feature(torch.cat([o.transpose(1, 2).flatten(2) for o in given], -1), (4, 4)).map
    assert pca(Feature(torch.zeros(2, 16, 5), (4, 4)), given).item() == pytest.approx(0, abs=1e-10)

def test_half_of_the_entries_are_exchanged_at_random():
    torch.manual_seed(0)
    pca, given, s = PartiallyCrossAttention(5, 12, 3), qkv(), Feature(torch.randn(2, 16, 5), (4, 4))
    a, b = pca(s, given), pca(s, given)
    assert a != b and {n for n, p in pca.named_parameters() if torch.autograd.grad(a, p, retain_graph=True)[0].abs().sum() > 0} == {'qkv.weight', 'qkv.bias'}

def test_the_released_code_scales_its_two_value_terms_differently():
    "Released: VV of the student over √d, of the teacher raw (methods of CAKD, functional.py l. 4848-4864); ours scales both. Equal once its teacher's is divided too"
    given = qkv(H=1, d=4)
    ours = [o + .1*torch.randn(o.shape, generator=torch.Generator().manual_seed(9)) for o in given]
    vv = lambda v, scale: v @ v.transpose(-1, -2)*scale
    released = torch.nn.functional.mse_loss(vv(ours[2], .5), vv(given[2], 1.))
    pca = PartiallyCrossAttention(5, 4, 1)
    pca.qkv = nn.Identity()
    pca.qkv.forward = lambda _: Feature(torch.cat([given[0][:, 0], given[1][:, 0], ours[2][:, 0]], -1), (4, 4)).map     # queries and keys agree: only values are left
    mended = torch.nn.functional.mse_loss(vv(ours[2], .5), vv(given[2], .5))
    assert pca(Feature(torch.zeros(2, 16, 5), (4, 4)), given).item() == pytest.approx(mended.item(), rel=1e-4) and released > 2*mended

@pytest.mark.parametrize('grid, sizes', [((14, 14), [16, 16, 16, 8]*3 + [8, 8, 8, 4]), ((7, 7), [16, 12, 12, 9]), ((2, 3), [6]), ((4, 8), [16, 16])])
def test_groups_of_patches(grid, sizes): assert patch_groups(grid).bincount().tolist() == sizes

def test_groupwise_linear_keeps_places_in_order():
    gl = GroupwiseLinear(3, 2, (5, 6)).eval()
    x = torch.randn(1, 30, 3)
    out, groups = gl(Feature(x, (5, 6))), patch_groups((5, 6))
    for i in range(30): torch.testing.assert_close(out[0, i], gl.each[groups[i]](x[0, i]))

def test_the_students_adversarial_term_trains_the_student_and_not_the_judge():
    torch.manual_seed(0)
    judge, fake = Discriminator(8, lr=1e-2), torch.randn(4, 9, 8, requires_grad=True)
    real = torch.randn(4, 9, 8) + 1
    judge.fooled(fake).backward()
    assert fake.grad.abs().sum() > 0 and all(p.grad is None for p in judge.parameters())
    losses = [judge.learn(real, fake) for _ in range(60)]
    assert losses[-1] < .6*losses[0] and judge.net(real).mean() > 0 > judge.net(fake).mean()

def test_ramp(): assert [round(cakd_ramp(e/120), 3) for e in (0, 25, 30, 35, 60)] == [0, 0, .1, .2, .2]

def test_multi_view_changes_about_half():
    from PIL import Image
    import numpy as np
    torch.manual_seed(0)
    im, (change,) = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)), multi_view(16)
    views = [change(im) for _ in range(100)]
    assert 35 < sum(np.array_equal(v, im) for v in views) < 65 and {v.size for v in views} == {(16, 16)}

def test_attention_is_found_where_there_is_plain_self_attention():
    assert attention_of(net('vit_tiny_patch16_224'), 'blocks.3') == ('blocks.3.attn.qkv', 3)
    assert attention_of(net('resnet18'), 'layer2') is None and attention_of(net('swin_tiny_patch4_window7_224'), 'layers.1') is None


# -- the callback --------------------------------------------------------------------------------------------------------

def test_nothing_of_the_rule_is_left(tmp_path):
    teacher = conv()
    before = copy.deepcopy(teacher.model.state_dict())
    learn = dearkd(epochs=2, teachers=teacher)
    assert list(learn.model.state_dict()) == list(create_student('deit_nano', 3, (8, 8), **SMALL).state_dict())
    assert not hooked(learn.model, teacher.model) and all(torch.equal(v, before[k]) for k, v in teacher.model.state_dict().items())
    assert all(p.grad is None for p in teacher.model.parameters())
    learn.export(tmp_path/'out.pkl')
    again = load_learner(tmp_path/'out.pkl')
    assert callback(again).rule is None and again.predict(learn.dls.valid_ds[0][0])[0] in tiny.CLASSES

def test_the_aligner_is_trained_with_the_student():
    learn = dearkd()
    cb = callback(learn)
    before = copy.deepcopy(cb.rule.state_dict())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert all(not torch.equal(v, before[k]) for k, v in cb.rule.state_dict().items() if v.is_floating_point() and 'bias' not in k)
    assert learn.recorder.metric_names[-3:-1] == ['kd_conv', 'align'] and learn.recorder.values[0][-1] > 0

def test_groups_of_parameters_stay_and_the_aligner_joins_them():
    learn = distill_learner(tiny.loaders(), 'deit_nano', teachers=conv(), method='dearkd', verbose=False, check=False, student_kw=SMALL, method_kw={'layers': {'blocks.0': 'a'}}, **quick_adam(.1))
    before = copy.deepcopy(callback(learn).rule.state_dict())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert [h['wd'] for h in learn.opt.hypers] == [.1, 0.] and len(learn.opt.param_lists[1]) == len(decaying(learn.model)[1])
    assert not torch.equal(callback(learn).rule.each[0].net[3].weight, before['each.0.net.3.weight'])

def test_layers_of_the_student_hear_the_teacher():
    learn = dearkd()
    cb = callback(learn)
    cb.weights, cb.label_weight = {'conv': 0.}, 0.           # the rule alone
    seen = {}
    learn.add_cb(_Grads(seen))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.)
    assert seen['blocks.0.mlp.fc1.weight'] > 0 and seen['blocks.2.mlp.fc1.weight'] == 0

class _Grads(Callback):
    def __init__(self, seen): self.seen = seen
    def after_backward(self): self.seen.update({n: p.grad.abs().sum().item() for n, p in self.model.named_parameters() if p.grad is not None})

def test_stage_two_asks_no_teacher():
    asked, teacher = [], conv()
    logits = teacher.logits
    teacher.logits = lambda *a, **k: asked.append(1) or logits(*a, **k)
    learn = dearkd(epochs=4, teachers=teacher, stage_one=.5)
    steps = len(learn.dls.train)
    assert len(asked) == 2*steps and learn.recorder.values[1][-1] > 0 and learn.recorder.values[2][-2:] == [None, None]

def test_stage_two_teaches_every_head_the_labels():
    learn = dearkd(stage_one=.01)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.)
    cb = callback(learn)
    cb.z = {'cls': torch.tensor([[2., 0, 0]]), 'dist': torch.tensor([[0., 0, 0]])}
    learn.yb = (torch.tensor([0]),)
    learn.pct_train = 1.
    expected = sum(torch.nn.functional.cross_entropy(z, torch.tensor([0])) for z in cb.z.values())/2
    assert cb.terms().keys() == {'label'} and cb.terms()['label'].item() == pytest.approx(expected.item())

def test_exactly_one_forward_a_step_and_validation_does_not_notice():
    learn = dearkd(epochs=1)
    calls = []
    handle = learn.model.blocks[0].register_forward_hook(lambda *a: calls.append(1))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    handle.remove()
    assert len(calls) == len(learn.dls.train) + len(learn.dls.valid)
    with learn.no_bar(): first = learn.validate()
    plain = distill_learner(learn.dls, learn.model, verbose=False)
    with plain.no_bar(): assert plain.validate()[:2] == first[:2]

@pytest.mark.slow
@pytest.mark.parametrize('done', [1, 3])
def test_a_killed_training_goes_on_in_either_stage(done, tmp_path):
    whole = dearkd(epochs=4, stage_one=.5)
    class Kill(KeyboardInterrupt): pass
    class Killer(Callback):
        order, only_looks = 70, True
        def after_epoch(self):
            if self.epoch == done - 1: raise Kill
    with pytest.raises(Kill): dearkd(epochs=4, stage_one=.5, cbs=Killer(), resume=tmp_path)
    again = dearkd(epochs=4, stage_one=.5, resume=tmp_path)
    assert [r[:3] for r in again.recorder.values] == [r[:3] for r in whole.recorder.values]
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in whole.model.state_dict().items())

def test_a_search_for_a_rate_trains_no_aligner():
    learn = dearkd()
    before = copy.deepcopy(callback(learn).rule.state_dict())
    with learn.no_bar(): learn.lr_find(num_it=6, show_plot=False)
    assert all(torch.equal(v, before[k]) for k, v in callback(learn).rule.state_dict().items()) and not hooked(learn.model, callback(learn).advisor.model)

def test_accumulated_gradients_count_the_features_too():
    "Three accumulated batches of six have the gradient of one of eighteen"
    def gradient(bs, cbs):
        learn = dearkd(dls=tiny.loaders(bs=bs), cbs=[_Grads(seen := {}), *cbs])
        cb = callback(learn)
        cb.label_weight, cb.weights = 0., {'conv': 0.}                             # the rule alone
        for m in cb.rule.each: m.net[1] = nn.Identity()                            # batch statistics would tell eighteen from six
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.)
        return seen['blocks.0.mlp.fc1.weight']
    assert gradient(6, [GradientAccumulation(18)]) == pytest.approx(gradient(18, []), rel=1e-3)

def test_summary_shows_the_share_of_each_term():
    table = dearkd().distill_summary()
    assert list(table.index) == ['labels', 'conv', 'align'] and table.loc['align', 'term'] > 0

@pytest.mark.parametrize('student, teacher', [('resnet_mini', attn), ('vit_nano', conv)], ids=['CNN hears transformer', 'transformer hears CNN'])
def test_cakd_both_ways(student, teacher):
    t = teacher()
    kw = {} if student == 'resnet_mini' else SMALL
    layers = {'layer2': 'blocks.1'} if student == 'resnet_mini' else {'blocks.1': 'a'}
    learn = distill_learner(tiny.loaders(), student, teachers=t, method='cakd', seed=0, verbose=False, check=False, student_kw=kw, method_kw=dict(layers=layers, ramp=lambda p: 1.))
    judge = copy.deepcopy(callback(learn).rule.judge.state_dict())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    row = dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[0]))
    assert all(row[n] > 0 for n in ('pca', 'gl', 'adversarial')) and row[f'kd_{t.name}'] is None
    assert any(not torch.equal(v, judge[k]) for k, v in callback(learn).rule.judge.state_dict().items())
    keys = create_student(student, 3, (8, 8), **kw).state_dict().keys()
    assert learn.model.state_dict().keys() == keys and not hooked(learn.model, t.model)

@pytest.mark.parametrize('method', ['fitnet', 'at', 'sp', 'rkd'])
def test_older_methods_train(method):
    learn = distill_learner(tiny.loaders(), 'vit_nano', teachers=conv(), method=method, seed=0, verbose=False, check=False, student_kw=SMALL, label_weight=0., cbs=_Grads(seen := {}), method_kw=dict(layers={'blocks.1': 'b'}))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert learn.recorder.values[0][-1] > 0 and seen['blocks.0.mlp.fc1.weight'] > 0 == seen['blocks.2.mlp.fc1.weight']

def test_stored_answers_and_a_live_advisor(tmp_path):
    dls = tiny.loaders()
    cache = LogitCache.build(tmp_path/'c', dls, [tiny.teacher('lin', 1)], views=2, check=False)
    learn = dearkd(dls=dls, teachers=[cache, conv()], epochs=1)
    assert callback(learn).advisor.name == 'conv' and learn.recorder.metric_names[-4:-1] == ['kd_conv', 'kd_lin', 'align']
    with pytest.raises(ValueError, match='live teacher, and only stored'): dearkd(dls=dls, teachers=cache)

def test_stored_features_teach_as_live_ones_do(tmp_path, capsys):
    "float32 and two views: the same losses, step by step"
    dls, t, layers = tiny.loaders(), conv(), {'blocks.0': 'a', 'blocks.1': 'b'}
    logits = LogitCache.build(tmp_path/'z', dls, t, views=2, dtype='float32', check=False)
    store = store_features(tmp_path/'f', dls, t, ['a', 'b'], views=2, dtype='float32')
    said = float(capsys.readouterr().out.split('finite(2): ')[1].split(' MB for a 8×8×4, b 4×4×8')[0])
    assert abs(said - store.nbytes/1e6) < .06 < said and list(store.teachers) == ['conv.a.8x8', 'conv.b.4x4']
    stored = dearkd(dls=dls, teachers=logits, epochs=2, features=store)
    live = dearkd(dls=logits.bind(dls), teachers=t, epochs=2)
    for a, b in zip(stored.recorder.losses, live.recorder.losses): assert a.item() == pytest.approx(b.item(), abs=1e-5)
    assert callback(stored).advisor is None
    with pytest.raises(CacheMismatch, match='a student sees one of the two'):
        dearkd(dls=dls, teachers=logits, features=store_features(tmp_path/'other', dls, t, ['a', 'b'], views=3))

def test_stored_features_know_whose_they_are(tmp_path):
    dls, t = tiny.loaders(), conv()
    store = store_features(tmp_path/'f', dls, t, ['a'], grid=(2, 2), views=1)
    assert store.gather(torch.tensor([0]))['conv.a.2x2'].shape == (1, 2*2*4)
    other = LayerTeacher(t, 'b', (2, 2))
    assert other.fingerprint != LayerTeacher(t, 'a', (2, 2)).fingerprint != t.fingerprint
    with pytest.raises(CacheMismatch): store_features(tmp_path/'f', dls, t, ['a'], grid=(4, 4), views=1)
    with pytest.raises(ValueError, match="0 layers called 'c'; it has conv.a.2x2"): dearkd(dls=dls, teachers=t, features=store, layers={'blocks.0': 'c'})
    with pytest.raises(ValueError, match='Which layers listen'): dearkd(dls=dls, teachers=t, features=store, layers=None)
    with pytest.raises(ValueError, match='CAKD reads queries'): dearkd(dls=dls, teachers=t, features=store, rule='cakd')

@pytest.mark.parametrize('kw, words', [(dict(stage_one=0), 'stage_one=0'), (dict(stage_one=1.5), 'stage_one=1.5'), (dict(feature_weight=0), 'feature_weight is 0'),
                                       (dict(advisor='nobody'), "advisor='nobody' is none of them"), (dict(rule='alin'), "no rule 'alin'"), (dict(layers={'blocks.7': 'a'}), "no layer 'blocks.7'")])
def test_bad_settings(kw, words):
    with pytest.raises(ValueError, match=words): dearkd(**kw)

def test_two_live_teachers_need_a_choice():
    with pytest.raises(ValueError, match="say whose layers advise"): dearkd(teachers=[conv('a'), conv('b')])
    assert callback(dearkd(teachers=[conv('a'), conv('b')], advisor='b')).advisor.name == 'b'

def test_every_feature_method_says_what_is_a_reading():
    for name in ('dearkd', 'cakd', 'fitnet', 'at', 'sp', 'rkd'): assert METHODS[name].callback is FeatureDistill and METHODS[name].reading

# -- DearKD's attention ---------------------------------------------------------------------------------------------------

def test_conv_attention_is_an_option_of_the_student(tmp_path):
    learn = distill_learner(tiny.loaders(), 'deit_nano', teachers=conv(), method='dearkd', verbose=False, check=False, student_kw=dict(SMALL, conv_attention=2), method_kw=dict(layers={'blocks.0': 'a'}))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    save_student(learn, tmp_path/'s')
    model, _ = load_student(tmp_path/'s')
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), learn.model.eval()(x))

def test_a_student_whose_layers_are_advised_is_a_taught_one():
    from libkd.diagnose import scoreboard
    assert list(scoreboard({'s': dearkd()})['role']) == ['taught student']


# -- several processes -------------------------------------------------------------------------------------------------

def first_gradients(x, y, change=lambda model, rule: model):
    "Gradients of rule and student in a first step on one batch, batch norm at rest"
    from fastai.callback.core import Callback, CancelFitException
    class Given(Callback):
        order = -100
        def before_batch(self): self.learn.xb, self.learn.yb = (x,), (y,)
    class Stop(Callback):
        order = 100
        def before_step(self): raise CancelFitException
    learn = dearkd(cbs=[Given(), Stop()], rule='hint', layers={'blocks.0': 'a'})
    for m in learn.model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm): m.train(False); m.train = lambda mode=True, m=m: m
    rule = callback(learn).rule
    learn.model = change(learn.model, rule)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return {n.removeprefix('module.'): p.grad for net in (rule, learn.model) for n, p in net.named_parameters()}

def judged(real, fake):
    "A discriminator after one step of its own"
    torch.manual_seed(0)
    judge = Discriminator(8, lr=.1)
    judge.learn(real, fake)
    return judge.state_dict()

HALF = '''
import sys; sys.path.insert(0, 'tests')
import test_features as t, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
torch.set_num_threads(1)
dist.init_process_group('gloo')
rank = dist.get_rank()
x, y, real = (o[rank*6:rank*6 + 6] for o in torch.load(sys.argv[1]))
def apart(model, rule):                                      # each process drew another student and another rule
    for p in [*model.parameters(), *rule.parameters()]: p.data += rank
    return DDP(model)
out = t.first_gradients(x, y, apart)
judge = t.judged(real, real.flip(0) - 1)
if rank == 0: torch.save((out, judge), sys.argv[2])
'''

@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path):
    x, y = (torch.tensor(o.tolist()) for o in tiny.loaders().train.new(shuffle=False, bs=12).one_batch())
    real = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
    torch.save((x, y, real), tmp_path/'batch.pt')
    (tmp_path/'half.py').write_text(HALF)
    run = subprocess.run([sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone', tmp_path/'half.py', tmp_path/'batch.pt', tmp_path/'out.pt'],
                         capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    got, judge = torch.load(tmp_path/'out.pt')
    for n, g in first_gradients(x, y).items(): assert g is None and got[n] is None or torch.allclose(got[n], g, atol=1e-5), n
    whole = judged(real, torch.cat([real[:6].flip(0), real[6:].flip(0)]) - 1)
    for n, v in whole.items(): assert torch.allclose(judge[n], v, atol=1e-4), n


# -- how strongly a rule pulls --------------------------------------------------------------------------------------------

def silent(rule='at', label_weight=1., **kw):
    "A learner whose rule is made and not heard; always the same student and first batch"
    torch.manual_seed(0)
    return distill_learner(tiny.loaders(), 'vit_nano', teachers=conv(), seed=0, verbose=False, check=False, student_kw=SMALL, rule=rule, weights=0.,
                           label_weight=label_weight, layers={'blocks.0': 'a'}, ramp=lambda p: 0., method='at', **kw)


def test_an_equal_pull_is_the_ratio_of_two_gradients():
    "By hand: the gradients of the first batch, of the labels' loss and of the rule's"
    learn = silent()
    cb, lengths = callback(learn), []
    class ByHand(Callback):
        def before_backward(self):
            label = nn.functional.cross_entropy(self.pred, self.y)
            rule = sum(cb.rule(cb.feats, cb.theirs).values())
            for loss in (label, rule):
                self.model.zero_grad()
                loss.backward(retain_graph=True)
                lengths.append(sum((p.grad**2).sum() for p in self.model.parameters() if p.grad is not None)**.5)
            raise CancelFitException()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0., cbs=ByHand())
    assert equal_pull(silent()) == pytest.approx(float(lengths[0]/lengths[1]), rel=1e-4)


def test_what_does_not_pull_cannot_be_weighed():
    assert equal_pull(silent(label_weight=4.)) == pytest.approx(4*equal_pull(silent()), rel=1e-4)
    with pytest.raises(ValueError, match='all other terms is 0'): equal_pull(silent(label_weight=0.))
    def mute(student, teacher, x, layers):
        made = make_rule('at', student, teacher, x, layers)
        made.forward = lambda s, t: {'at': 0*sum(f.tokens.sum() for f in s.values())}
        return made
    with pytest.raises(ValueError, match='the rule is 0'): equal_pull(silent(mute))


@pytest.mark.parametrize('kw, words', [(dict(layers='blocks.0'), "layers='blocks.0': it is a dict"), (dict(layers=[('blocks.0', 'layer1')]), 'it is a dict'),
                                       (dict(features='stored'), "features='stored'.*store_features"), (dict(stage_one='half'), "stage_one='half'")])
def test_arguments_of_another_kind_are_sentences(kw, words):
    with pytest.raises((TypeError, UserError), match=words): FeatureDistill(tiny.teacher('a', 1), **kw)
