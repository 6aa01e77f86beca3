"""Calibrate running statistics: measure the input of each norm in evaluation, on a few batches.

The input of a norm depends on how the norms before it normalise. So the batches are swept several times in evaluation
mode, and each norm normalises with the statistics of all its inputs so far, over all sweeps. The result is measured in
the last sweep only, when the norms before hardly move any more.

A norm without a norm before it is exact after one sweep. All norms are exact after one sweep if all data are one batch.
Otherwise more sweeps come closer, and `Calibration.change` says how close. (If each norm normalised with the previous
sweep, as in Jacobi's method, the result would be exact after as many sweeps as there are norms in a row, and off by
orders of magnitude before.) The old statistics are not used, so calibrating twice on the same batches gives the same
numbers, bit for bit. Only three numbers per channel are kept, unlike when batches pass through the network layer by
layer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..diagnostics.running_statistics import (
    NormStatistics,
    add_other_ranks,
    check_totals,
    evaluating,
    measuring,
    put_statistics,
    require_statistics,
    run_all,
    set_statistics,
    statistics_of,
)
from ..layers import standardize_once


@dataclass(frozen=True)
class Calibration:
    """Result of a calibration.

    Attributes:
        statistics: New statistics of the norms that received values.
        unreached: Norms that received nothing and keep their old statistics.
        batches: Number of batches of this rank.
        change: Largest move of a running mean in the last sweep, in standard deviations of its channel.
    """

    statistics: Mapping[str, NormStatistics]
    unreached: tuple[str, ...]
    batches: int
    change: float


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[Any], object] | None = None,
    sweeps: int = 3,
) -> Calibration:
    """Replace the running statistics of BatchNorm and BatchChannelNorm by those that `precise_statistics` measures.

    Args:
        model: Any model. With StepStatistics, call this right after a commit.
        batches, forward, sweeps: See `precise_statistics`.

    Raises:
        ValueError: As in `precise_statistics`, and if a StepStatistics has pending statistics.
    """
    norms = require_statistics(model)
    for name, norm in norms.items():
        pending = getattr(norm, 'pending_totals', None)
        if pending is not None and pending.any():
            raise ValueError(f'`{name}` has statistics that StepStatistics has not committed: call its commit() first')
    found = precise_statistics(model, batches, forward=forward, sweeps=sweeps)
    put_statistics(norms, found.statistics)
    return found


@torch.no_grad()
def precise_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[Any], object] | None = None,
    sweeps: int = 3,
) -> Calibration:
    """Measure the pooled statistics with which BatchNorm and BatchChannelNorm evaluate these batches correctly.

    Every value of every batch on every rank has the same weight, whatever the batch sizes: the variance is that of the
    union and includes the variance between batch means. BatchNorm gets the unbiased variance, BatchChannelNorm with
    estimated statistics the biased one, as in training. Frozen norms are measured too. `num_batches_tracked` becomes at
    least the number of batches, so that a warm-up does not discard the statistics. The model does not change.

    Args:
        model: Any model.
        batches: A list, a DataLoader or another collection that can be iterated `sweeps` times. `sweeps` must be equal
            on all ranks; the number of batches may differ.
        forward: Runs the model on a batch; by default `model` itself.
        sweeps: Number of passes over the batches.

    Raises:
        ValueError: If the model has no norm with statistics, there is no batch, `batches` is an iterator, or a norm
            receives infinities or nan.
    """
    norms = require_statistics(model)
    if sweeps < 1:
        raise ValueError(f'sweeps={sweeps}: at least 1 is expected')
    if isinstance(batches, Iterator):
        raise ValueError(f'batches is an iterator, which is exhausted by the first of {sweeps} sweeps: give a list')
    old = statistics_of(norms)
    try:
        with evaluating(model), standardize_once(model):
            past: dict[Any, Tensor] = {}
            for _ in range(sweeps):
                before = {name: norm.running_mean.double() for name, norm in norms.items()}
                with measuring(norms, after_each=partial(_follow, past)) as totals:
                    count = run_all(model, batches, forward)
                add_other_ranks(totals)
                check_totals(totals)
                for name, total in totals.items():
                    set_statistics(norms[name], total)
                    past[norms[name]] = past.get(norms[name], 0) + total
        reached = {name: norms[name] for name, total in totals.items() if total.any()}
        for norm in reached.values():
            norm.num_batches_tracked.clamp_(min=count)
        change = max(_moved(norm, before[name]) for name, norm in reached.items())
        statistics = statistics_of(reached)
    finally:
        put_statistics(norms, old)
    unreached = tuple(name for name in norms if name not in reached)
    return Calibration(statistics, unreached, count, change)


def _follow(past: Mapping[Any, Tensor], norm: Any, total: Tensor) -> None:
    set_statistics(norm, past.get(norm, 0) + total)


def _moved(norm: Any, mean_before: Tensor) -> float:
    return float(((norm.running_mean - mean_before).abs() / (norm.running_var + norm.eps).sqrt()).max())
