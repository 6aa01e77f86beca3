"""How far running statistics are from what norms receive in evaluation, which training does not show.

Norms in training mode normalise with what they see; in evaluation they trust their running statistics. Where these are
wrong, a network that trains well evaluates badly: BatchNorm at one image per batch, for example, never sees how images
differ from each other, and its running variance is too small by that much.
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
    """How far the running statistics of one norm are from measured ones.

    Attributes:
        norm: Its name.
        var_ratio: Measured variance over running variance, eps added to both; the geometric mean over channels. Above
            1, evaluation hands on more than unit variance.
        mean_shift: Root of the mean over channels of the squared distance between measured and running mean, in
            standard deviations that evaluation divides by.
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
        """What gaps are sorted by: the logarithm of the factor or the shift, whichever is larger."""
        return max(math.log(self.factor), self.mean_shift)

    def __str__(self) -> str:
        side = 'below' if self.var_ratio > 1 else 'above'
        if math.log(self.factor) >= self.mean_shift:
            return f'running_var of {self.norm} is {self.factor:.1f}x {side} measured'
        return f'running_mean of {self.norm} is {self.mean_shift:.1f} standard deviations off measured'


@torch.no_grad()
def statistics_gaps(
    model: nn.Module, batches: Iterable[Any], *, forward: Callable[[Any], object] | None = None
) -> list[StatisticsGap]:
    """Run the model in evaluation mode and compare what its norms receive with their running statistics.

    With true statistics every ratio is 1 and every shift 0. A norm behind one that is off is measured as it is,
    with what evaluation hands on to it. The model is left as it was; every rank must take part.

    Args:
        model: Any model with BatchNorm or BatchChannelNorm.
        batches: Data, of this rank.
        forward: Runs the model on a batch, `model` itself by default.

    Returns:
        Norms that received something, the largest gap first.

    Raises:
        ValueError: If there is no norm with statistics, no batch, or if a norm receives infinities or nan.
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
    """Gaps between running statistics and measured means and variances (C,), the largest first.

    Args:
        running: By norm.
        measured: By norm, for some of them.
        eps: By norm.
    """
    gaps = []
    for name, (mean, var) in measured.items():
        running_var = running[name].var.double() + eps[name]
        ratio = float(((var.double() + eps[name]) / running_var).log().mean().exp())
        shift = float(((mean.double() - running[name].mean).square() / running_var).mean().sqrt())
        gaps.append(StatisticsGap(name, ratio, shift))
    return sorted(gaps, key=lambda gap: gap.size, reverse=True)


def table_of(gaps: Iterable[StatisticsGap], at_most: int = 20) -> str:
    """Lines for people, one per norm."""
    gaps = list(gaps)
    width = max([len(gap.norm) for gap in gaps[:at_most]] + [len('norm')])
    lines = [f'{"norm":<{width}}  measured var / running var  mean shift (standard deviations)']
    lines += [f'{g.norm:<{width}}  {g.var_ratio:26.3f}  {g.mean_shift:32.3f}' for g in gaps[:at_most]]
    if len(gaps) > at_most:
        lines.append(f'... and {len(gaps) - at_most} more, with smaller gaps')
    return '\n'.join(lines)
