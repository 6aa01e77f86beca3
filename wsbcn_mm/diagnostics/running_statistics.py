"""Running statistics of a model's norms: read them, restore them, and measure their true values."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import BatchChannelNorm
from ..ops.batch_norm import num_ranks
from ..ops.bcn.reference import moments

Totals = dict[str, Tensor]
"""Norm -> (3, C) float64: number of values, their sum, their sum of squares."""


class NormStatistics(NamedTuple):
    """Running statistics of one norm.

    Attributes:
        mean: (C,).
        var: (C,).
        num_batches_tracked: Scalar.
    """

    mean: Tensor
    var: Tensor
    num_batches_tracked: Tensor


def norms_with_statistics(model: nn.Module) -> dict[str, Any]:
    """Return the BatchNorm and BatchChannelNorm layers that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (_BatchNorm, BatchChannelNorm)) and module.running_mean is not None
    }


def require_statistics(model: nn.Module) -> dict[str, Any]:
    """Return `norms_with_statistics`; raise ValueError if there are none."""
    norms = norms_with_statistics(model)
    if not norms:
        raise ValueError('the model has no BatchNorm or BatchChannelNorm with running statistics')
    return norms


def statistics_of(norms: Mapping[str, Any]) -> dict[str, NormStatistics]:
    """Return copies of the norms' running statistics."""
    return {
        name: NormStatistics(n.running_mean.clone(), n.running_var.clone(), n.num_batches_tracked.clone())
        for name, n in norms.items()
    }


@torch.no_grad()
def put_statistics(norms: Mapping[str, Any], statistics: Mapping[str, NormStatistics]) -> None:
    """Write `statistics` into the norms of the same name; other norms do not change."""
    for name, (mean, var, num_batches_tracked) in statistics.items():
        norms[name].running_mean.copy_(mean)
        norms[name].running_var.copy_(var)
        norms[name].num_batches_tracked.copy_(num_batches_tracked)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and restore the mode of every module afterwards; modes may differ."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def measuring(norms: Mapping[str, Any], *, after_each: Callable[[Any, Tensor], None] | None = None) -> Iterator[Totals]:
    """Sum up the inputs of norms while the context is open.

    Args:
        norms: Norms by name.
        after_each: Called with a norm and its total so far, including the current input, before the norm runs on it.
    """
    totals = {
        name: torch.zeros(3, norm.num_features, dtype=torch.float64, device=norm.running_mean.device)
        for name, norm in norms.items()
    }
    names = {norm: name for name, norm in norms.items()}

    def measure(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        x, total = args[0], totals[names[norm]]
        if x.numel():
            mean, var = (moment.double() for moment in moments(x.detach()))
            total.add_(torch.stack((torch.ones_like(mean), mean, var + mean.square())), alpha=x.numel() // len(mean))
            if after_each is not None:
                after_each(norm, total)

    handles = [norm.register_forward_pre_hook(measure) for norm in norms.values()]
    try:
        yield totals
    finally:
        for handle in handles:
            handle.remove()


def run_all(model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], object] | None = None) -> int:
    """Run `forward`, by default the model, on every batch, and return the number of batches."""
    run = forward or model
    count = 0
    for batch in batches:
        run(batch)
        count += 1
    return count


def mean_and_var(total: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (C,) of the values in a total (3, C), in float64."""
    mean, square = total[1] / total[0], total[2] / total[0]
    return mean, (square - mean.square()).clamp_min(0)


def set_statistics(norm: Any, total: Tensor) -> None:
    """Set the running statistics to those of the values in a total (3, C); do nothing if it is empty."""
    count = total[0]
    if not count.any():
        return
    mean, var = mean_and_var(total)
    if getattr(norm, 'statistics', 'batch') != 'estimated':
        var = var * count / (count - 1).clamp_min(1)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)


def add_other_ranks(totals: Totals) -> None:
    """Sum the totals of all ranks in place, with one all-reduce."""
    if num_ranks() > 1:
        flat = torch.cat(list(totals.values()), dim=1)
        dist.all_reduce(flat)
        for total, summed in zip(totals.values(), flat.split([t.shape[1] for t in totals.values()], 1), strict=True):
            total.copy_(summed)


def check_totals(totals: Totals) -> None:
    """Raise ValueError if no norm received a value, or a norm received infinities or nan."""
    if not any(total.any() for total in totals.values()):
        raise ValueError(f'none of the {len(totals)} norms received a value: at least one batch with data is expected')
    for name, total in totals.items():
        if not total.isfinite().all():
            raise ValueError(f'`{name}` received infinities or nan: its statistics cannot be measured')
