"""Count the bytes that a training step keeps for its backward pass, on any device, without its allocator."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .allocations import Allocations


class ActivationBytes(NamedTuple):
    """Bytes of tensor storage."""

    kept: int
    """Alive between the forward and the backward pass."""
    peak: int
    """The most alive at once in both, gradients of the parameters included."""


def activation_bytes(forward: Callable[[], Tensor]) -> ActivationBytes:
    """Run `forward` and the backward pass of what it returns, and count the storage they allocate.

    What counts is what `Allocations` records. `torch.autograd.graph.saved_tensors_hooks` would miss what checkpointing
    keeps by itself.

    Args:
        forward: Gives a scalar loss, e.g. `lambda: model(x).sum()`. Run it once before, so that what a first call
            creates once and for all does not count.
    """
    with Allocations() as counter:
        loss = forward()
        kept = counter.alive
        loss.backward()
    return ActivationBytes(kept, counter.peak)
