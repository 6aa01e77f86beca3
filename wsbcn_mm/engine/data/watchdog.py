"""Say which files the data loader is stuck on."""

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


@HOOKS.register_module()
class LoaderWatchdogHook(Hook):
    """While no batch comes for `patience` seconds, log what each loader process has been on and for how long.

    It says so again whenever the wait has doubled, and stops nothing. What the processes are on is known for data
    sets with a `whereabouts` (`Whereabouts`). A thread looks at the clock, so loading in the training process
    itself (`num_workers=0`) is watched as long as it lets other threads run.

    Args:
        patience: Seconds without a batch before the first message.

    Raises:
        ValueError: If `patience` is not positive.
    """

    priority = 'LOWEST'  # what other hooks do between two batches is no waiting

    def __init__(self, patience: float = 120.0) -> None:
        if not patience > 0:
            raise ValueError(f'patience={patience!r}: seconds above 0 are needed')
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
        if batch_idx + 1 < len(loader):  # behind the last one comes the metric, not a batch
            self._wait(name, loader)

    def _wait(self, name: str, loader: DataLoader) -> None:
        self._waiting = (name, loader, time.monotonic())

    def _watch(self, runner: 'weakref.ref[Runner]') -> None:
        said, threshold = None, self.patience
        while not self._stop.wait(min(self.patience / 4, 5.0)) and runner() is not None:
            waiting = self._waiting
            if waiting is None or waiting is not said:
                said, threshold = waiting, self.patience
            if waiting is not None and time.monotonic() - waiting[2] > threshold:
                threshold = 2 * (time.monotonic() - waiting[2])
                print_log(describe_wait(*waiting), 'current', logging.WARNING)


def describe_wait(name: str, loader: DataLoader, since: float) -> str:
    """What a loader that gives no batch is on, in one line.

    Args:
        name: Of the loader.
        loader: The loader.
        since: When the wait began, in seconds of `time.monotonic`.
    """
    text = f'no batch from the {name} loader for {time.monotonic() - since:.0f} s'
    dataset: Any = loader.dataset
    if getattr(dataset, 'whereabouts', None) is None:
        return f'{text}; what its {loader.num_workers} workers are on is not known for a {type(dataset).__name__}'
    busy = [
        f'{"this process" if one.worker is None else f"worker {one.worker}"} on '
        f'{_path(dataset.get_data_info(one.item))!r} for {one.seconds:.0f} s'
        for one in dataset.whereabouts.now()
    ]
    return f'{text}: {"; ".join(busy) or f"its {loader.num_workers} workers are on no file"}'


def _path(info: dict[str, Any]) -> Any:
    return info.get('path') or info.get('img_path') or info.get('sample_idx')


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
