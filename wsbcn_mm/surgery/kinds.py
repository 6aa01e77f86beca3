"""Kinds of layers: classify convolutions and norms of any package."""

from collections import Counter

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ..layers import BatchChannelNorm
from ..layers.ws_conv import _WSConv

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WS_OF_OTHERS = ('ConvWS2d', 'ConvAWS2d', 'StdConv2d', 'StdConv2dSame')
"""Convolutions with Weight Standardization in mmcv and timm."""

BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""BatchNorm class by the rank of its input."""


def norm_kind(module: nn.Module) -> str | None:
    """Return the kind of a normalisation layer, None for any other module."""
    if isinstance(module, BatchChannelNorm):
        return 'BCN' if module.statistics == 'estimated' else f'BCN ({module.statistics})'
    if isinstance(module, nn.SyncBatchNorm):
        return 'SyncBN'
    for kind, types in (('BN', _BatchNorm), ('GN', nn.GroupNorm), ('LN', nn.LayerNorm), ('IN', _InstanceNorm)):
        if isinstance(module, types):
            return kind
    return None


def conv_kind(module: nn.Module) -> str | None:
    """Return 'WS' or 'plain' for a convolution, None for any other module. Others' WS classes are known by name."""
    if not isinstance(module, _ConvNd):
        return None
    standardised = isinstance(module, _WSConv) or any(base.__name__ in WS_OF_OTHERS for base in type(module).__mro__)
    return 'WS' if standardised else 'plain'


def num_channels(norm: nn.Module) -> int | None:
    """Return the channels of a batch, group, instance or batch-channel norm, None for any other module."""
    if isinstance(norm, nn.GroupNorm):
        return norm.num_channels
    return norm.num_features if isinstance(norm, (_BatchNorm, _InstanceNorm)) else None


def count_convs(model: nn.Module) -> Counter[str]:
    """Count convolutions by kind."""
    return Counter(kind for module in model.modules() if (kind := conv_kind(module)))


def count_norms(model: nn.Module) -> Counter[str]:
    """Count norms by kind."""
    return Counter(kind for module in model.modules() if (kind := norm_kind(module)))


def unknown_statistics(model: nn.Module) -> list[str]:
    """Return the names of modules that keep running statistics but are not a known norm."""
    return [
        name
        for name, module in model.named_modules()
        if norm_kind(module) is None and getattr(module, 'running_mean', None) is not None
    ]
