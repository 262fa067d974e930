"Checkpoints: weights from anywhere come in by one door, and what has nothing in common with the model is refused."
import pickle
from pathlib import Path

import pytest, timm, torch
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import libkd
from libkd.checkpoints import CheckpointError, MissingFile, bare, load_weights, plain_name, read_checkpoint, unwrapped

def net(seed=0, **kw):
    torch.manual_seed(seed)
    return timm.create_model('resnet10t', num_classes=3, **kw).eval()

@pytest.fixture(scope='module')
def one(): return net()

def prefixed(p): return lambda m: {p + k: v for k, v in m.state_dict().items()}
KINDS = {
    'plain': lambda m: m.state_dict(), 'model': lambda m: {'model': m.state_dict(), 'epoch': 1}, 'state_dict': lambda m: {'state_dict': m.state_dict(), 'optimizer': {}},
    'twice': lambda m: {'state_dict': {'model': m.state_dict()}}, 'module inside': lambda m: {'net': m}, 'module': lambda m: m,
    'ema first': lambda m: {'state_dict': net(1).state_dict(), 'state_dict_ema': m.state_dict()},
    'ddp': prefixed('module.'), 'compiled': prefixed('_orig_mod.'), 'lightning': prefixed('model.'), 'all three': prefixed('model._orig_mod.module.'),
    'ddp twice': prefixed('module.module.'), 'data parallel': lambda m: nn.DataParallel(m), 'compiled module': lambda m: torch.compile(m), 'averaged': lambda m: AveragedModel(m),
    'one block compiled': lambda m: {k.replace('layer1.', 'layer1._orig_mod.'): v for k, v in m.state_dict().items()},
}

@pytest.mark.parametrize('kind', KINDS)
def test_every_wrapper_is_taken_off(one, kind):
    fresh = net(1)
    fresh.load_state_dict(read_checkpoint(KINDS[kind](one), fresh))
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), one.state_dict().values()))

def test_a_compiled_model_takes_weights(one):
    "The target may be wrapped, too."
    fresh = net(1)
    assert list(read_checkpoint(one.state_dict(), torch.compile(fresh))) == list(fresh.state_dict())

def test_a_part_called_model_keeps_its_name():
    class Outer(nn.Module):
        def __init__(self): super().__init__(); self.model, self.module = nn.Linear(3, 2), nn.Linear(2, 2)
    m = Outer()
    for p in ('', 'module.', 'model.', '_orig_mod.module.'):
        assert set(read_checkpoint({p + k: v for k, v in m.state_dict().items()}, m)) == set(m.state_dict())

def test_two_models_in_one_are_refused(one):
    both = {**one.state_dict(), **{f'module.{k}': v for k, v in one.state_dict().items()}}
    with pytest.raises(CheckpointError, match='more than one model'): read_checkpoint(both, one)

@pytest.mark.parametrize('seed', [0, 1])
def test_pruned_and_normalised_weights_are_put_together(seed):
    m = net(seed)
    prune.l1_unstructured(m.conv1[0], 'weight', .5); prune.random_structured(m.layer1[0].conv1, 'weight', .5, dim=0)
    torch.nn.utils.weight_norm(m.layer2[0].conv1); torch.nn.utils.parametrizations.weight_norm(m.layer3[0].conv1)
    x, fresh = torch.randn(2, 3, 32, 32), net(9)
    fresh.load_state_dict(read_checkpoint(m.state_dict(), fresh))
    torch.testing.assert_close(fresh(x), m(x))
    m.load_state_dict(read_checkpoint(m.state_dict(), m))            # a model with the same tools keeps the parts

@pytest.mark.parametrize('other', ['vit_tiny_patch16_224', 'mixer_s32_224', 'convnext_atto'])
def test_nothing_that_fits_is_refused(one, other):
    with pytest.raises(CheckpointError, match='nothing in .* fits'): read_checkpoint(timm.create_model(other, num_classes=3), one)

def test_counters_and_biases_alone_are_nothing(one):
    sd = {k: v for k, v in one.state_dict().items() if v.ndim < 2}
    with pytest.raises(CheckpointError, match='nothing in'): read_checkpoint(sd, one)

@pytest.mark.parametrize('junk', [{}, {'state_dict': {}}, {'epoch': 3}, {'a': 1, 'b': 'x'}, [1], 7, None, 'model'])
def test_what_is_no_state_dict(one, junk):
    with pytest.raises(libkd.UserError): read_checkpoint(junk, one)

class Bomb:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (Path.touch, (self.path,))

def test_no_code_of_a_file_runs(one, tmp_path):
    torch.save({'state_dict': one.state_dict(), 'extra': Bomb(tmp_path/'ran')}, tmp_path/'w.pth')
    (tmp_path/'raw.pth').write_bytes(pickle.dumps(Bomb(tmp_path/'ran')))
    for name in ('w.pth', 'raw.pth'):
        with pytest.raises(CheckpointError): read_checkpoint(tmp_path/name, one)
    assert not (tmp_path/'ran').exists()

@pytest.mark.parametrize('name', ['w.pth', 'w.safetensors'])
@pytest.mark.parametrize('keep', [0, 100, .5, -1])
def test_a_cut_file_is_a_sentence(one, tmp_path, name, keep):
    from safetensors.torch import save_file
    (save_file if name.endswith('safetensors') else torch.save)(one.state_dict(), tmp_path/name)
    raw = (tmp_path/name).read_bytes()
    (tmp_path/name).write_bytes(raw[:int(keep*len(raw)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match='cannot be read|more than weights'): load_weights(tmp_path/name)

def test_missing_file_and_scripted_module(one, tmp_path):
    with pytest.raises(MissingFile, match='is no file'): load_weights(tmp_path/'gone.pth')
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(3, 2))), tmp_path/'s.pt')
    with pytest.raises(CheckpointError, match='load it yourself'): load_weights(tmp_path/'s.pt')

def test_timms_own_rules_are_used():
    "A patch embedding of another size is resampled by timm's filter, positions by ours."
    small, large = (timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=p, depth=1, num_classes=3) for p in (4, 8))
    sd = read_checkpoint(small.state_dict(), large)
    assert sd['patch_embed.proj.weight'].shape == large.patch_embed.proj.weight.shape and sd['pos_embed'].shape == large.pos_embed.shape
    large.load_state_dict(sd)

def test_a_file_named_in_timms_overlay_must_fit(one, tmp_path):
    torch.save(one.state_dict(), tmp_path/'w.pth')
    import libkd.students, libkd.involution
    for name in ('vit_civt_nano', 'vit_nano', 'rednet_mini'):
        with pytest.raises(CheckpointError, match='nothing in'):
            timm.create_model(name, pretrained=True, num_classes=5, pretrained_cfg_overlay=dict(file=str(tmp_path/'w.pth')))

def test_names_and_models_are_bared(one):
    assert plain_name('module._orig_mod.model.fc.weight') == 'fc.weight' and plain_name('model.fc.weight', {'model.fc.weight'}) == 'model.fc.weight'
    assert bare(torch.compile(nn.DataParallel(AveragedModel(one)))).fc.out_features == 3
    assert list(unwrapped({'model': one})) == list(one.state_dict())
