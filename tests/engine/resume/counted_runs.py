"""Runs that count the samples they read, and positions of runs."""

from torch.utils.data import Dataset

from tests.engine.toy_runs import Points, Toy, runner_of
from wsbcn_mm.engine.resume.position import Position
from wsbcn_mm.engine.resume.seeded_samples import SeededSamples

POSITION = dict(type='ResumePositionHook')


class Counted(Dataset):
    """Records the indices that it was asked for."""

    def __init__(self, length=24):
        self.asked, self.length, self.points = [], length, Points()

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.asked.append(index)
        return self.points[index]


def run(folder, *hooks, length=24, iters, wrap=SeededSamples, **settings):
    """Return a trained Runner with samples in random order, and the indices that it read."""
    runner = runner_of(folder, Toy(), POSITION, *hooks, iters=iters, **settings)
    runner._train_dataloader.update(dataset=wrap(Counted(length)), sampler=dict(type='GlobalOrderSampler'))
    runner.train()
    return runner, runner.train_dataloader.dataset.asked


def position(devices, per_device=1, accumulation=1, ticks=1):
    return Position(devices, per_device, accumulation, ticks, 100, 24, 0)
