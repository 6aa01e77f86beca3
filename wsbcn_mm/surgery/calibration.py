"""Calibrate running statistics: measure anew, on a few batches, what each norm receives in evaluation.

What a norm receives depends on the norms before it. So the batches are swept several times, in evaluation mode:

    sweep 1      each norm normalises with the statistics of all it has received so far in this sweep
    sweep 2, ... each norm normalises with those of the sweep before

A norm with no norm before it is exact after one sweep, one with d norms before it, on its longest path, after d + 1.
Further sweeps change nothing; fewer come near, and `Calibration.change` says how near. Nothing is kept but three
numbers per channel, unlike when the batches go through the network layer by layer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import BatchChannelNorm, standardize_once
from ..ops.batch_norm import num_ranks
from ..ops.bcn_reference import moments
from .trace import evaluating

Totals = dict[str, Tensor]
"""Norm -> (3, C) in float64: number of values, their sum, their sum of squares."""


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` did.

    Attributes:
        calibrated: Norms that have new statistics.
        unreached: Norms that received nothing, whose statistics are the old ones.
        batches: Number of batches of this rank.
        change: How far the last sweep moved a running mean at the most, in standard deviations of its channel.
    """

    calibrated: tuple[str, ...]
    unreached: tuple[str, ...]
    batches: int
    change: float


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[Any], object] | None = None,
    sweeps: int = 3,
) -> Calibration:
    """Replace the running statistics of BatchNorm and BatchChannelNorm by those of these batches, pooled.

    Every value of every batch counts alike, on all ranks, however the batches are sized. BatchNorm gets the unbiased
    variance, BatchChannelNorm with estimated statistics the biased one, as in training. Parameters, and the modes of
    modules, stay as they are; frozen norms are calibrated too. `num_batches_tracked` becomes at least the number of
    batches, so that a warm-up does not throw their statistics away. If anything fails, the old statistics are back.

    Args:
        model: Any model; with StepStatistics on it, call this right after a commit.
        batches: A list, a DataLoader or the like, which can be iterated `sweeps` times; the same number of times on
            every rank, but each may have another number of batches.
        forward: Runs the model on a batch, `model` itself by default.
        sweeps: Over the batches.

    Raises:
        ValueError: If there is no norm with statistics, no batch, an iterator in place of a collection, statistics
            pending in a StepStatistics, or if a norm receives infinities or nan.
    """
    norms: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (_BatchNorm, BatchChannelNorm)) and module.running_mean is not None
    }
    if not norms:
        raise ValueError('the model has no BatchNorm or BatchChannelNorm with running statistics')
    if sweeps < 1:
        raise ValueError(f'sweeps={sweeps}: at least one is needed')
    if iter(batches) is batches:
        raise ValueError(f'batches is an iterator, which ends with the first of {sweeps} sweeps: give a list')
    for name, norm in norms.items():
        pending = getattr(norm, 'pending_totals', None)
        if pending is not None and pending.any():
            raise ValueError(f'`{name}` has statistics that StepStatistics has not committed: call its commit() first')
    run = forward or model
    old = {name: [b.clone() for b in norm.buffers(recurse=False)] for name, norm in norms.items()}
    try:
        with evaluating(model), standardize_once(model):
            for sweep in range(sweeps):
                before = {name: norm.running_mean.double() for name, norm in norms.items()}
                with measuring(norms, follow=sweep == 0) as totals:
                    count = sum(1 for batch in batches if (run(batch), True))
                _add_other_ranks(totals)
                _check(totals)
                for name, total in totals.items():
                    set_statistics(norms[name], total)
    except BaseException:
        for name, norm in norms.items():
            for buffer, value in zip(norm.buffers(recurse=False), old[name], strict=True):
                buffer.copy_(value)
        raise
    calibrated = [name for name, total in totals.items() if total.any()]
    moved = []
    for name in calibrated:
        norm = norms[name]
        norm.num_batches_tracked.clamp_(min=count)
        moved.append(((norm.running_mean - before[name]).abs() / (norm.running_var + norm.eps).sqrt()).max())
    unreached = [name for name in norms if name not in calibrated]
    return Calibration(tuple(calibrated), tuple(unreached), count, float(torch.stack(moved).max()))


@contextmanager
def measuring(norms: Mapping[str, Any], *, follow: bool) -> Iterator[Totals]:
    """Add up what norms receive while the context is open.

    Args:
        norms: By name.
        follow: Whether each normalises with what has been added up so far, its present input included.
    """
    totals = {
        name: torch.zeros(3, norm.num_features, dtype=torch.float64, device=norm.running_mean.device)
        for name, norm in norms.items()
    }
    names = {norm: name for name, norm in norms.items()}

    def measure(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        x, total = args[0], totals[names[norm]]
        if x.numel():
            mean, var = (moment.double() for moment in moments(x))
            total.add_(torch.stack((torch.ones_like(mean), mean, var + mean.square())), alpha=x.numel() // len(mean))
            if follow:
                set_statistics(norm, total)

    handles = [norm.register_forward_pre_hook(measure) for norm in norms.values()]
    try:
        yield totals
    finally:
        for handle in handles:
            handle.remove()


def set_statistics(norm: Any, total: Tensor) -> None:
    """Make the running statistics those of the values behind a total (3, C); nothing if there are none."""
    count = total[0]
    if not count.any():
        return
    mean, square = total[1] / count, total[2] / count
    var = (square - mean.square()).clamp_min(0)
    if getattr(norm, 'statistics', 'batch') != 'estimated':
        var = var * count / (count - 1).clamp_min(1)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)


def _add_other_ranks(totals: Totals) -> None:
    if num_ranks() > 1:
        flat = torch.cat(list(totals.values()), dim=1)
        dist.all_reduce(flat)
        for total, summed in zip(totals.values(), flat.split([t.shape[1] for t in totals.values()], 1), strict=True):
            total.copy_(summed)


def _check(totals: Totals) -> None:
    if not any(total.any() for total in totals.values()):
        raise ValueError(f'none of the {len(totals)} norms received a value: there is no batch, or it is empty')
    for name, total in totals.items():
        if not total.isfinite().all():
            raise ValueError(f'`{name}` received infinities or nan: its statistics cannot be calibrated')
