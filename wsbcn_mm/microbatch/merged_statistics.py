"""Merge the running statistics of all ranks."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from ..ops.batch_norm import num_ranks


@torch.no_grad()
def merge_statistics(norms: Mapping[str, Any]) -> None:
    """Replace every rank's own running statistics by those of all ranks' data.

    Rank r has the weight of its number of batches w_r:

        mean = sum_r w_r mean_r / sum_r w_r
        var  = sum_r w_r (var_r + (mean_r - mean)^2) / sum_r w_r

    The second term is the variance between ranks, which an average of the variances (mmengine's SyncBuffersHook) drops.
    Statistics that already agree do not change, bit for bit. Counters never change. A norm that saw no batch on any
    rank keeps its own statistics. With biased variances the result equals that of one process on the union of the data;
    BatchNorm's unbiased variances remain those of one rank's batches. Call it on every rank; it does one all-gather of
    3 numbers per channel.

    Args:
        norms: Norms by name, with running_mean, running_var and num_batches_tracked; the same norms on every rank.
    """
    if num_ranks() == 1 or not norms:
        return
    own = torch.cat(
        [
            torch.stack(
                (n.num_batches_tracked.double().expand(n.num_features), n.running_mean.double(), n.running_var.double())
            )
            for n in norms.values()
        ],
        dim=1,
    )
    gathered = [torch.empty_like(own) for _ in range(num_ranks())]
    dist.all_gather(gathered, own)
    batches, mean, var = torch.stack(gathered, 1)
    total = batches.sum(0)
    merged_mean = (batches * mean).sum(0) / total
    merged_var = (batches * (var + (mean - merged_mean).square())).sum(0) / total
    start = 0
    for norm in norms.values():
        here = slice(start, start := start + norm.num_features)
        if total[here].any():
            norm.running_mean.copy_(merged_mean[here])
            norm.running_var.copy_(merged_var[here])
