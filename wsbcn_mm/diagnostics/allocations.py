"""Record the storage that operations allocate, on any device and without its allocator."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass(slots=True, eq=False)
class Allocation:
    """A storage, alive after the operations `born`, ..., `died` - 1."""

    nbytes: int
    kind: str
    born: int
    died: int | None = None
    """None while it lives."""


class Allocations(TorchDispatchMode):
    """A context that records every storage that an operation returns, once, whatever views share it.

    Storage that was there before (parameters, buffers, inputs) does not count unless adopted. Memory inside one
    operation, such as a convolution's workspace, is invisible. Fake tensors are recorded like others.

    Args:
        kind: Gives the kind of what is born now, by default none.
    """

    def __init__(self, kind: Callable[[], str] = str) -> None:
        super().__init__()
        self.kind = kind
        self.record: list[Allocation] = []
        self.operations = 0
        """Operations so far."""
        self.alive = 0
        """Bytes alive now."""
        self.peak = 0
        """The most bytes alive at once."""
        self._known: dict[int, tuple[weakref.ref[torch.UntypedStorage], Allocation | None]] = {}

    def adopt(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count what was there before; a storage counts once, as the kind it was first adopted as."""
        for tensor in tensors:
            self._meet(tensor, kind)
        self.peak = max(self.peak, self.alive)

    def of(self, tensor: Tensor) -> Allocation | None:
        """The entry of a tensor's storage, if it counts."""
        known = self._known.get(id(tensor.untyped_storage()))
        return known[1] if known else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == 'profiler':  # marks that torch sets for its profiler
            return func(*args, **kwargs)
        for value in tree_iter((args, kwargs)):
            self._meet(value, None)
        out = func(*args, **kwargs)
        for value in tree_iter(out):
            self._meet(value, self.kind())
        self.peak = max(self.peak, self.alive)
        self.operations += 1
        return out

    def _meet(self, value: Any, kind: str | None) -> None:
        """Remember a storage; it counts if it has a kind."""
        if not isinstance(value, Tensor):
            return
        # torch keeps one Python object per storage as long as the storage lives.
        storage = value.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        entry = None
        if kind is not None:
            entry = Allocation(storage.nbytes(), kind, self.operations)
            self.record.append(entry)
            self.alive += entry.nbytes

        def forget(_: Any) -> None:
            del self._known[key]
            if entry is not None:
                self.alive -= entry.nbytes
                entry.died = self.operations

        self._known[key] = weakref.ref(storage, forget), entry
