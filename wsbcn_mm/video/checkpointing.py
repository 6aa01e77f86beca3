"""Activation checkpointing that leaves running statistics as one forward leaves them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import BatchChannelNorm
from .norms import norms_with_running_statistics

Buffers = list[tuple[nn.Module, dict[str, Tensor | None]]]


def checkpoint_keeping_statistics(block: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)` without its activations: they are recomputed in the backward pass.

    A recomputation in training mode would move the running statistics of torch's norms a second time. So it runs on
    copies of their buffers, and what it does to them is dropped. BatchChannelNorm knows a recomputation by itself.

    Args:
        block: The module that owns every norm `function` runs through.
        function: A function of one tensor.
        x: Input, of any shape.
    """
    before = _copy_of_buffers(block)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _buffers_replaced_by(before)

    return checkpoint(function, x, use_reentrant=False, context_fn=contexts)


def _copy_of_buffers(block: nn.Module) -> Buffers:
    return [
        (norm, {name: None if buffer is None else buffer.clone() for name, buffer in norm._buffers.items()})
        for norm in norms_with_running_statistics(block)
        if norm.training and not isinstance(norm, BatchChannelNorm)
    ]


@contextmanager
def _buffers_replaced_by(buffers: Buffers) -> Iterator[None]:
    # The tensors change places rather than values: the recomputed graph may have saved the ones it ran on.
    current = [(norm, dict(norm._buffers)) for norm, _ in buffers]
    for norm, replacement in buffers:
        norm._buffers.update({k: None if b is None else b.clone() for k, b in replacement.items()})
    try:
        yield
    finally:
        for norm, own in current:
            norm._buffers.update(own)
