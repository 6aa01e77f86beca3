"""Bytes that autograd keeps from a forward pass for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], object], leave_out: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages that a forward pass saves.

    Tensors that share a storage count once, a view counts as the whole storage that it keeps alive. What a
    checkpointed region recomputes is not saved, and what an autograd function hides in its own attributes is not seen.

    Args:
        forward: Runs the forward pass and returns what holds its graph.
        leave_out: Tensors that are there anyway, such as parameters.
    """
    anyway = {tensor.untyped_storage().data_ptr() for tensor in leave_out}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Kept until the end, so that no address is used twice.
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in anyway)
