"""Count the bytes that a training step keeps for its backward pass, on any device, independent of its allocator."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .allocations import Allocations


class ActivationBytes(NamedTuple):
    """Bytes of tensor storage."""

    kept: int
    """Bytes alive between the forward and the backward pass."""
    peak: int
    """Most bytes alive at once in both passes, including the gradients of the parameters."""


def activation_bytes(forward: Callable[[], Tensor]) -> ActivationBytes:
    """Run `forward` and the backward pass of its result, and count the storage that they allocate.

    `Allocations` defines what counts. `torch.autograd.graph.saved_tensors_hooks` would miss the tensors that
    checkpointing keeps itself.

    Args:
        forward: Returns a scalar loss, e.g. `lambda: model(x).sum()`. Run it once before, so that tensors which only
            the first call creates are not counted.
    """
    with Allocations() as counter:
        loss = forward()
        kept = counter.alive
        loss.backward()
    return ActivationBytes(kept, counter.peak)
