"""Questions about normalisation layers that every kind of norm answers alike."""

from collections.abc import Iterator

from torch import nn


def norms_with_running_statistics(module: nn.Module) -> Iterator[nn.Module]:
    """Every norm below `module` that keeps running statistics: BN, SyncBN, tracking IN and BatchChannelNorm."""
    return (m for m in module.modules() if getattr(m, 'running_mean', None) is not None)
