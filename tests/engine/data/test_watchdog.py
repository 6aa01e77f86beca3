import os
import re
import time
from threading import Timer

import pytest
import torch
from mmengine.dataset import BaseDataset
from torch.utils.data import DataLoader

import wsbcn_mm.engine.data.watchdog
from wsbcn_mm.engine.data.watchdog import LoaderWatchdogHook, WatchedItems, describe_wait


def read_pipe(info):
    """Read an item. A pipe without a writer hangs like a file on a failed drive."""
    if os.path.exists(info['path']):
        with open(info['path'], 'rb') as pipe:
            pipe.read()
        os.remove(info['path'])
    return dict(inputs=torch.ones(3, 6, 6))


class Pipes(WatchedItems, BaseDataset):
    """Items that are read from named pipes."""

    def __init__(self, folder, number):
        self.folder, self.number = folder, number
        super().__init__(pipeline=[read_pipe])

    def load_data_list(self):
        return [{'path': str(self.folder / str(item))} for item in range(self.number)]


class Run:
    """The part of a Runner that the hook uses."""

    def __init__(self, loader):
        self.train_dataloader = self.val_dataloader = loader


def test_a_loader_that_hangs_is_described_until_it_continues(tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr(wsbcn_mm.engine.data.watchdog, 'print_log', lambda text, *args: messages.append(text))
    os.mkfifo(tmp_path / '2')
    run = Run(DataLoader(Pipes(tmp_path, 4), batch_size=1, num_workers=2))
    # Releases the hanging item, like a drive that recovers.
    writer = Timer(1.5, lambda: os.close(os.open(tmp_path / '2', os.O_WRONLY)))
    watchdog = LoaderWatchdogHook(patience=0.2)
    batches = iter(run.train_dataloader)
    writer.start()
    watchdog.before_run(run)
    watchdog.before_train_epoch(run)
    for number, _ in enumerate(batches):
        watchdog.before_train_iter(run, number)
        watchdog.after_train_iter(run, number)
    watchdog.after_run(run)
    writer.join()
    assert number == 3
    pipe = re.escape(repr(str(tmp_path / '2')))
    waits = [text for text in messages if re.search(f'worker 0 on {pipe} for', text)]
    assert 1 <= len(waits) <= 4  # After 0.2 s, and whenever the wait has doubled.
    assert re.fullmatch(rf'no batch from the train loader for \d s: worker 0 on {pipe} for \d s', waits[-1])


def test_descriptions_without_workers_and_without_whereabouts(tmp_path):
    dataset = Pipes(tmp_path, 2)
    loader = DataLoader(dataset, batch_size=1)
    now = time.monotonic()
    assert describe_wait('val', loader, now) == 'no batch from the val loader for 0 s: its 0 workers are idle'
    with dataset.whereabouts.on(1):
        text = describe_wait('val', loader, now)
    assert text == f"no batch from the val loader for 0 s: this process on '{tmp_path}/1' for 0 s"
    assert describe_wait('test', DataLoader([1, 2]), now) == (
        'no batch from the test loader for 0 s; the files of its 0 workers are unknown for a list'
    )


def test_the_time_after_the_last_batch_does_not_count(tmp_path):
    watchdog = LoaderWatchdogHook()
    loader = DataLoader(Pipes(tmp_path, 2), batch_size=1)

    run = Run(loader)
    watchdog.before_train(run)
    watchdog.before_val_epoch(run)
    assert watchdog._waiting[0] == 'val'
    watchdog.before_val_iter(run, 0)
    watchdog.after_val_iter(run, 0)
    assert watchdog._waiting[0] == 'val'
    watchdog.before_val_iter(run, 1)
    watchdog.after_val_iter(run, 1)
    assert watchdog._waiting is None
    watchdog.after_val_epoch(run)
    assert watchdog._waiting[0] == 'train'
    with pytest.raises(ValueError, match=r'^patience=0: a number of seconds above 0 is expected$'):
        LoaderWatchdogHook(0)
