"""Fold a trained model for deployment: the result has only torch's own layers and does not need this package.

    convolution -> BCN   =   convolution' -> GroupNorm        in evaluation, without approximation

    W' = s * W_hat    b' = s * (b - running_mean) + bias    s = weight / sqrt(running_var + eps)    per output channel

W_hat is the standardised filter (baked in). s and b' are the batch half of BCN, an affine map per channel when the
running statistics are fixed. The channel half uses live statistics and remains as GroupNorm. Plain BatchNorm and
GroupNorm do not change; other tools can fuse BatchNorm afterwards (mmcv's `fuse_conv_bn`, onnxruntime).
"""

import copy
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map

from ..diagnostics.non_finite import tensors_in
from ..layers import BatchChannelNorm
from ..layers.ws_conv import _WSConv
from .kinds import BATCH_NORMS, conv_kind, norm_kind
from .replacement import new_norm, plain_conv, replace_modules, why_irreplaceable
from .trace import Trace, trace


@dataclass(frozen=True)
class FoldReport:
    """Report of `fold`, by the names of the layers."""

    baked: tuple[str, ...]
    """WS convolutions that became plain ones."""
    absorbed: dict[str, str]
    """Norms whose batch half moved into a convolution, and that convolution."""
    separate: dict[str, str]
    """Norms whose batch half became a BatchNorm before the GroupNorm, and why."""
    left: tuple[str, ...]
    """Convolutions and norms of other packages, which the folded model still needs."""
    scale: float
    """Largest absolute output on the example input."""
    exact_difference: float
    """Largest absolute difference of the outputs in float64: the error of the folding itself."""
    difference: float
    """The same in the dtype of the model: the error of the deployed model."""
    rounding: float
    """Difference of the original model's outputs in its dtype and in float64: the yardstick for `difference`."""

    def __str__(self) -> str:
        lines = [
            f'folded: {len(self.baked)} WS convolutions baked, {len(self.absorbed)} BCN absorbed by their convolution, '
            f'{len(self.separate)} BCN kept as BatchNorm + GroupNorm',
            *(f'  {norm} kept: {reason}' for norm, reason in self.separate.items()),
            *(f'  {name} left: its class is neither from torch nor from this package' for name in self.left),
            f'outputs reach {self.scale:.1e} and differ by {self.exact_difference:.1e} in float64, by '
            f'{self.difference:.1e} in the dtype of the model, whose own rounding is {self.rounding:.1e}',
        ]
        return '\n'.join(lines)


def fold(model: nn.Module, *inputs: Any, tolerance: float = 1e-5) -> tuple[nn.Module, FoldReport]:
    """Copy a model to evaluation mode without WSConv and BatchChannelNorm layers, and compare the two.

    The convolution before a BCN is found by running the model on `inputs`, not from names. Its output must go only to
    this norm, and the norm must have no other input. Any other BCN (pre-activation, or shared by several convolutions)
    becomes `nn.Sequential(BatchNorm, GroupNorm)`, which is as exact and costs a pass over the data.

    The comparison in float64 decides. In float32, a network of 100 layers rounds its outputs by 1e-3 and more, folded
    or not, which would hide a mistake. Both differences are reported.

    The result cannot be trained, because a baked filter would no longer be standardised. No parameter requires a
    gradient, and a forward pass in training mode raises RuntimeError.

    Args:
        model: Any module with layers of this package, whose forward also runs in float64; it is not changed.
        *inputs: Example arguments of its forward.
        tolerance: Largest accepted difference of the outputs in float64, relative to their largest absolute value or to
            1, whichever is larger.

    Returns:
        The folded copy and a report.

    Raises:
        ValueError: If the example input does not reach a BCN, or a BCN receives an input that no BatchNorm accepts.
        RuntimeError: If the outputs differ by more than `tolerance`.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    wide, wide_inputs = copy.deepcopy(folded).double(), tree_map(in_float64, inputs)
    outputs: list[Any] = []
    seen = trace(wide, lambda: outputs.append(wide(*wide_inputs)))
    layers: dict[str, Any] = dict(folded.named_modules())
    norms = [name for name, layer in layers.items() if isinstance(layer, BatchChannelNorm)]
    unreached = [name for name in norms if name not in seen.sources]
    if unreached:
        raise ValueError(
            f'the example input does not reach {len(unreached)} BCN (the first: `{unreached[0]}`): fold the part of '
            'the model that is deployed'
        )
    foldable = {norm: conv for conv, norm in seen.pairs.items() if why_irreplaceable(layers[conv]) is None}
    absorbed = {norm: foldable[norm] for norm in norms if norm in foldable}
    separate = {norm: rank_of(norm, seen) for norm in norms if norm not in foldable}

    with torch.no_grad():
        exact_difference, scale = largest_difference(outputs[0], replaced(wide, absorbed, separate)(*wide_inputs))
        if not exact_difference <= tolerance * max(1.0, scale):
            raise RuntimeError(
                f'the folded model differs from the original by {exact_difference:.1e}, with outputs up to {scale:.1e} '
                f'(tolerance {tolerance:g}): the model uses layers in a way that a forward pass does not show, such as '
                'a convolution before a norm whose output is also returned, or hooks on layers'
            )
        expected = folded(*inputs)
        rounding, _ = largest_difference(outputs[0], expected)
        folded = replaced(folded, absorbed, separate)
        difference, _ = largest_difference(expected, folded(*inputs))
    folded.register_forward_pre_hook(refuse_training)
    return folded, FoldReport(
        baked=tuple(name for name, layer in layers.items() if isinstance(layer, _WSConv)),
        absorbed=absorbed,
        separate={norm: why_separate(norm, seen, layers) for norm in separate},
        left=tuple(name for name, layer in folded.named_modules() if is_foreign(layer)),
        scale=scale,
        exact_difference=exact_difference,
        difference=difference,
        rounding=rounding,
    )


def replaced(model: nn.Module, absorbed: dict[str, str], separate: dict[str, int]) -> nn.Module:
    """Return `model` with torch's layers in place of this package's.

    Args:
        model: Changed in place, unless it is itself such a layer.
        absorbed: BCN -> convolution that absorbs its batch half.
        separate: BCN -> rank of the BatchNorm that replaces its batch half.
    """
    layers: dict[str, Any] = dict(model.named_modules())
    new: dict[nn.Module, nn.Module] = {
        layer: with_values(layer, layer.standardized_weight(), layer.bias)
        for layer in layers.values()
        if isinstance(layer, _WSConv)
    }
    for name in (*absorbed, *separate):
        norm = layers[name]
        channel_half, _ = new_norm(norm, 'GN', groups=norm.num_groups)
        if name in absorbed:
            conv = layers[absorbed[name]]
            new[conv], new[norm] = absorb(conv, norm), channel_half
        else:
            batch_half, _ = new_norm(norm, 'BN', rank=separate[name])
            new[norm] = nn.Sequential(batch_half, channel_half)
    replace_modules(model, new)
    return new.get(model, model).eval().requires_grad_(False)


def refuse_training(model: nn.Module, _inputs: Any) -> None:
    """Raise RuntimeError if a folded model is run for training; a forward pre-hook."""
    if model.training or (torch.is_grad_enabled() and any(p.requires_grad for p in model.parameters())):
        raise RuntimeError(
            'this model is folded for deployment and cannot be trained: its filters would no longer be standardised. '
            'Train the original model; .eval() and .requires_grad_(False) make this one run again'
        )


def require_folded(model: nn.Module) -> None:
    """Raise ValueError for a model that still has layers of this package."""
    kinds = Counter(type(m).__name__ for m in model.modules() if isinstance(m, (_WSConv, BatchChannelNorm)))
    if kinds:
        found = ', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))
        raise ValueError(f'the model still has {found}: fold it first, with wsbcn_mm.surgery.fold.fold')


def is_foreign(layer: nn.Module) -> bool:
    kind = conv_kind(layer) or norm_kind(layer)
    return kind is not None and not type(layer).__module__.startswith('torch.nn.')


def why_separate(norm: str, seen: Trace, layers: dict[str, Any]) -> str:
    """Explain why no convolution absorbs the batch half of a norm."""
    sources = set(seen.sources[norm])
    if None in sources:
        return 'no convolution directly before it'
    if len(sources) > 1:
        return f'runs after {len(sources)} convolutions: {", ".join(sorted(map(str, sources)))}'
    conv = str(sources.pop())
    others = sorted(set(chain.from_iterable(seen.receivers[conv])) - {norm})
    if others:
        return f'the output of {conv} also goes to {", ".join(others)}'
    return f'{conv} before it cannot be replaced: {why_irreplaceable(layers[conv])}'


def rank_of(norm: str, seen: Trace) -> int:
    """Return the number of axes of a norm's input.

    Raises:
        ValueError: If no BatchNorm accepts it.
    """
    ranks = {len(shape) for shape in seen.input_shapes[norm]}
    if not ranks <= BATCH_NORMS.keys() or len({BATCH_NORMS[rank] for rank in ranks}) > 1:
        raise ValueError(f'BCN `{norm}` receives inputs of {sorted(ranks)} axes: one number from 2 to 5 is expected')
    return ranks.pop()


def absorb(conv: _ConvNd, norm: BatchChannelNorm) -> nn.Module:
    """Return `conv` as a plain convolution with the batch half of `norm` in its weight and bias."""
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
    return with_values(conv, weight, bias)


def with_values(conv: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return `conv` as torch's own convolution with this weight and bias, in the same dtype and on the same device."""
    new: Any = plain_conv(conv)
    new.weight = nn.Parameter(weight.to(conv.weight))
    new.bias = None if bias is None else nn.Parameter(bias.to(conv.weight))
    return new


def largest_difference(expected: Any, found: Any) -> tuple[float, float]:
    """Return the largest absolute difference of two outputs over all tensors, and the largest absolute value.

    Raises:
        ValueError: If the outputs have no values, or their shapes differ.
    """
    pairs = list(zip(tensors_in(expected), tensors_in(found), strict=True))
    if not any(a.numel() for a, _ in pairs) or any(a.shape != b.shape for a, b in pairs):
        raise ValueError(f'outputs with shapes {[tuple(a.shape) for a in tensors_in(expected)]} cannot be compared')
    differences = torch.cat([(exact(a) - exact(b)).abs().flatten() for a, b in pairs])
    values = torch.cat([exact(a).abs().flatten() for a, _ in pairs])
    # Unlike Python's max, torch's max is nan if any value is.
    return float(differences.max()), float(values.max())


def in_float64(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def exact(tensor: Tensor) -> Tensor:
    """Return the tensor in float64 on the CPU: products of small factors keep all digits, from any device."""
    return tensor.detach().cpu().double()
