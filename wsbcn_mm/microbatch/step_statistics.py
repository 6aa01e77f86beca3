"""Running statistics of BatchChannelNorm that move once per optimizer step, by the pooled totals of its micro-batches.

    statistics = StepStatistics(model)
    for batches in steps:
        for batch in batches:                # accumulation
            loss(model(batch)).backward()
        optimizer.step()
        statistics.commit()

Between two commits the buffers do not change. Every forward normalises with

    running + rate (own micro-batch - running)

and adds (count, count mean, count second moment) to its layer's pending totals. The commit sums the totals of all
ranks, and moves the buffers:

    running_mean += rate (total mean / total count - running_mean)
    running_var  += rate (total second moment / total count - running_var)

The second moments are around the running mean before the step, which all micro-batches on all ranks share. So k
micro-batches on w ranks give the statistics of their union, however it is split.
"""

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..layers import BatchChannelNorm
from ..ops.batch_norm import num_ranks


class StepStatistics:
    """Move the estimates of a model's BatchChannelNorm layers once per optimizer step.

    It handles the layers with `statistics='estimated'`. A layer that the model uses in several places counts once, and
    all its forwards are pooled. `num_batches_tracked` then counts commits, and `warmup` averages over steps.

    Create it when the layers are in their final place, on the bare model or inside DistributedDataParallel. The model
    may move to another device later. A deepcopy or a pickle of the model is not covered: its buffers move once per
    forward until it gets a StepStatistics of its own. A second one on the same model takes over, with nothing pending.

    Only `commit` communicates: one all-reduce of 3 numbers per channel for the whole model. With NCCL the host does not
    wait for it, and the device waits only where the next forward reads the buffers. All ranks hold identical buffers at
    all times; `broadcast_buffers=True` of DistributedDataParallel would only copy equal buffers from rank 0 before
    every forward.

    Args:
        model: A module on one device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, BatchChannelNorm) and module.statistics == 'estimated'
        }
        self._schedule: tuple[tuple[object, ...], Tensor] | None = None
        for layer in self._layers.values():
            shape, device = (3, layer.num_features), layer.running_mean.device
            layer.pending_totals = torch.zeros(shape, dtype=torch.float64, device=device)

    @property
    def layers(self) -> Mapping[str, BatchChannelNorm]:
        """The handled layers, by name."""
        return self._layers

    @torch.no_grad()
    def commit(self) -> None:
        """Move the buffers by the totals since the last commit. Call it on every rank, after the optimizer step.

        A layer that measured nothing on any rank does not change: a frozen or unused layer, or one in evaluation mode.
        """
        if not self._pending():
            return
        _, layers, pending = zip(*self._pending(), strict=True)
        totals = torch.cat(pending, dim=1)
        if num_ranks() > 1:
            dist.all_reduce(totals)
        count, total, total_of_squares = totals
        rate, moved = self._rates(layers, count)
        mean, second_moment = total / count.clamp_min(1), total_of_squares / count.clamp_min(1)
        running_mean, running_var = [layer.running_mean for layer in layers], [layer.running_var for layer in layers]
        torch._foreach_lerp_(running_mean, _split_as(mean, running_mean), _split_as(rate, running_mean))
        torch._foreach_lerp_(running_var, _split_as(second_moment, running_var), _split_as(rate, running_var))
        torch._foreach_add_([layer.num_batches_tracked for layer in layers], list(moved.unbind()))
        torch._foreach_zero_(pending)

    def _rates(self, layers: Sequence[BatchChannelNorm], count: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rate of every channel, 0 where nothing was measured, and whether each layer moves, as 0 or 1."""
        key = (count.device, *((layer.rate, layer.warmup, layer.num_features) for layer in layers))
        if self._schedule is None or self._schedule[0] != key:
            # Rebuilt only when a schedule changes a rate: the copy from the host waits for the device.
            rows = [(layer.rate, layer.warmup and layer.rate > 0, layer.num_features) for layer in layers]
            self._schedule = key, torch.tensor(rows, dtype=torch.float64).T.to(count.device)
        constant, warmup, width = self._schedule[1]
        sizes = width.long()
        seen = torch.stack([layer.num_batches_tracked for layer in layers]) + 1
        measured = count[sizes.cumsum(0) - sizes] > 0
        rate = torch.maximum(constant, warmup / seen) * measured
        return rate.repeat_interleave(sizes, output_size=len(count)), (rate > 0).long()

    def close(self) -> None:
        """Let the buffers move once per forward again, and drop pending totals."""
        for layer in self._layers.values():
            layer.pending_totals = None
        self._layers = {}

    def state_dict(self) -> dict[str, Tensor]:
        """Return name -> pending totals (3, C) of this rank, for layers with measurements since the last commit."""
        totals = {name: pending.to('cpu', copy=True) for name, _, pending in self._pending()}
        return {name: total for name, total in totals.items() if total.any()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace the pending totals by those in `state`.

        Raises:
            ValueError: If `state` has a layer that this model lacks, or that has another width here.
        """
        for name, totals in state.items():
            layer = self._layers.get(name)
            if layer is None or totals.shape != (3, layer.num_features):
                raise ValueError(
                    f'pending statistics of {name!r} have the shape {tuple(totals.shape)}, but '
                    + (
                        f'(3, {layer.num_features}) is expected'
                        if layer
                        else 'the model has no such layer with estimated statistics'
                    )
                )
        for name, _, pending in self._pending():
            pending.copy_(state.get(name, torch.zeros(())))

    def _pending(self) -> list[tuple[str, BatchChannelNorm, Tensor]]:
        """Return name, layer and pending totals, without layers that another StepStatistics closed."""
        return [
            (name, layer, layer.pending_totals)
            for name, layer in self._layers.items()
            if layer.pending_totals is not None
        ]


def _split_as(flat: Tensor, buffers: Sequence[Tensor]) -> list[Tensor]:
    """Split `flat`, the concatenated channels of all layers, into tensors of the buffers' sizes and dtypes."""
    common = flat.to(reduce(torch.promote_types, {b.dtype for b in buffers}))
    parts = common.split([b.numel() for b in buffers])
    return [part.to(b.dtype) for part, b in zip(parts, buffers, strict=True)]
