"""BatchChannelNorm: batch normalisation per channel, then group normalisation per sample, as one layer."""

import math
import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from ..ops.bcn.algebra import Affines, ChannelStatistics, Options
from ..ops.bcn.batch_channel_norm import normalize_and_measure, update_running_statistics
from .recomputation import first_pass, is_recomputation

STATISTICS = ('estimated', 'batch', 'sync')
AFFINES = ('group', 'channel')


class BatchChannelNorm(_InstanceNorm):
    """Batch-Channel Normalization of (N, C, *) tensors of any rank >= 2.

    The batch half normalises each channel and applies `weight` and `bias` of shape (C,). The channel half then
    normalises each group of channels of each sample with live statistics and applies `group_weight` and `group_bias`.
    The first five entries of the state are those of BatchNorm, with the same meaning, so the keys of a BatchNorm
    checkpoint fit.

    Source: arXiv 1903.10520 v2, Algorithm 1, and the README of joe-siyuan-qiao/Batch-Channel-Normalization. Departures:
    the rate has a working default (the authors' starts at 0, which never learns the statistics),
    `num_batches_tracked` counts, and the affine of the channel half can be per channel.

    With `estimated` statistics the buffers move once per forward. When `wsbcn_mm.microbatch.StepStatistics` manages the
    model, they move once per optimizer step instead: a forward normalises with the buffers moved towards its own
    micro-batch, does not change them, and adds what it measured to `pending_totals`. Activation checkpointing changes
    no result in either case, but without StepStatistics a layer may run only once per backward pass.

    The class is an `_InstanceNorm` because frameworks decide by type. Weight-decay exclusion and `is_norm` then include
    it. Conversion to SyncBatchNorm and conv-bn fusing, both of which would be wrong, skip it.

    Args:
        num_features: C.
        num_groups: G, a divisor of C.
        channels_per_group: Alternative to `num_groups`: G = C / channels_per_group.
        statistics: What the batch half normalises with in training. `estimated`: the running statistics, first updated
            by the current batch, without gradient; defined for a single sample and a 1x1 map. `batch`: live statistics
            of the batch of this rank. `sync`: live statistics of the batches of all ranks; `batch` without a process
            group.
        rate: Weight of the current batch in the running statistics, in [0, 1]; 0 freezes them.
        warmup: Whether the rate starts as an average over all batches so far, max(rate, 1 / (t + 1)), so that the first
            batch replaces the 0/1 start.
        affine: `group`: `group_weight` and `group_bias` are (G,), as the authors have them. `channel`: (C,), as in
            GroupNorm.
        eps: Added to the variances of both halves.

    Raises:
        ValueError: If the number of groups does not divide C, the rate is outside [0, 1], or a choice is unknown.
        RuntimeError: If a backward pass recomputes two forwards of one layer and the buffers moved between them.
    """

    _abbr_ = 'bn'

    pending_totals: Tensor | None = None
    """(3, C) in float64: number of values, their sum, and their sum of squares around the running mean, over all
    forwards since the buffers last moved; None if every forward moves them. Not in state_dict, copies or pickles."""
    _passes_since_recomputation = 0
    _recomputed_one_of_many = False

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    _rate: float

    def __init__(
        self,
        num_features: int,
        num_groups: int = 32,
        *,
        channels_per_group: int | None = None,
        statistics: Literal['estimated', 'batch', 'sync'] = 'estimated',
        rate: float = 0.1,
        warmup: bool = False,
        affine: Literal['group', 'channel'] = 'group',
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if statistics not in STATISTICS:
            raise ValueError(f'statistics={statistics!r}: one of {", ".join(STATISTICS)} is expected')
        if affine not in AFFINES:
            raise ValueError(f'affine={affine!r}: one of {", ".join(AFFINES)} is expected')
        groups = resolve_groups(num_features, num_groups, channels_per_group)
        super().__init__(
            num_features, eps, momentum=rate, affine=True, track_running_stats=True, device=device, dtype=dtype
        )
        self.num_groups = groups
        self.statistics = statistics
        self.warmup = warmup
        self.channel_affine = affine
        size = groups if affine == 'group' else num_features
        self.group_weight = nn.Parameter(torch.ones(size, device=device, dtype=dtype))
        self.group_bias = nn.Parameter(torch.zeros(size, device=device, dtype=dtype))

    @property
    def rate(self) -> float:
        """Weight of the current batch in the running statistics; a schedule may set it between steps."""
        return self._rate

    @rate.setter
    def rate(self, value: float) -> None:
        if not (isinstance(value, Real) and 0 <= value <= 1):
            raise ValueError(f'rate={value!r}: a number from 0 (frozen) to 1 is expected')
        self._rate = float(value)

    @property
    def momentum(self) -> float:
        """The rate, under the name that frameworks read and set on batch norms."""
        return self.rate

    @momentum.setter
    def momentum(self, value: float) -> None:
        self.rate = value

    def train(self, mode: bool = True) -> 'BatchChannelNorm':
        """As in any module. Warns if evaluation would use the 0/1 start because pending totals were never committed."""
        pending = self.pending_totals if self.training and not mode else None
        if pending is not None and pending.any() and not self.num_batches_tracked:
            warnings.warn(
                'BatchChannelNorm measured batches but never updated its running statistics, so evaluation uses their '
                'start values: call commit() of its StepStatistics after each optimizer.step()',
                stacklevel=2,
            )
        return super().train(mode)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if 'group_weight' in self._parameters:
            nn.init.ones_(self.group_weight)
            nn.init.zeros_(self.group_bias)

    def forward(self, x: Tensor, residual: Tensor | None = None, *, relu: bool = False) -> Tensor:
        """(N, C, *) -> (N, C, *), in the dtype and memory format of `x`.

        Args:
            x: (N, C, *).
            residual: Of the shape of x; added to the normalised x in the same pass.
            relu: Whether a ReLU ends that pass.

        Raises:
            ValueError: If x does not have C channels, or `batch` statistics get fewer than 2 values per channel.
        """
        if x.ndim < 2 or x.shape[1] != self.num_features:
            raise ValueError(f'x.shape={tuple(x.shape)}: (N, {self.num_features}, *) is expected')
        learns = self.training and self.rate > 0
        first = self._first_pass() if learns else 0
        rate = self._rate_now(first) if learns else 0.0
        running = ChannelStatistics(self.running_mean, self.running_var)
        affines = Affines(self.weight, self.bias, self.group_weight, self.group_bias)
        options = Options(self.num_groups, self._statistics_now(), relu, self.eps)
        out, measured = normalize_and_measure(x, residual, running, affines, rate, options)
        if learns:
            self._learn(running, measured, rate, first, values=x.numel() // self.num_features)
        return out

    def _statistics_now(self) -> str:
        """What the batch half of this forward normalises with; one of the operator's statistics."""
        frozen = not self.training or (self.statistics == 'estimated' and self.rate == 0)
        return 'frozen' if frozen else self.statistics

    def _first_pass(self) -> int | Tensor:
        """1 in the first forward of a batch, 0 in its recomputation; in compiled code a tensor, known when it runs."""
        if torch.compiler.is_compiling():
            return first_pass(self.running_mean)
        again = is_recomputation()
        if self.statistics == 'estimated' and self.pending_totals is None:
            self._check_order_of_passes(again)
        return int(not again)

    def _rate_now(self, first: int | Tensor) -> float | Tensor:
        """Weight of this batch in the statistics that normalise it."""
        rate: float | Tensor = self.rate
        if self.warmup:
            seen = (self.num_batches_tracked + 1).to(self.running_mean.dtype)
            rate = seen.reciprocal().clamp_min(self.rate)
        if self._totals is not None:
            return rate
        # In a recomputation the buffers have moved towards this batch already.
        return rate * (first if isinstance(first, int) else first.to(self.running_mean.dtype))

    @property
    def _totals(self) -> Tensor | None:
        """The pending totals to which this forward adds, or None if it moves the buffers itself."""
        return self.pending_totals if self.statistics == 'estimated' else None

    def _learn(
        self,
        running: ChannelStatistics,
        measured: ChannelStatistics,
        rate: float | Tensor,
        first: int | Tensor,
        values: int,
    ) -> None:
        """Move the running statistics towards what this batch measured, or add that to the pending totals.

        Args:
            running, measured, rate: As in `update_running_statistics`.
            first: From `_first_pass`; a recomputation learns nothing.
            values: Number of values per channel.
        """
        if isinstance(first, int) and first == 0:
            return
        totals = self._totals
        if totals is None:
            update_running_statistics(running, measured, rate)
            # With 'sync' an empty batch takes part in the statistics of all ranks, so it must count as on the others.
            if values > 0 or self.statistics == 'sync':
                self.num_batches_tracked.add_(first)
        else:
            with torch.no_grad():
                per_value = torch.stack((torch.ones_like(measured.mean), *measured))
                # In float64 the products are exact: the totals of a single micro-batch give back its exact moments.
                totals.add_(per_value if isinstance(first, int) else per_value * first, alpha=values)

    def _check_order_of_passes(self, again: bool) -> None:
        """Raise at the second of two recomputations whose forwards normalised with different running statistics."""
        if not again:
            self._passes_since_recomputation += 1
            self._recomputed_one_of_many = False
            return
        if self._recomputed_one_of_many:
            raise RuntimeError(
                'activation checkpointing recomputes two forwards of one BatchChannelNorm in one backward pass, but '
                'its running statistics have moved since the first: move them once per optimizer step, with '
                'wsbcn_mm.microbatch.StepStatistics(model) and its commit() after optimizer.step()'
            )
        self._recomputed_one_of_many = self._passes_since_recomputation > 1
        self._passes_since_recomputation = 0

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> 'BatchChannelNorm':
        super()._apply(fn, recurse)
        if self.pending_totals is not None:
            self.pending_totals = self.pending_totals.to(self.running_mean.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # No StepStatistics manages a copy, so its buffers move once per forward until it gets its own.
        return {name: value for name, value in self.__dict__.items() if name != 'pending_totals'}

    def extra_repr(self) -> str:
        warmup = ', warmup' if self.warmup else ''
        return (
            f'{self.num_features}, groups={self.num_groups}, statistics={self.statistics}, rate={self.rate}{warmup}, '
            f'affine={self.channel_affine}, eps={self.eps}'
        )


def resolve_groups(num_features: int, num_groups: int, channels_per_group: int | None) -> int:
    """Number of groups for `num_features` channels.

    Raises:
        ValueError: If the channels do not divide evenly; the message has the nearest accepted numbers.
    """
    if channels_per_group is None:
        name, value = 'num_groups', num_groups
    elif num_groups != 32:
        raise ValueError(f'num_groups={num_groups} and channels_per_group={channels_per_group}: give one of them')
    else:
        name, value = 'channels_per_group', channels_per_group
    if value < 1 or num_features % value:
        divisors = [d for d in range(1, num_features + 1) if num_features % d == 0]
        below = max((d for d in divisors if d < value), default=None)
        above = min((d for d in divisors if d > value), default=None)
        nearest = ' and '.join(str(d) for d in (below, above) if d is not None)
        raise ValueError(f'{name}={value}: a divisor of num_features={num_features} is expected, nearest: {nearest}')
    return value if channels_per_group is None else num_features // channels_per_group


def zero_init_last_norm_(norm: nn.Module) -> None:
    """Set the output scale of a residual branch's last norm to 0, so that the block starts as the identity.

    For BatchChannelNorm the scale is `group_weight`, as in the authors' ImageNet code. Its `weight`, which frameworks
    zero by name, must not be 0: the channel half would divide a zero map by sqrt(eps) and multiply gradients by 316.

    Args:
        norm: Any normalisation layer with a scale.

    Raises:
        ValueError: If the layer has no scale.
    """
    scale = getattr(norm, 'group_weight', None)
    if scale is None:
        scale = getattr(norm, 'weight', None)
    if scale is None:
        raise ValueError(f'norm={norm}: a layer with a scale, group_weight or weight, is expected')
    nn.init.zeros_(scale)


def has_zeroed_batch_half(norm: nn.Module) -> bool:
    """Whether a BatchChannelNorm has the zero `weight` that `zero_init_last_norm_` warns of."""
    return isinstance(norm, BatchChannelNorm) and math.isclose(float(norm.weight.detach().abs().max()), 0.0)
