"""Random numbers as functions of what they are for, so that no generator's state has to be kept."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

ORDER, AUGMENTATION, MODEL = range(3)
"""What numbers are for: the order of an epoch, the augmentation of a sample, the model in an iteration."""


def seed_of(purpose: int, *which: int) -> int:
    """A seed of 64 bits; others are unrelated to it if any of the numbers differs (numpy's SeedSequence)."""
    return int(np.random.SeedSequence((purpose, *which)).generate_state(1, np.uint64)[0])


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators, those of GPUs included."""
    _seed_python_and_numpy(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of the CPU for a block, and put them back afterwards."""
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
