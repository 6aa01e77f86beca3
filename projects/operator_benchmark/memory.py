"""Memory that autograd keeps from a forward pass for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], object], leave_out: Iterable[Tensor] = ()) -> int:
    """Return the bytes of the distinct storages that a forward pass saves.

    Tensors that share a storage count once. A view counts as the whole storage that it keeps alive. Recomputed regions
    save nothing. Tensors in the attributes of an autograd function are not seen.

    Args:
        forward: Runs the forward pass and returns the output, which holds the graph.
        leave_out: Tensors that do not count, such as parameters.
    """
    anyway = {tensor.untyped_storage().data_ptr() for tensor in leave_out}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Keep the tensor until the end, so that its address is not used again.
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in anyway)
