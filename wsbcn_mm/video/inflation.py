"""Start a 3D ResNet from a 2D one: the inflated network answers a still video as the 2D network answers the picture."""

import re
from collections.abc import Mapping

import torch
from mmcv.cnn import ConvModule
from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ..layers import WSConv3d
from ..ops import weight_standardize
from .conv2plus1d import Conv2Plus1d

NORM_STATE = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked', 'group_weight', 'group_bias')
# For what a BatchNorm checkpoint may lack. Its statistics come from an unknown number of batches, past any warm-up.
DEFAULTS = {'group_weight': 1, 'group_bias': 0, 'num_batches_tracked': 1_000_000}


@WEIGHT_INITIALIZERS.register_module()
class Inflated2d:
    """`init_cfg=dict(type='Inflated2d', checkpoint=...)` of a `ResNet3d`; see `inflate_2d_`.

    Args:
        checkpoint: File, URL or model-zoo name that mmengine can load, of a 2D ResNet of the same depth.
        prefix: What precedes the backbone's names in the checkpoint, such as 'backbone.'.
    """

    def __init__(self, checkpoint: str, prefix: str = '') -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix

    def __call__(self, module: nn.Module) -> None:
        loaded = CheckpointLoader.load_checkpoint(self.checkpoint, map_location='cpu', logger='current')
        state = loaded.get('state_dict', loaded)
        state = {k.removeprefix('module.'): v for k, v in state.items()}
        state = {k.removeprefix(self.prefix): v for k, v in state.items() if k.startswith(self.prefix)}
        print_log(f'{self.checkpoint}: {inflate_2d_(module, state)}', logger='current')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'Inflated2d: load from {self.checkpoint}')


@torch.no_grad()
def inflate_2d_(model: nn.Module, state_2d: Mapping[str, Tensor]) -> str:
    """Copy a 2D ResNet into a `ResNet3d` in place.

    A filter is repeated over time. A plain convolution divides it by the number of repetitions; Weight Standardization
    undoes any factor, so there the response grows by a factor a channel instead, and the running statistics of the norm
    behind it grow with it (a norm without any cancels the factor by itself). The identity with the 2D network is exact
    away from the first and last frames, where convolutions see zeros.

    Args:
        model: A `ResNet3d` that is not factorised.
        state_2d: Parameters and buffers by torchvision's or mmseg's names (`conv1.weight`, `layer1.0.bn1.weight`,
            `layer1.0.downsample.0.weight`; `gn1` serves as well as `bn1`).

    Returns:
        What was done, for the log: how many layers were copied and which entries of `state_2d` were left.

    Raises:
        ValueError: If the model is factorised, a tensor is missing or has another shape, or a norm of another kind is
            found. Nothing is copied then.
    """
    if any(isinstance(m, Conv2Plus1d) for m in model.modules()):
        raise ValueError('a factorised convolution has no 2D counterpart: R(2+1)D cannot start from a 2D network')
    by_name = {canonical_name(name): tensor for name, tensor in state_2d.items()}
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, ConvModule)]
    used: set[str] = set()
    copies: list[tuple[Tensor, Tensor]] = []
    for name, layer in layers:
        weight, growth = _inflated(layer.conv, _take(by_name, f'{name}.conv.weight', layer.conv.weight, used))
        copies.append((layer.conv.weight, weight))
        own = {key: t for key, t in layer.norm.state_dict().items() if key in NORM_STATE}
        for key, tensor in layer.norm.named_parameters():
            copies.append((tensor, _take(by_name, f'{name}.norm.{key}', tensor, used, DEFAULTS.get(key))))
        for key, tensor in layer.norm.named_buffers():
            value = _take(by_name, f'{name}.norm.{key}', tensor, used, DEFAULTS.get(key))
            power = {'running_mean': 1, 'running_var': 2}.get(key, 0)
            copies.append((tensor, value * growth**power if power else value))
        surplus = [key for key in NORM_STATE if f'{name}.norm.{key}' in by_name and key not in own]
        if surplus:
            raise ValueError(
                f'the 2D checkpoint has {", ".join(surplus)} for {name}, which {type(layer.norm).__name__} lacks: '
                'it was trained with another kind of norm'
            )
    for target, value in copies:
        target.copy_(value)
    left = sorted(name for name in by_name if name not in used)
    text = f'inflated {len(layers)} of {len(layers)} convolutions, copied {len(layers)} norms'
    return text + (f'; left in the checkpoint: {", ".join(left)}' if left else '')


def canonical_name(name: str) -> str:
    """A 2D ResNet's name -> the layer's name in `ResNet3d`, with `norm` for the norm of whatever kind.

    >>> canonical_name('layer1.0.bn2.weight')
    'layer1.0.conv2.norm.weight'
    """
    name = re.sub(r'downsample\.0\.', 'downsample.conv.', name)
    name = re.sub(r'downsample\.1\.', 'downsample.norm.', name)
    name = re.sub(r'\bconv(\d)\.weight$', r'conv\1.conv.weight', name)
    return re.sub(r'\b(?:bn|gn|norm)(\d)\.', r'conv\1.norm.', name)


def _take(state: Mapping[str, Tensor], name: str, target: Tensor, used: set[str], default: int | None = None) -> Tensor:
    if name not in state:
        if default is None:
            raise ValueError(f'the 2D checkpoint has no {name}; it has {", ".join(sorted(state)[:5])}, ...')
        return torch.full_like(target, default)
    expected = target.shape[:2] + target.shape[3:] if target.ndim == 5 else target.shape
    if state[name].shape != expected:
        raise ValueError(f'{name} has shape {tuple(state[name].shape)} in the 2D checkpoint, must be {tuple(expected)}')
    used.add(name)
    return state[name]


def _inflated(conv: nn.Conv3d, weight_2d: Tensor) -> tuple[Tensor, Tensor]:
    """The 3D filter, and the factor (out_channels,) by which the response to a still video grows."""
    frames = conv.weight.shape[2]
    weight = weight_2d.unsqueeze(2).expand_as(conv.weight)
    if not isinstance(conv, WSConv3d):
        return weight / frames, weight.new_ones(len(weight))
    flat = weight_standardize(weight_2d, variant=conv.variant, eps=conv.ws_eps).flatten(1)
    summed = weight_standardize(weight, variant=conv.variant, eps=conv.ws_eps).sum(dim=2).flatten(1)
    return weight, (summed * flat).sum(dim=1) / flat.square().sum(dim=1).clamp_min(1e-30)
