"""The random numbers of an iteration depend on only seed, iteration and rank."""

import random

import numpy as np
import torch
from mmengine.hooks import Hook

from tests.engine.resume.counted_runs import run
from wsbcn_mm.engine.resume.seeds import IterationSeedHook


class Draws(Hook):
    """Records a draw of each generator per iteration."""

    def __init__(self):
        self.drawn = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.drawn[batch_idx] = random.random(), np.random.rand(), torch.rand(1).item()


def test_random_numbers_of_an_iteration_do_not_depend_on_what_came_before(trained, tmp_path):
    plain, validated, resumed = Draws(), Draws(), Draws()
    run(tmp_path / 'plain', plain, iters=4)
    run(tmp_path / 'validated', validated, iters=4, val_interval=1)
    file = f'{trained[0].work_dir}/iter_2.pth'
    run(tmp_path / 'resumed', resumed, iters=4, accumulation=2, load_from=file, resume=True)
    assert validated.drawn == plain.drawn
    assert resumed.drawn == {iteration: plain.drawn[iteration] for iteration in (2, 3)}
    assert len(set(plain.drawn.values())) == 4


def test_ranks_draw_different_numbers(trained, monkeypatch):
    runner, _ = trained
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr('wsbcn_mm.engine.resume.seeds.get_rank', lambda rank=rank: rank)
        IterationSeedHook().before_train_iter(runner)
        drawn.append(torch.rand(1).item())
    assert drawn[0] != drawn[1]
