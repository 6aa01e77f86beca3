"""Replace one layer by another: carry over what the mathematics allows, and name what is lost."""

from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from .. import layers
from ..layers import BatchChannelNorm
from ..layers.ws_conv import _WSConv
from .kinds import BATCH_NORMS, CONVS, num_channels

BCN_STATISTICS: dict[str, Literal['estimated', 'batch', 'sync']] = {
    'BCN': 'estimated',
    'BCN (batch)': 'batch',
    'BCN (sync)': 'sync',
}
"""Argument `statistics` by the kind of the norm."""

CALL_HOOKS = (
    '_forward_pre_hooks',
    '_forward_pre_hooks_with_kwargs',
    '_forward_hooks',
    '_forward_hooks_with_kwargs',
    '_forward_hooks_always_called',
    '_backward_pre_hooks',
    '_backward_hooks',
    '_is_full_backward_hook',
)
STATE_HOOKS = (
    '_state_dict_pre_hooks',
    '_state_dict_hooks',
    '_load_state_dict_pre_hooks',
    '_load_state_dict_post_hooks',
)


def why_irreplaceable(layer: nn.Module) -> str | None:
    """Explain why this convolution or norm cannot be replaced; None if it can.

    The forward of torch's classes and of this package's is known. A subclass that does not change it, such as
    torchvision's `Conv3DSimple`, can be replaced too. Any other subclass may compute something that would be lost.
    """
    kind = type(layer).__name__
    if is_parametrized(layer):
        return f'{kind} is parametrized'
    if isinstance(layer, _ConvNd) and 'weight' not in layer._parameters:
        return f'a hook computes the weight of {kind}'
    known = next(base for base in type(layer).__mro__ if base.__module__.startswith(('torch.nn.', layers.__name__)))
    if 'forward' in vars(layer) or any(
        getattr(type(layer), method, None) is not getattr(known, method, None)
        for method in ('forward', '_conv_forward')
    ):
        return f'{kind} has its own forward'
    if any(is_lazy(p) for p in layer.parameters()):
        return f'{kind} has no shape before its first forward'
    if getattr(layer, 'process_group', None) is not None:
        return f'{kind} synchronises within its own process group'
    if any(getattr(layer, hooks) for hooks in STATE_HOOKS):
        return f'{kind} has hooks on its state, which expect its keys'
    return None


def standardized_conv(conv: _ConvNd, variant: str, gain: str | None = None) -> _WSConv:
    """Return `conv` with Weight Standardization and the same parameter objects.

    Raises:
        ValueError: For an unknown variant or gain, or a fan-in of 1.
    """
    new = _conv_like(conv, getattr(layers, f'WS{_torch_class(conv).__name__}'), variant=variant, gain=gain)
    assert isinstance(new, _WSConv)
    return new


def plain_conv(conv: _ConvNd) -> nn.Module:
    """Return `conv` as torch's own convolution with the same parameter objects."""
    return _conv_like(conv, _torch_class(conv))


def _torch_class(conv: nn.Module) -> type[nn.Module]:
    return next(kind for kind in CONVS if isinstance(conv, kind))


def _conv_like(conv: _ConvNd, kind: type[nn.Module], **options: Any) -> nn.Module:
    if conv.transposed:
        options['output_padding'] = conv.output_padding
    new = kind(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device='meta',
        **options,
    )
    for name, parameter in conv.named_parameters(recurse=False):
        setattr(new, name, parameter)
    return take_over(new, conv)


def filter_scale(conv: _WSConv) -> Tensor:
    """Return the scale s (O,) of each filter in W = s * standardised W + mean; 1 for a constant filter."""
    weight, standardized = (filters(conv, w.detach().double()) for w in (conv.weight, conv.standardized_weight()))
    squares = standardized.square().sum(1)
    return torch.where(squares > 0, (weight * standardized).sum(1) / squares, 1.0)


def filters(conv: _WSConv, weight: Tensor) -> Tensor:
    """Return the filters in a weight, (O, fan-in)."""
    if conv.transposed:
        weight = weight.unflatten(0, (conv.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)


def statistics_at_start(norm: nn.Module) -> bool:
    """Return whether a norm has no running statistics, or only its initial ones."""
    mean, var = getattr(norm, 'running_mean', None), getattr(norm, 'running_var', None)
    return mean is None or var is None or (_holds(mean == 0) and _holds(var == 1))


@torch.no_grad()
def divide_statistics(norm: nn.Module, scale: Tensor, bias: Tensor | None) -> None:
    """Convert the running statistics to filters divided by `scale` (C,), with unchanged `bias` (C,)."""
    mean, var = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(var, Tensor)
    constant = 0.0 if bias is None else bias.double()
    mean.copy_((mean.double() - constant) / scale + constant)
    var.copy_(var.double() / scale.square())


@torch.no_grad()
def reset_statistics(norm: nn.Module) -> None:
    """Reset the running statistics to their initial values."""
    for name, value in (('running_mean', 0), ('running_var', 1), ('num_batches_tracked', 0)):
        getattr(norm, name).fill_(value)


class _Parts(NamedTuple):
    """Tensors and settings to carry over from a norm."""

    batch: list[Tensor]
    """Scale and shift of the batch half, or an empty list."""
    channel: list[Tensor]
    """Scale and shift of the channel half, or an empty list."""
    running: dict[str, Tensor]
    """Buffers."""
    shape: dict[str, Any]
    """Arguments eps, device and dtype of torch's constructors."""


def _parts(norm: nn.Module) -> _Parts:
    own: list[Tensor] = [p for name in ('weight', 'bias') if (p := norm._parameters.get(name)) is not None]
    running = {name: buffer for name, buffer in norm._buffers.items() if buffer is not None}
    tensors = (t for t in chain(norm.parameters(), norm.buffers()) if t.is_floating_point())
    shape = dict(eps=norm.eps) | next((dict(device=t.device, dtype=t.dtype) for t in tensors), {})
    if isinstance(norm, BatchChannelNorm):
        return _Parts(own, [norm.group_weight, norm.group_bias], running, shape)
    return _Parts([], own, {}, shape) if isinstance(norm, nn.GroupNorm) else _Parts(own, [], running, shape)


def new_norm(
    old: nn.Module, kind: str, *, rank: int | None = None, groups: int = 32, rate: float = 0.1, warmup: bool = True
) -> tuple[nn.Module, str]:
    """Return a norm of another kind for a batch, group or batch-channel norm, and a note on what is lost.

    BatchNorm is the batch half of BatchChannelNorm, GroupNorm its channel half. Between BatchNorm and GroupNorm the
    affine is carried over, but the running statistics cannot be. Tensors of the same shape remain the same objects; new
    ones start as 1 and 0.

    Args:
        old: The norm.
        kind: Kind of the new norm, as named by `wsbcn_mm.surgery.kinds.norm_kind`.
        rank: Number of axes of its input, for BatchNorm.
        groups: Number of groups, for GroupNorm and BatchChannelNorm.
        rate: Rate of BatchChannelNorm.
        warmup: Warm-up of BatchChannelNorm, if it starts without statistics.
    """
    if kind == 'GN':
        new, lost = _group_norm(old, groups)
    elif kind.startswith('BCN'):
        warmup = warmup and statistics_at_start(old)
        new, lost = _batch_channel_norm(old, BCN_STATISTICS[kind], groups, rate, warmup), ''
    else:
        new, lost = _batch_norm(old, nn.SyncBatchNorm if rank is None else BATCH_NORMS[rank])
    trains = all(p.requires_grad for p in old.parameters())
    carried = {id(p) for p in old.parameters()}
    for p in new.parameters():
        if id(p) not in carried:
            p.requires_grad_(trains)
    return take_over(new, old), lost


def _group_norm(old: nn.Module, groups: int) -> tuple[nn.Module, str]:
    parts, channels = _parts(old), channels_of(old)
    affine = [_spread(p, channels) for p in parts.channel or parts.batch]
    new = nn.GroupNorm(groups, channels, affine=bool(affine), **parts.shape)
    _set_parameters(new, ('weight', 'bias'), affine)
    lost = [] if statistics_at_start(old) else ['running statistics']
    if parts.channel and parts.batch and not _is_identity(parts.batch):
        lost.append('affine of the batch half')
    return new, _without(lost)


def _batch_channel_norm(
    old: nn.Module, statistics: Literal['estimated', 'batch', 'sync'], groups: int, rate: float, warmup: bool
) -> nn.Module:
    parts, channels = _parts(old), channels_of(old)
    channel = parts.channel
    if channel and len(channel[0]) != groups:
        channel = _by_group(channel, channels, groups)
    per_channel = channel and len(channel[0]) != groups
    new = BatchChannelNorm(
        channels,
        groups,
        statistics=statistics,
        rate=rate,
        warmup=warmup,
        affine='channel' if per_channel else 'group',
        **parts.shape,
    )
    _set_parameters(new, ('weight', 'bias'), parts.batch)
    _set_parameters(new, ('group_weight', 'group_bias'), channel)
    new._buffers.update(parts.running)
    return new


def _batch_norm(old: nn.Module, kind: type[_BatchNorm]) -> tuple[nn.Module, str]:
    parts = _parts(old)
    affine = parts.batch or parts.channel
    options: dict[str, Any] = dict(affine=bool(affine))
    if isinstance(old, _BatchNorm):
        options |= dict(momentum=old.momentum, track_running_stats=old.track_running_stats)
    new = kind(channels_of(old), **options, **parts.shape)
    _set_parameters(new, ('weight', 'bias'), affine)
    new._buffers.update(parts.running)
    loses_channel_half = parts.batch and parts.channel and not _is_identity(parts.channel)
    return new, _without(['affine of the channel half'] if loses_channel_half else [])


def _without(lost: list[str]) -> str:
    return f'without the {" and the ".join(lost)}' if lost else ''


def channels_of(norm: nn.Module) -> int:
    """Return `num_channels` of a norm that is known to have channels."""
    channels = num_channels(norm)
    assert channels is not None
    return channels


def _spread(affine: Tensor, channels: int) -> Tensor:
    """Expand (G,) to (C,); return the same object if it is (C,)."""
    return affine if len(affine) == channels else affine.detach().repeat_interleave(channels // len(affine))


def _by_group(affine: list[Tensor], channels: int, groups: int) -> list[Tensor]:
    """Return one value per group if all channels of every group share it, else one per channel."""
    spread = [_spread(p, channels) for p in affine]
    views = [p.detach().view(groups, -1) for p in spread]
    return [view[:, 0] for view in views] if all(_holds(view == view[:, :1]) for view in views) else spread


def _holds(condition: Tensor) -> bool:
    """Return whether all values are true; True on the meta device, which has no values."""
    return condition.is_meta or bool(condition.all())


def _set_parameters(norm: nn.Module, names: tuple[str, str], values: list[Tensor]) -> None:
    """Replace two parameters of a norm; parameter objects are reused, and without values nothing changes."""
    for name, value in zip(names, values, strict=False):
        norm._parameters[name] = value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().clone())


def _is_identity(affine: list[Tensor]) -> bool:
    weight, bias = affine
    return _holds(weight == 1) and _holds(bias == 0)


def take_over(new: nn.Module, old: nn.Module) -> nn.Module:
    """Give `new` the mode and the hooks of `old`; the hooks' handles keep working."""
    new.train(old.training)
    for name in CALL_HOOKS:
        setattr(new, name, getattr(old, name))
    return new


def replace_modules(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Replace the old modules by the new ones in every place below `model`."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[name] = new[child]
