"""Fold a trained model for deployment: what is left are torch's own layers, which know nothing of this package.

    convolution -> BCN   =   convolution' -> GroupNorm        in evaluation, without approximation

    W' = s * W_hat    b' = s * (b - running_mean) + bias    s = weight / sqrt(running_var + eps)    per output channel

W_hat is the standardised filter (baked in), s and b' the batch half of BCN, which is an affine map per channel once the
running statistics stand still. The channel half is live and stays: it is GroupNorm. Plain BatchNorm and GroupNorm are
left as they are; BatchNorm can be fused afterwards by whoever fuses it (mmcv's `fuse_conv_bn`, onnxruntime).
"""

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import skip_init

from ..layers import BatchChannelNorm
from ..layers.ws_conv import _WSConv
from .kinds import conv_kind, norm_kind
from .trace import Trace, trace

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""Kind of BatchNorm by the rank of its input."""


@dataclass(frozen=True)
class FoldReport:
    """What `fold` did, by the names of the layers."""

    baked: tuple[str, ...]
    """WS convolutions that are plain ones now."""
    absorbed: dict[str, str]
    """Norm whose batch half moved into a convolution, and that convolution."""
    separate: dict[str, str]
    """Norm whose batch half stays a BatchNorm of its own before the GroupNorm, and why."""
    left: tuple[str, ...]
    """Convolutions and norms of other packages, which the folded model still needs."""
    difference: float
    """Largest absolute difference of the outputs on the example input."""
    scale: float
    """Largest absolute output."""

    def __str__(self) -> str:
        lines = [
            f'folded: {len(self.baked)} WS convolutions baked, {len(self.absorbed)} BCN absorbed by their convolution, '
            f'{len(self.separate)} BCN kept as BatchNorm + GroupNorm',
            *(f'  {norm} kept: {reason}' for norm, reason in self.separate.items()),
            *(f"  {name} left: its class is neither torch's nor of this package" for name in self.left),
            f'outputs differ by at most {self.difference:.1e}, where they reach {self.scale:.1e}',
        ]
        return '\n'.join(lines)


def fold(model: nn.Module, *inputs: Any, tolerance: float = 1e-5) -> tuple[nn.Module, FoldReport]:
    """Copy a model into evaluation mode without WSConv and BatchChannelNorm layers, and compare the two.

    The convolution before a BCN is found by running the model on `inputs`, not from names. All that it gives must go to
    that norm, and all that the norm takes must be its. Any other BCN (pre-activation, a norm that several convolutions
    share) becomes `nn.Sequential(BatchNorm, GroupNorm)`, which is as exact and costs a pass over the data.

    The result does not train, since a baked filter would no longer be standardised: no parameter requires a gradient,
    and a forward pass in training mode raises RuntimeError.

    Args:
        model: Any module with layers of this package; it is not changed.
        *inputs: An example of what its forward takes.
        tolerance: Largest difference of the outputs that is accepted, as a part of their largest absolute value or
            of 1, whichever is larger.

    Returns:
        The folded copy and what was done.

    Raises:
        ValueError: If a BCN is not reached by the example input, or receives what no BatchNorm takes.
        RuntimeError: If the outputs differ by more than `tolerance`.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    outputs: list[Any] = []
    seen = trace(folded, lambda: outputs.append(folded(*inputs)))
    layers: dict[str, Any] = dict(folded.named_modules())
    foldable = {norm: conv for conv, norm in seen.pairs.items() if is_foldable(layers[conv])}
    norms = {name: layer for name, layer in layers.items() if isinstance(layer, BatchChannelNorm)}
    unreached = [name for name in norms if name not in seen.sources]
    if unreached:
        raise ValueError(
            f'{len(unreached)} BCN are not reached by the example input, `{unreached[0]}` first: fold the part of the '
            'model that is deployed'
        )

    new: dict[nn.Module, nn.Module] = {
        layer: plain_conv(layer, layer.standardized_weight(), layer.bias)
        for layer in layers.values()
        if isinstance(layer, _WSConv)
    }
    absorbed: dict[str, str] = {}
    separate: dict[str, str] = {}
    for name, norm in norms.items():
        if name in foldable:
            absorbed[name] = foldable[name]
            conv = layers[foldable[name]]
            new[conv], new[norm] = absorb(conv, norm), group_norm(norm)
        else:
            separate[name] = why_separate(name, seen)
            new[norm] = nn.Sequential(batch_norm(norm, rank_of(name, seen)), group_norm(norm))
    folded = replace_modules(folded, new).eval().requires_grad_(False)

    with torch.no_grad():
        difference, scale = largest_difference(outputs[0], folded(*inputs))
    if not difference <= tolerance * max(1.0, scale):
        raise RuntimeError(
            f'the folded model differs from the original by {difference:.1e} where outputs reach {scale:.1e} '
            f'(tolerance {tolerance:g}): layers are used in a way that a forward pass does not show, such as a '
            'convolution before a norm whose output is also returned, or hooks on layers'
        )
    folded.register_forward_pre_hook(refuse_training)
    return folded, FoldReport(
        baked=tuple(name for name, layer in layers.items() if isinstance(layer, _WSConv)),
        absorbed=absorbed,
        separate=separate,
        left=tuple(name for name, layer in folded.named_modules() if is_foreign(layer)),
        difference=difference,
        scale=scale,
    )


def refuse_training(model: nn.Module, _inputs: Any) -> None:
    """Forward pre-hook of a folded model."""
    if model.training or (torch.is_grad_enabled() and any(p.requires_grad for p in model.parameters())):
        raise RuntimeError(
            'this model is folded for deployment and does not train: its filters would no longer be standardised. '
            'Train the model that it was folded from; .eval() and .requires_grad_(False) make this one run again'
        )


def require_folded(model: nn.Module) -> None:
    """Raise ValueError for a model that still has layers of this package."""
    kinds = Counter(type(m).__name__ for m in model.modules() if isinstance(m, (_WSConv, BatchChannelNorm)))
    if kinds:
        found = ', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))
        raise ValueError(f'the model still has {found}: fold it first, with wsbcn_mm.surgery.fold.fold')


def is_foldable(conv: nn.Module) -> bool:
    """Whether a plain convolution of torch can take the place of `conv`; the forward of another's class is unknown."""
    return isinstance(conv, _WSConv) or type(conv) in CONVS


def is_foreign(layer: nn.Module) -> bool:
    kind = conv_kind(layer) or norm_kind(layer)
    return kind is not None and not type(layer).__module__.startswith('torch.nn.')


def why_separate(norm: str, seen: Trace) -> str:
    """Why no convolution absorbs the batch half of a norm."""
    sources = set(seen.sources[norm])
    if None in sources:
        return 'no convolution directly before it'
    if len(sources) > 1:
        return f'runs after {len(sources)} convolutions: {", ".join(sorted(map(str, sources)))}'
    conv = str(sources.pop())
    others = sorted(set(chain.from_iterable(seen.receivers[conv])) - {norm})
    return f'the output of {conv} also goes to {", ".join(others)}' if others else f'{conv} is no layer of torch'


def rank_of(norm: str, seen: Trace) -> int:
    """Number of axes of what a norm receives.

    Raises:
        ValueError: If no BatchNorm takes it.
    """
    ranks = {len(shape) for shape in seen.input_shapes[norm]}
    if not ranks <= BATCH_NORMS.keys() or len({BATCH_NORMS[rank] for rank in ranks}) > 1:
        raise ValueError(f'BCN `{norm}` receives inputs of {sorted(ranks)} axes: 2 to 5, always the same, are expected')
    return ranks.pop()


def absorb(conv: _ConvNd, norm: BatchChannelNorm) -> nn.Module:
    """`conv` as a plain convolution with the batch half of `norm` in its weight and bias."""
    weight = exact(conv.standardized_weight() if isinstance(conv, _WSConv) else conv.weight)
    scale = exact(norm.weight) / torch.sqrt(exact(norm.running_var) + norm.eps)
    bias = exact(norm.bias) - exact(norm.running_mean) * scale
    if conv.bias is not None:
        bias = bias + exact(conv.bias) * scale
    kernel_axes = (1,) * len(conv.kernel_size)
    if conv.transposed:
        by_group = weight.unflatten(0, (conv.groups, -1))  # (G, I/G, O/G, *k)
        weight = (by_group * scale.view(conv.groups, 1, -1, *kernel_axes)).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, 1, *kernel_axes)
    return plain_conv(conv, weight, bias)


def plain_conv(conv: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """torch's own convolution with the geometry, device and dtype of `conv`."""
    kind = next(kind for kind in CONVS if isinstance(conv, kind))
    geometry = dict(stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups)
    if conv.transposed:
        geometry['output_padding'] = conv.output_padding
    new = skip_init(
        kind,
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        **geometry,
        bias=bias is not None,
        padding_mode=conv.padding_mode,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    with torch.no_grad():
        new.weight.copy_(weight)
        if bias is not None:
            new.bias.copy_(bias)
    return new


def group_norm(norm: BatchChannelNorm) -> nn.GroupNorm:
    """The channel half of `norm`, its affine spread over the channels of each group."""
    new = nn.GroupNorm(
        norm.num_groups,
        norm.num_features,
        eps=norm.eps,
        device=norm.group_weight.device,
        dtype=norm.group_weight.dtype,
    )
    repeats = norm.num_features // norm.group_weight.numel()
    with torch.no_grad():
        new.weight.copy_(norm.group_weight.repeat_interleave(repeats))
        new.bias.copy_(norm.group_bias.repeat_interleave(repeats))
    return new


def batch_norm(norm: BatchChannelNorm, rank: int) -> nn.Module:
    """The batch half of `norm`, for inputs with `rank` axes."""
    new = BATCH_NORMS[rank](norm.num_features, eps=norm.eps, device=norm.weight.device, dtype=norm.weight.dtype)
    state = norm.state_dict()
    new.load_state_dict({name: state[name] for name in new.state_dict()})
    return new


def replace_modules(model: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    """Put the new modules wherever the model has the old ones, shared ones too."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in new:
                setattr(parent, name, new[child])
    return new.get(model, model)


def largest_difference(expected: Any, found: Any) -> tuple[float, float]:
    """Largest absolute difference between all tensors of two outputs, and largest absolute value of the first.

    Raises:
        ValueError: If the outputs have no tensors, or other ones.
    """
    pairs = list(zip(tensors_in(expected), tensors_in(found), strict=True))
    if not pairs or any(a.shape != b.shape for a, b in pairs):
        raise ValueError(f'outputs with shapes {[tuple(a.shape) for a in tensors_in(expected)]} cannot be compared')
    difference = max(float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel())
    return difference, max(float(a.double().abs().max()) for a, _ in pairs if a.numel())


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def exact(tensor: Tensor) -> Tensor:
    """In float64 on the CPU: the product of many small factors keeps its last digit, and every device can do it."""
    return tensor.detach().cpu().double()
