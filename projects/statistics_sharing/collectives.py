"""Count what a piece of code sends between ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

KINDS = {'allreduce_': 'all_reduce', 'allgather_': 'all_gather', '_allgather_base_': 'all_gather'}
"""Operator of torch.distributed -> what it does."""


class Sent(NamedTuple):
    """What one rank sends."""

    calls: int
    bytes: int
    """Length of the rank's own messages, independent of the algorithm on the network."""


def count_sent(work: Callable[[], object]) -> dict[str, Sent]:
    """Count the collectives of this rank while `work` runs, by kind, DistributedDataParallel's included.

    Raises:
        ValueError: If a collective is not one of `KINDS`.
    """
    with _Counter() as counter:
        work()
    return {kind: Sent(counter.calls[kind], counter.bytes[kind]) for kind in sorted(counter.calls)}


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == 'c10d':
            name = func._schema.name.removeprefix('c10d::')
            if name not in KINDS:
                raise ValueError(f'collective={name!r}: only {", ".join(KINDS)} can be counted')
            sent = args[0] if name == 'allreduce_' else args[1]
            self.calls[KINDS[name]] += 1
            self.bytes[KINDS[name]] += sum(one.nbytes for one in tree_iter(sent) if isinstance(one, Tensor))
        return func(*args, **(kwargs or {}))
