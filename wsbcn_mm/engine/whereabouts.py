"""Which item each process of a data loader is on, readable from the training process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils.data import get_worker_info

SLOTS = 257


class Whereabout(NamedTuple):
    """A process at work.

    Attributes:
        worker: number of the loader worker; None for the training process itself.
        item: index in its dataset.
        seconds: since when.
    """

    worker: int | None
    item: int
    seconds: float


class Whereabouts:
    """A table in shared memory, one row per loading process; made before the workers, who inherit it."""

    def __init__(self) -> None:
        # Index + 1, or 0 for none, and the time: the clock is the same in all processes.
        self._rows = torch.zeros(SLOTS, 2, dtype=torch.float64).share_memory_()

    @contextmanager
    def on(self, index: int) -> Iterator[None]:
        """Note the item that is worked on in the block."""
        worker = get_worker_info()
        row = self._rows[0 if worker is None else 1 + worker.id % (SLOTS - 1)]
        row[1] = time.monotonic()
        row[0] = index + 1
        try:
            yield
        finally:
            row[0] = 0

    def now(self) -> list[Whereabout]:
        """The processes that are at work, those longest at it first."""
        rows, time_now = self._rows.tolist(), time.monotonic()
        busy = [
            Whereabout(slot - 1 if slot else None, int(index) - 1, time_now - since)
            for slot, (index, since) in enumerate(rows)
            if index
        ]
        return sorted(busy, key=lambda one: -one.seconds)


class WatchedItems:
    """Mixin for mmengine datasets that keeps their whereabouts."""

    def full_init(self) -> None:
        if not hasattr(self, 'whereabouts'):
            self.whereabouts = Whereabouts()
        super().full_init()  # type: ignore[misc]

    def prepare_data(self, idx: int) -> Any:
        with self.whereabouts.on(int(idx)):
            return super().prepare_data(idx)  # type: ignore[misc]
