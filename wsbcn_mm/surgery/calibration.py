"""Calibrate running statistics: measure anew, on a few batches, what each norm receives in evaluation.

What a norm receives depends on how the norms before it normalise. So the batches are swept several times, in evaluation
mode, and each norm normalises with the statistics of all it has received so far, in all sweeps. The result is what the
last sweep alone has measured, when the norms before hardly moved any more.

A norm with no norm before it is exact after one sweep, and every norm is if all data come as one batch. Otherwise more
sweeps come nearer; `Calibration.change` says how near. (To let each norm normalise with the sweep before, as Jacobi's
method does, would be exact after as many sweeps as there are norms in a row, and far off, by orders of magnitude, until
then.) The statistics of before have no part in it, so that calibrating twice on the same batches gives the same
numbers, bit for bit. Nothing is kept but three numbers per channel, unlike when the batches go through the network
layer by layer.
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
    """What was measured.

    Attributes:
        statistics: New statistics, of the norms that received something.
        unreached: Norms that received nothing, whose statistics are the old ones.
        batches: Number of batches of this rank.
        change: How far the last sweep moved a running mean at the most, in standard deviations of its channel.
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
        model: Any model; with StepStatistics on it, call this right after a commit.
        batches, forward, sweeps: See `precise_statistics`.

    Raises:
        ValueError: As `precise_statistics`, and if statistics are pending in a StepStatistics.
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
    """Measure the statistics that BatchNorm and BatchChannelNorm evaluate these batches right with, pooled.

    Every value of every batch counts alike, on all ranks, however the batches are sized: the variance is that of the
    union, spread of the batches' means included. BatchNorm gets the unbiased variance, BatchChannelNorm with estimated
    statistics the biased one, as in training; frozen norms are measured too. `num_batches_tracked` becomes at least the
    number of batches, so that a warm-up does not throw their statistics away. The model is left as it was.

    Args:
        model: Any model.
        batches: A list, a DataLoader or the like, which can be iterated `sweeps` times; the same number of times on
            every rank, but each may have another number of batches.
        forward: Runs the model on a batch, `model` itself by default.
        sweeps: Over the batches.

    Raises:
        ValueError: If there is no norm with statistics, no batch, an iterator in place of a collection, or if a norm
            receives infinities or nan.
    """
    norms = require_statistics(model)
    if sweeps < 1:
        raise ValueError(f'sweeps={sweeps}: at least one is needed')
    if isinstance(batches, Iterator):
        raise ValueError(f'batches is an iterator, which ends with the first of {sweeps} sweeps: give a list')
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
