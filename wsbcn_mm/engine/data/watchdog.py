"""Report the files on which a data loader hangs."""

import logging
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, get_worker_info

SLOTS = 257
"""Rows of the table of a dataset: the training process, and 256 workers."""


@HOOKS.register_module()
class LoaderWatchdogHook(Hook):
    """If no batch arrives for `patience` seconds, log the item of each loader process and for how long it has run.

    The hook logs again whenever the wait has doubled. It does not stop the run. The items are known for datasets with
    a `whereabouts` (`Whereabouts`). A thread watches the clock, so loading in the training process itself
    (`num_workers=0`) is watched as long as it lets other threads run.

    Args:
        patience: Seconds without a batch before the first message.

    Raises:
        ValueError: If `patience` is not positive.
    """

    priority = 'LOWEST'  # The time of other hooks between two batches does not count as waiting.

    def __init__(self, patience: float = 120.0) -> None:
        if not patience > 0:
            raise ValueError(f'patience={patience!r}: a number of seconds above 0 is expected')
        self.patience = patience
        self._waiting: tuple[str, DataLoader, float] | None = None
        self._training = False
        self._stop = threading.Event()

    def before_run(self, runner: Runner) -> None:
        self._stop.clear()
        threading.Thread(target=self._watch, args=(weakref.ref(runner),), name='LoaderWatchdog', daemon=True).start()

    def after_run(self, runner: Runner) -> None:
        self._stop.set()

    def before_train(self, runner: Runner) -> None:
        self._training = True

    def after_train(self, runner: Runner) -> None:
        self._training = False

    def before_train_epoch(self, runner: Runner) -> None:
        self._wait('train', runner.train_dataloader)

    def before_val_epoch(self, runner: Runner) -> None:
        self._wait('val', runner.val_dataloader)

    def before_test_epoch(self, runner: Runner) -> None:
        self._wait('test', runner.test_dataloader)

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self._waiting = None

    before_val_iter = before_test_iter = before_train_iter

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self._wait('train', runner.train_dataloader)

    def after_val_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        self._wait_for_next('val', runner.val_dataloader, batch_idx)

    def after_test_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        self._wait_for_next('test', runner.test_dataloader, batch_idx)

    def after_val_epoch(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self._training:
            self._wait('train', runner.train_dataloader)

    def _wait_for_next(self, name: str, loader: DataLoader, batch_idx: int) -> None:
        if batch_idx + 1 < len(loader):  # The last batch is followed by the metric, not by a batch.
            self._wait(name, loader)

    def _wait(self, name: str, loader: DataLoader) -> None:
        self._waiting = (name, loader, time.monotonic())

    def _watch(self, runner: 'weakref.ref[Runner]') -> None:
        reported, threshold = None, self.patience
        while not self._stop.wait(min(self.patience / 4, 5.0)) and runner() is not None:
            waiting = self._waiting
            if waiting is None or waiting is not reported:
                reported, threshold = waiting, self.patience
            if waiting is not None and time.monotonic() - waiting[2] > threshold:
                threshold = 2 * (time.monotonic() - waiting[2])
                print_log(describe_wait(*waiting), 'current', logging.WARNING)


def describe_wait(name: str, loader: DataLoader, since: float) -> str:
    """Describe in one line what the processes of a loader that returns no batch are working on.

    Args:
        name: Name of the loader.
        loader: The loader.
        since: Start of the wait, in seconds of `time.monotonic`.
    """
    text = f'no batch from the {name} loader for {time.monotonic() - since:.0f} s'
    dataset: Any = loader.dataset
    if getattr(dataset, 'whereabouts', None) is None:
        return f'{text}; the files of its {loader.num_workers} workers are unknown for a {type(dataset).__name__}'
    busy = [
        f'{"this process" if one.worker is None else f"worker {one.worker}"} on '
        f'{_path(dataset.get_data_info(one.item))!r} for {one.seconds:.0f} s'
        for one in dataset.whereabouts.now()
    ]
    return f'{text}: {"; ".join(busy) or f"its {loader.num_workers} workers are idle"}'


def _path(info: dict[str, Any]) -> Any:
    return info.get('path') or info.get('img_path') or info.get('sample_idx')


class Whereabout(NamedTuple):
    """An item that a process is working on.

    Attributes:
        worker: Number of the loader worker; None for the training process itself.
        item: Index in its dataset.
        seconds: Time since its start.
    """

    worker: int | None
    item: int
    seconds: float


class Whereabouts:
    """A table in shared memory, one row per loading process. It is created before the workers, which inherit it."""

    def __init__(self) -> None:
        # Index + 1, or 0 for none, and the start time. All processes share the clock.
        self._rows = torch.zeros(SLOTS, 2, dtype=torch.float64).share_memory_()

    @contextmanager
    def on(self, index: int) -> Iterator[None]:
        """Record the item that the block works on."""
        worker = get_worker_info()
        row = self._rows[0 if worker is None else 1 + worker.id % (SLOTS - 1)]
        row[1] = time.monotonic()
        row[0] = index + 1
        try:
            yield
        finally:
            row[0] = 0

    def now(self) -> list[Whereabout]:
        """Return the items in work, longest first."""
        rows, time_now = self._rows.tolist(), time.monotonic()
        busy = [
            Whereabout(slot - 1 if slot else None, int(index) - 1, time_now - since)
            for slot, (index, since) in enumerate(rows)
            if index
        ]
        return sorted(busy, key=lambda one: -one.seconds)


class WatchedItems:
    """Mixin for mmengine datasets that records their whereabouts."""

    def full_init(self) -> None:
        if not hasattr(self, 'whereabouts'):
            self.whereabouts = Whereabouts()
        super().full_init()  # type: ignore[misc]

    def prepare_data(self, idx: int) -> Any:
        with self.whereabouts.on(int(idx)):
            return super().prepare_data(idx)  # type: ignore[misc]
