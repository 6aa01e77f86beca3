"""Count the bytes that a training step keeps for its backward pass, on any device, without its allocator."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class ActivationBytes(NamedTuple):
    """Bytes of tensor storage."""

    kept: int
    """Alive between the forward and the backward pass."""
    peak: int
    """The most alive at once in both, gradients of the parameters included."""


def activation_bytes(forward: Callable[[], Tensor]) -> ActivationBytes:
    """Run `forward` and the backward pass of what it returns, and count the storage they allocate.

    Every storage that an operation returns counts once, whatever views share it, from its birth to its end; storage
    that was there before (parameters, buffers, inputs) does not. Memory inside one operation, such as a convolution's
    workspace, is invisible. `torch.autograd.graph.saved_tensors_hooks` would miss what checkpointing keeps by itself.

    Args:
        forward: Gives a scalar loss, e.g. `lambda: model(x).sum()`. Run it once before, so that what a first call
            creates once and for all does not count.
    """
    with _AllocationCounter() as counter:
        loss = forward()
        kept = counter.alive
        loss.backward()
    return ActivationBytes(kept, counter.peak)


class _AllocationCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self.known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tree_iter((args, kwargs)):
            self._meet(tensor, is_new=False)
        out = func(*args, **kwargs)
        for tensor in tree_iter(out):
            self._meet(tensor, is_new=True)
        self.peak = max(self.peak, self.alive)
        return out

    def _meet(self, value: Any, is_new: bool) -> None:
        if not isinstance(value, Tensor):
            return
        # torch keeps one Python object per storage as long as the storage lives.
        storage = value.untyped_storage()
        if id(storage) in self.known:
            return
        size = storage.nbytes() if is_new else 0
        self.alive += size
        key = id(storage)

        def forget(_: Any) -> None:
            self.alive -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, forget)
