"""Weight Standardization: every filter gets zero mean and unit standard deviation before it convolves.

    W_hat[o] = (W[o] - mean(W[o])) / std(W[o])      over the fan-in I of output channel o

Source: Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization"
(arXiv 1903.10520 v2), Eq. 5-7. Published implementations differ in the variance (biased or unbiased) and in the
position of eps. `VARIANTS` names each of these formulas, because weights trained with one do not fit another. A gain
may follow, a factor that is the same for all filters of a layer (`GAINS`). `fused.py` has the fast path, which is
tested against `weight_standardize_reference`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .fused import Divisor, connect, is_supported, standardize


class Variant(NamedTuple):
    """How one published formula computes its divisor."""

    unbiased: bool
    eps: float
    eps_inside: bool
    """True: sqrt(var + eps). False: sqrt(var) + eps."""
    gain: str | None = None
    """One of `GAINS`: the factor of the standardised filter."""


VARIANTS = {
    # joe-siyuan-qiao/WeightStandardization, the BCN repository's DeepLabV3, mmcv's ConvWS
    'jhu': Variant(unbiased=True, eps=1e-5, eps_inside=False),
    # joe-siyuan-qiao/Batch-Channel-Normalization, imagenet/models/layers.py
    'bcn': Variant(unbiased=True, eps=1e-5, eps_inside=True),
    # arXiv 1903.10520 v2, Eq. 7; its eps is not published
    'paper': Variant(unbiased=False, eps=1e-5, eps_inside=True),
    # timm StdConv2d
    'timm': Variant(unbiased=False, eps=1e-6, eps_inside=True),
    # google-research/big_transfer
    'bit': Variant(unbiased=False, eps=1e-10, eps_inside=True),
}


GAINS = (None, 'fan_in')
"""`fan_in`: 1 / sqrt(fan-in), so that the outputs of a filter are as large as its inputs. Without a gain they are
sqrt(fan-in) times as large: 136 times for a 3x3 filter on 2048 channels, which can overflow float16. The norm that
follows removes either factor."""


def get_variant(name: str, eps: float | None = None, gain: str | None = None) -> Variant:
    """The variant of this name, with this gain, and with `eps` instead of its own unless None.

    Raises:
        ValueError: If the variant or the gain is unknown, or `eps` is not positive.
    """
    if name not in VARIANTS:
        raise ValueError(f'variant={name!r}: one of {", ".join(VARIANTS)} is expected')
    if gain not in GAINS:
        raise ValueError(f"gain={gain!r}: None or 'fan_in' is expected")
    if eps is None:
        return VARIANTS[name]._replace(gain=gain)
    if not eps > 0:
        raise ValueError(f'eps={eps!r}: a positive number is expected, so that a constant filter stays finite')
    return VARIANTS[name]._replace(eps=eps, gain=gain)


def fan_in(weight: Tensor, *, groups: int = 1, transposed: bool = False) -> int:
    """Number of weights in the sum of one output value of a convolution with this weight.

    Args:
        weight: (O, I/groups, *k), or (I, O/groups, *k) if `transposed`.
        groups: Groups of the convolution.
        transposed: Whether the weight belongs to a transposed convolution.
    """
    return weight.numel() // (weight.shape[1] * groups if transposed else weight.shape[0])


def divisor_of(variant: Variant, fan_in: int) -> Divisor:
    """The divisor of a formula for filters of this fan-in. It includes the gain, at no cost."""
    divisor = Divisor(fan_in - variant.unbiased, variant.eps, variant.eps_inside)
    return divisor.times(math.sqrt(fan_in)) if variant.gain == 'fan_in' else divisor


def weight_standardize(
    weight: Tensor,
    *,
    variant: str = 'jhu',
    eps: float | None = None,
    gain: str | None = None,
    groups: int = 1,
    transposed: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standardise each filter of a convolution weight over its fan-in.

    Statistics are computed in float32 or better. A constant filter gives a zero filter and a finite gradient. Ordinary
    tensors on CPU and CUDA take one fused pass each way. Under torch.compile, export and torch.func the reference runs,
    which those tools fuse themselves. Both have exact gradients of every order.

    Args:
        weight: (O, I/groups, *k) as in torch's ConvNd, or (I, O/groups, *k) as in ConvTransposeNd if `transposed`.
        variant: One of `VARIANTS`. The authors' public checkpoints were trained with `jhu`.
        eps: Replaces the variant's own eps.
        gain: 'fan_in' divides the result by the root of the fan-in, for convolutions in float16; see `GAINS`. If the
            next norm keeps running statistics, weights trained with a gain do not work without it, and vice versa.
        groups: Groups of the convolution. Matters only for transposed weights, whose first axis joins the groups.
        transposed: Whether output channels are on axis 1.
        dtype: Of the result, by default that of `weight`; rounded once, from float32 or better.

    Returns:
        A tensor of the shape of `weight`. Do not change it in place.

    Raises:
        ValueError: If the variant or the gain is unknown, `eps` is not positive, or `weight` has fewer than 2 axes, a
            fan-in of 1, or an axis 0 that `groups` does not divide.
    """
    formula = get_variant(variant, eps, gain)
    check_weight(weight, groups=groups, transposed=transposed)
    dtype = dtype or weight.dtype
    if is_supported(weight):
        divisor = divisor_of(formula, fan_in(weight, groups=groups, transposed=transposed))
        return connect(weight, standardize(weight, divisor, dtype, groups=groups, transposed=transposed))
    return weight_standardize_reference(weight, formula, groups=groups, transposed=transposed).to(dtype)


def check_weight(weight: Tensor, *, groups: int, transposed: bool) -> None:
    """Raise ValueError for a weight whose filters cannot be standardised."""
    if weight.ndim < 2:
        raise ValueError(f'weight.shape={tuple(weight.shape)}: at least 2 axes are expected, which give a fan-in')
    if transposed and weight.shape[0] % groups:
        raise ValueError(
            f'groups={groups}: a divisor of axis 0 of the transposed weight is expected; '
            f'weight.shape={tuple(weight.shape)}'
        )
    if fan_in(weight, groups=groups, transposed=transposed) < 2:
        raise ValueError(
            f'weight.shape={tuple(weight.shape)}: a fan-in of at least 2 is expected; a single value has no deviation'
        )


def weight_standardize_reference(
    weight: Tensor, formula: Variant, *, groups: int = 1, transposed: bool = False
) -> Tensor:
    """The equation of the paper, in ordinary operations.

    Args:
        weight: As in `weight_standardize`.
        formula: The variant, from `get_variant`.
        groups: As in `weight_standardize`.
        transposed: As in `weight_standardize`.

    Returns:
        A tensor of the shape of `weight`, in float32 or better.
    """
    unbiased, eps, eps_inside, gain = formula
    w = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if transposed:
        w = w.unflatten(0, (groups, -1))  # (G, I/G, O/G, *k)
        over = [1, *range(3, w.ndim)]
    else:
        over = list(range(1, w.ndim))

    centred = w - w.mean(over, keepdim=True)
    # torch's norm has gradient 0 at 0; the root of a variance would have an infinite one for a constant filter.
    norm = torch.linalg.vector_norm(centred, dim=over, keepdim=True)
    size = fan_in(weight, groups=groups, transposed=transposed)
    degrees = size - int(unbiased)
    std = torch.sqrt(norm.square() / degrees + eps) if eps_inside else norm / math.sqrt(degrees) + eps
    standardized = (centred / std).reshape(weight.shape)
    return standardized / math.sqrt(size) if gain == 'fan_in' else standardized
