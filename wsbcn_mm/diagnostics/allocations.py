"""Record the storage that operations allocate, on any device, independent of its allocator."""

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
    """A storage that is alive after the operations `born`, ..., `died` - 1."""

    nbytes: int
    kind: str
    born: int
    died: int | None = None
    """None while the storage is alive."""


class Allocations(TorchDispatchMode):
    """Context manager that records every storage returned by an operation, once, however many views share it.

    Storage that existed before (parameters, buffers, inputs) does not count unless adopted. Memory inside one
    operation, such as a convolution's workspace, is invisible. Fake tensors are recorded like real ones.

    Args:
        kind: Returns the kind of a storage that is allocated now; by default the empty string.
    """

    def __init__(self, kind: Callable[[], str] = str) -> None:
        super().__init__()
        self.kind = kind
        self.record: list[Allocation] = []
        self.operations = 0
        """Number of operations so far."""
        self.alive = 0
        """Bytes alive now."""
        self.peak = 0
        """Most bytes alive at once."""
        self._known: dict[int, tuple[weakref.ref[torch.UntypedStorage], Allocation | None]] = {}

    def adopt(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count storage that existed before; each storage counts once, with the kind of its first adoption."""
        for tensor in tensors:
            self._meet(tensor, kind)
        self.peak = max(self.peak, self.alive)

    def of(self, tensor: Tensor) -> Allocation | None:
        """Return the entry of a tensor's storage, or None if it does not count."""
        known = self._known.get(id(tensor.untyped_storage()))
        return known[1] if known else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == 'profiler':  # markers of torch's profiler, which allocate nothing of the step
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
