"""Derive the seeds of a run from its position, so that checkpoints need no generator states."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

ORDER, AUGMENTATION, MODEL = range(3)
"""Purposes of a seed: the order of an epoch, the augmentation of a sample, the model in an iteration."""


def seed_of(purpose: int, *which: int) -> int:
    """Return a seed of 64 bits. Seeds of different arguments are unrelated (numpy's SeedSequence)."""
    return int(np.random.SeedSequence((purpose, *which)).generate_state(1, np.uint64)[0])


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators, including those of GPUs."""
    _seed_python_and_numpy(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global CPU generators for a block, and restore their states afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed_python_and_numpy(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seed_python_and_numpy(seed: int) -> None:
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seed Python's, numpy's and torch's generators, on GPUs too, before every training iteration.

    The random numbers of an iteration, such as those of dropout, then do not depend on what ran before it: validation,
    another number of loader workers, or a kill and `--resume`. Checkpoints need no generator states. Ranks draw
    different numbers.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        seed_all(seed_of(MODEL, runner.seed, runner.iter, get_rank()))
