"""Measure how far running statistics are from the statistics of the norms' inputs in evaluation.

In training mode, norms normalise with the statistics of their input; in evaluation, with their running statistics.
Where these are wrong, a network that trains well evaluates badly, and training does not show it. For example, BatchNorm
at one image per batch never sees the variance between images, and its running variance is too small by that amount.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .running_statistics import (
    NormStatistics,
    add_other_ranks,
    check_totals,
    evaluating,
    mean_and_var,
    measuring,
    require_statistics,
    run_all,
    statistics_of,
)


class StatisticsGap(NamedTuple):
    """Distance of one norm's running statistics from measured ones.

    Attributes:
        norm: Name of the norm.
        var_ratio: Measured variance over running variance, with eps added to both; geometric mean over channels. Above
            1, the norm's output in evaluation has more than unit variance.
        mean_shift: Root mean square over channels of the distance between measured and running mean, in units of the
            standard deviation that evaluation divides by.
    """

    norm: str
    var_ratio: float
    mean_shift: float

    @property
    def factor(self) -> float:
        """`var_ratio` or its inverse, whichever is at least 1."""
        return max(self.var_ratio, 1 / self.var_ratio)

    @property
    def size(self) -> float:
        """Sort key: the logarithm of the factor or the shift, whichever is larger."""
        return max(math.log(self.factor), self.mean_shift)

    def __str__(self) -> str:
        side = 'below' if self.var_ratio > 1 else 'above'
        if math.log(self.factor) >= self.mean_shift:
            return f'running_var of {self.norm} is {self.factor:.1f}x {side} measured'
        return f'running_mean of {self.norm} is {self.mean_shift:.1f} standard deviations from measured'


@torch.no_grad()
def statistics_gaps(
    model: nn.Module, batches: Iterable[Any], *, forward: Callable[[Any], object] | None = None
) -> list[StatisticsGap]:
    """Run the model in evaluation mode and compare the inputs of its norms with their running statistics.

    With exact running statistics every ratio is 1 and every shift 0. A norm behind a wrong one is measured on the input
    that evaluation gives it. The model does not change. Every rank must take part.

    Args:
        model: Any model with BatchNorm or BatchChannelNorm.
        batches: Batches of this rank.
        forward: Runs the model on a batch; by default `model` itself.

    Returns:
        Gaps of the norms that received values, the largest first.

    Raises:
        ValueError: If the model has no norm with statistics, there is no batch, or a norm receives infinities or nan.
    """
    norms = require_statistics(model)
    with evaluating(model), measuring(norms) as totals:
        run_all(model, batches, forward)
    add_other_ranks(totals)
    check_totals(totals)
    found = {name: mean_and_var(total) for name, total in totals.items() if total.any()}
    return gaps_between(statistics_of(norms), found, {name: norm.eps for name, norm in norms.items()})


def gaps_between(
    running: Mapping[str, NormStatistics],
    measured: Mapping[str, tuple[Tensor, Tensor]],
    eps: Mapping[str, float],
) -> list[StatisticsGap]:
    """Return the gaps between running statistics and measured means and variances (C,), the largest first.

    Args:
        running: Running statistics by norm.
        measured: Mean and variance by norm; norms may be missing.
        eps: The norms' eps, by norm.
    """
    gaps = []
    for name, (mean, var) in measured.items():
        running_var = running[name].var.double() + eps[name]
        ratio = float(((var.double() + eps[name]) / running_var).log().mean().exp())
        shift = float(((mean.double() - running[name].mean).square() / running_var).mean().sqrt())
        gaps.append(StatisticsGap(name, ratio, shift))
    return sorted(gaps, key=lambda gap: gap.size, reverse=True)


def table_of(gaps: Iterable[StatisticsGap], at_most: int = 20) -> str:
    """Format the largest gaps as a table, one line per norm."""
    gaps = list(gaps)
    width = max([len(gap.norm) for gap in gaps[:at_most]] + [len('norm')])
    lines = [f'{"norm":<{width}}  measured var / running var  mean shift (standard deviations)']
    lines += [f'{g.norm:<{width}}  {g.var_ratio:26.3f}  {g.mean_shift:32.3f}' for g in gaps[:at_most]]
    if len(gaps) > at_most:
        lines.append(f'... and {len(gaps) - at_most} more, with smaller gaps')
    return '\n'.join(lines)
