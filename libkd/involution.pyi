"""Turn a convolution inside out: understand involution, run it without copies, and build RedNets by name."""
# Made from the modules by `make prepare`: do not edit
from torch import Tensor, nn
from typing import Any
import torch

__all__ = ['involution2d', 'Involution2d', 'InvolutionBlock', 'RedNet', 'rednet_filter', 'rednet26', 'rednet38',
           'rednet50', 'rednet101', 'rednet152', 'rednet_mini']

BACKENDS: tuple
def involution2d(x: Tensor, weight: Tensor, stride: int = 1, backend: str = 'auto') -> Tensor: ...
class Involution2d(nn.Module):
    channels: int
    kernel_size: int
    stride: int
    backend: str
    groups: Any
    pool: Any
    reduce: Any
    norm: Any
    act: Any
    span: Any
    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        stride: int = 1,
        group_channels: int = 16,
        reduction_ratio: int = 4,
        backend: str = 'auto',
    ): ...
    def kernels(self, x) -> torch.Tensor: ...
    def forward(self, x): ...
    def extra_repr(self): ...
class InvolutionBlock(nn.Module):
    conv1: Any
    bn1: Any
    inv: Involution2d
    bn2: Any
    conv3: Any
    bn3: Any
    downsample: Any
    act: Any
    drop_path: Any
    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int = 1,
        kernel_size: int = 7,
        expansion: int = 4,
        drop_path: float = 0.0,
    ): ...
    def forward(self, x): ...
class RedNet(nn.Module):
    num_classes: Any
    in_chans: Any
    drop_rate: Any
    grad_checkpointing: bool
    stem: Any
    pool: Any
    stages: Any
    num_features: Any
    head_hidden_size: Any
    head: Any
    feature_info: Any
    def __init__(
        self,
        depths=(3, 4, 6, 3),
        widths=(256, 512, 1024, 2048),
        kernel_sizes=(7, 7, 7, 7),
        strides=(1, 2, 2, 2),
        stem_width=64,
        stem_stride=2,
        max_pool=True,
        expansion=4,
        in_chans=3,
        num_classes=1000,
        global_pool='avg',
        drop_rate=0.0,
        drop_path_rate=0.0,
    ): ...
    def forward_features(self, x): ...
    def forward_head(self, x, pre_logits: bool = False): ...
    def forward(self, x): ...
    def get_classifier(self) -> nn.Module: ...
    def reset_classifier(self, num_classes: int, global_pool: str | None = None): ...
    def set_grad_checkpointing(self, enable: bool = True): ...
    def group_matcher(self, coarse: bool = False): ...
    def forward_intermediates(
        self,
        x,
        indices=None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ): ...
    def prune_intermediate_layers(self, indices=1, prune_norm: bool = False, prune_head: bool = True): ...
    def checkpoint_names(self, state_dict) -> dict: ...
default_cfgs: Any
def rednet_filter(state_dict: dict, model=None) -> dict: ...
def rednet26(pretrained=False, **kwargs) -> RedNet: ...
def rednet38(pretrained=False, **kwargs) -> RedNet: ...
def rednet50(pretrained=False, **kwargs) -> RedNet: ...
def rednet101(pretrained=False, **kwargs) -> RedNet: ...
def rednet152(pretrained=False, **kwargs) -> RedNet: ...
def rednet_mini(pretrained=False, **kwargs) -> RedNet: ...
