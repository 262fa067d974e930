"""What timm asks of its own models, asked of every name that libkd registers, at small sizes and on the CPU.

Names are found in timm's registry by the module of their entry point, so a new room's models are tested without a word here."""
import importlib, pkgutil

import pytest, timm, torch
from timm.models import model_entrypoint

import libkd

torch.set_num_threads(1)
for room in pkgutil.iter_modules(libkd.__path__):
    if room.name in ('involution', 'teachers', 'students', 'features'): importlib.import_module(f'libkd.{room.name}')

NAMES = [n for n in timm.list_models() if model_entrypoint(n).__module__.split('.')[0] == 'libkd']
SMALL = 3_000_000                                      # parameters; larger ones are marked slow
with torch.device('meta'): SIZES = {n: sum(p.numel() for p in timm.create_model(n).parameters()) for n in NAMES}
EACH = [pytest.param(n, marks=[pytest.mark.slow] * (SIZES[n] > SMALL)) for n in NAMES]
each_name = pytest.mark.parametrize('name', EACH)


def is_token_model(name): return 'vit' in name


def side(name):
    "Pixels of a side: small images for models that would take larger ones"
    return min(64, timm.get_pretrained_cfg(name).input_size[-1])


def make(name, **kwargs):
    "Vision Transformers are built for one image size, others take any; large models are made of few blocks"
    torch.manual_seed(0)
    size = dict(img_size=side(name)) if is_token_model(name) else {}
    if SIZES[name] > SMALL: size |= dict(depth=2) if is_token_model(name) else dict(depths=(1, 1, 1, 1))
    return timm.create_model(name, **size | kwargs).eval()


def images(name, n=2, channels=3): return torch.randn(n, channels, side(name), side(name))


def some(names): return [names] if isinstance(names, str) else names


def test_names_are_found():
    assert {'rednet26', 'rednet38', 'rednet50', 'rednet101', 'rednet152', 'rednet_mini', 'resnet_mini'} <= set(NAMES)
    assert any('civt' in n for n in NAMES)


@each_name
def test_default_config_is_complete_and_true(name):
    model = make(name)
    cfg = model.pretrained_cfg
    assert cfg['architecture'] == name and model.default_cfg is cfg
    assert len(cfg['input_size']) == 3 and len(cfg['mean']) == len(cfg['std']) == 3 and 0 < cfg['crop_pct'] <= 1
    assert cfg['num_classes'] == model.num_classes
    modules = dict(model.named_modules())
    assert all(isinstance(modules[c], torch.nn.Conv2d) for c in some(cfg['first_conv']))
    assert all(modules[h].out_features == model.num_classes for h in some(cfg['classifier']))


@each_name
def test_forward_is_head_after_features(name):
    model, x = make(name, num_classes=7), images(name)
    with torch.no_grad():
        y, features = model(x), model.forward_features(x)
        assert y.shape == (2, 7) and y.isfinite().all()
        torch.testing.assert_close(model.forward_head(features), y)
        pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape[0] == 2 and pooled.shape[-1] == model.head_hidden_size


@each_name
def test_every_parameter_learns(name):
    model = make(name, num_classes=5).train()
    y = model(images(name))
    sum(o.square().mean() for o in (y.values() if isinstance(y, dict) else [y])).backward()
    without = [k for k, p in model.named_parameters() if p.grad is None]
    assert not without and all(p.grad.isfinite().all() for p in model.parameters())


@each_name
def test_reset_classifier(name):
    model, x = make(name), images(name)
    model.reset_classifier(0)
    with torch.no_grad(): assert model(x).shape == (2, model.num_features)
    model.reset_classifier(3)
    assert model.num_classes == 3
    with torch.no_grad(): assert model(x).shape == (2, 3)
    heads = model.get_classifier()
    assert all(h.out_features == 3 for h in (heads if isinstance(heads, (tuple, list, torch.nn.ModuleList)) else heads.values() if isinstance(heads, (dict, torch.nn.ModuleDict)) else [heads]))


@each_name
def test_other_channels(name):
    model = make(name, in_chans=1, num_classes=4)
    with torch.no_grad(): assert model(images(name, channels=1)).shape == (2, 4)


@each_name
def test_intermediates(name):
    model, x = make(name), images(name)
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        torch.testing.assert_close(last, model.forward_features(x))
        only = model.forward_intermediates(x, indices=1, intermediates_only=True)
        early = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
    assert len(maps) == len(model.feature_info) and all(m.ndim == 4 for m in maps)
    assert [m.shape[1] for m in maps] == [info['num_chs'] for info in model.feature_info]
    torch.testing.assert_close(only[0], maps[-1]); torch.testing.assert_close(early[0], maps[0])
    assert all(x.shape[-1]//m.shape[-1] == info['reduction'] for m, info in zip(maps, model.feature_info))
    with pytest.raises((AssertionError, ValueError)): model.forward_intermediates(x, output_fmt='nonsense')


@each_name
def test_features_only(name):
    model = make(name, features_only=True, out_indices=(0, 1))
    with torch.no_grad(): maps = model(images(name))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [side(name)//m.shape[-1] for m in maps] == model.feature_info.reduction()


@each_name
def test_pruned_model_gives_the_same_map(name):
    model, x = make(name), images(name)
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
        model.prune_intermediate_layers([1])
        torch.testing.assert_close(model.forward_intermediates(x, indices=[1], intermediates_only=True)[0], expected)


@each_name
def test_state_dict_round_trip(name, tmp_path):
    from safetensors.torch import save_file
    a, b, x = make(name, num_classes=3), make(name, num_classes=3), images(name)
    for p in b.parameters(): torch.nn.init.normal_(p)
    for m in a.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.normal_(0, .1); torch.nn.init.uniform_(m.weight, 0, .5)
    save_file(a.state_dict(), tmp_path/'model.safetensors')
    b.load_state_dict(timm.models.load_state_dict(str(tmp_path/'model.safetensors')))
    with torch.no_grad(): assert a(x).isfinite().all() and torch.equal(a(x), b(x))
    c = make(name, num_classes=3, checkpoint_path=str(tmp_path/'model.safetensors'))
    with torch.no_grad(): assert torch.equal(a(x), c(x))


@each_name
def test_groups_of_parameters(name):
    from timm.models import group_parameters
    model = make(name)
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sorted(k for v in groups.values() for k in v) == sorted(k for k, p in model.named_parameters()) and len(groups) > 2


@each_name
def test_checkpointing_gives_the_same_gradients(name):
    x = images(name)
    def grads(checkpointing):
        model = make(name, num_classes=3).train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(0)
        y = model(x)
        sum(o.square().sum() for o in (y.values() if isinstance(y, dict) else [y])).backward()
        return {k: p.grad for k, p in model.named_parameters()}
    plain, thrifty = grads(False), grads(True)
    for k in plain: torch.testing.assert_close(thrifty[k], plain[k], rtol=1e-4, atol=1e-5)


@each_name
def test_drop_rates_act_in_training_only(name):
    model, x = make(name, drop_rate=.5, drop_path_rate=.5, num_classes=3), images(name, 4)
    with torch.no_grad():
        assert torch.equal(model(x), make(name, num_classes=3)(x))
        model.train()
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm2d): m.eval()
        answers = [model(x) for _ in range(2)]
    a, b = (torch.stack(list(o.values())) if isinstance(o, dict) else o for o in answers)
    assert not torch.equal(a, b) or not a.any()        # heads that start at zero have nothing to drop


@pytest.mark.slow
@pytest.mark.parametrize('name', [n for n in NAMES if SIZES[n] <= SMALL])
def test_export(name):
    model, x = make(name, num_classes=3), images(name)
    program = torch.export.export(model, (x,))
    with torch.no_grad(): torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)
    assert not [n for n in program.graph.nodes if n.op == 'call_function' and str(n.target).startswith('libkd')]


@pytest.mark.parametrize('name', [n for n in NAMES if SIZES[n] <= SMALL and not is_token_model(n)])
def test_fx_features(name):
    model = make(name, features_only=True, feature_cls='fx', out_indices=(1, 2))
    plain = make(name, features_only=True, out_indices=(1, 2))
    x = images(name)
    with torch.no_grad():
        for a, b in zip(model(x), plain(x), strict=True): torch.testing.assert_close(a, b)


@pytest.mark.slow
@each_name
@pytest.mark.parametrize('train', [False, True])
def test_fx_traces_the_whole_model(name, train):
    "As timm traces its own: blocks are followed, modules it may not follow are single steps; the same answers and gradients."
    from timm.models import get_notrace_functions, get_notrace_modules
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
    how = dict(leaf_modules=get_notrace_modules(), autowrap_functions=get_notrace_functions(), param_shapes_constant=True)
    model, x = make(name, num_classes=5).train(train), images(name)
    in_training, in_eval = (nodes[-1] for nodes in get_graph_node_names(model, tracer_kwargs=how))
    traced = create_feature_extractor(model, train_return_nodes=[in_training], eval_return_nodes=[in_eval], tracer_kwargs=how).train(train)
    answer, = traced(x).values()
    if not train: torch.testing.assert_close(answer, model(x))
    answer.square().mean().backward()
    assert answer.shape == (2, 5) and all(p.grad is not None for p in model.parameters())


@each_name
def test_feature_maps_have_the_size_in_the_config(name):
    "timm's `pool_size` is the last map of convolutional models"
    if is_token_model(name): return
    with torch.device('meta'):
        model = timm.create_model(name)
        assert model.forward_features(torch.empty(1, *model.pretrained_cfg['input_size'])).shape[-2:] == model.pretrained_cfg['pool_size']


@each_name
def test_pretrained_weights_are_not_pretended(name):
    if timm.get_pretrained_cfg(name).has_weights: pytest.skip('has weights')
    with torch.device('meta'), pytest.raises(RuntimeError, match='[Pp]retrained'): timm.create_model(name, pretrained=True)


def pruned(model, *args, **kwargs):
    import copy
    model = copy.deepcopy(model)
    model.prune_intermediate_layers(*args, **kwargs)
    return model


@pytest.mark.slow
@pytest.mark.parametrize('name', [n for n in NAMES if SIZES[n] <= SMALL])
def test_pruning_keeps_answers_and_ends_at_the_last_map(name):
    "The last map needs everything, so the head answers as before; a pruned model's features are the map to which it was pruned"
    model, x = make(name, num_classes=3), images(name)
    last = len(model.feature_info) - 1
    with torch.no_grad():
        torch.testing.assert_close(pruned(model, [last], prune_head=False)(x), model(x))
        maps = model.forward_intermediates(x, intermediates_only=True)
        for i in range(last + 1):
            features = pruned(model, [i], prune_norm=True).forward_features(x)
            if features.ndim == 4: torch.testing.assert_close(features, maps[i])
        if not is_token_model(name):
            short = pruned(model, [0])
            short.reset_classifier(4, 'avg')
            assert short(x).shape == (2, 4)


def test_pruning_to_the_stem_leaves_out_the_pooling_behind_it():
    model, x = timm.create_model('rednet_mini', max_pool=True).eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        stem = model.forward_intermediates(x, indices=[0], intermediates_only=True)[0]
        torch.testing.assert_close(pruned(model, [0]).forward_features(x), stem)


@each_name
def test_models_are_made_where_and_as_one_says(name):
    model = timm.create_model(name, device='meta', dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {('meta', torch.float64)}
    assert {b.device.type for b in model.buffers()} <= {'meta'}
    model.eval().requires_grad_(False)
    for n in (0, 2): model.reset_classifier(n)
    heads = model.get_classifier()
    heads = heads if isinstance(heads, (tuple, list)) else heads.values() if isinstance(heads, dict) else [heads]
    new = [p for h in heads for p in h.parameters()]
    assert new and {(p.device.type, p.dtype) for p in new} == {('meta', torch.float64)} and not any(m.training for m in model.modules())
