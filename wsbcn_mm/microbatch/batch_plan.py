"""Split a batch over devices and micro-batches, and rescale a schedule to another batch."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

LR_RULES: dict[str, Callable[[float], float]] = {
    'linear': lambda ratio: ratio,
    'sqrt': math.sqrt,
    'constant': lambda ratio: 1.0,
}
"""Learning-rate factor by the ratio of effective batches: the ratio itself (Goyal et al., arXiv 1706.02677), its square
root (Krizhevsky, arXiv 1404.5997), or 1."""


class EffectiveBatch(NamedTuple):
    """Samples of one optimizer step, as a product of devices, samples per device and accumulation."""

    devices: int
    per_device: int
    accumulation: int

    @property
    def samples(self) -> int:
        return self.devices * self.per_device * self.accumulation

    def __str__(self) -> str:
        return f'{self.samples} = {self.devices} device(s) x {self.per_device} x accumulation {self.accumulation}'


def split_batch(samples: int, devices: int, per_device: int) -> EffectiveBatch:
    """Return the accumulation with which `per_device` samples on each device make `samples` per optimizer step.

    Raises:
        ValueError: For numbers below 1, or if `samples` is not a multiple of `devices` x `per_device`. The error names
            the nearest multiples.
    """
    for name, value in (('global batch', samples), ('devices', devices), ('samples per device', per_device)):
        if value < 1:
            raise ValueError(f'{name}={value!r}: at least 1 is expected')
    forward = devices * per_device
    if samples % forward == 0:
        return EffectiveBatch(devices, per_device, samples // forward)
    below = samples // forward * forward
    hint = f'the nearest are {below} and {below + forward}' if below else f'the nearest is {forward}'
    if samples % devices == 0:
        share = samples // devices
        fitting = [n for n in range(1, share + 1) if share % n == 0]
        nearest = sorted(sorted(fitting, key=lambda n: abs(n - per_device))[:2])
        hint += f'; {samples} itself works with {" or ".join(map(str, nearest))} per device'
    raise ValueError(
        f'global batch {samples} is not a multiple of {devices} device(s) x {per_device} = {forward}: {hint}'
    )


def lr_factor(ratio: float, rule: str) -> float:
    """Return the factor of the learning rate for an effective batch `ratio` times as large as the one it was tuned for.

    Raises:
        ValueError: For a rule that is not in LR_RULES.
    """
    if rule not in LR_RULES:
        raise ValueError(f'learning-rate rule={rule!r}: one of {", ".join(LR_RULES)} is expected')
    return LR_RULES[rule](ratio)


def rescale_count(count: int, ratio: Fraction) -> int:
    """Return `count` iterations or steps times `ratio`, rounded, and at least 1 unless `count` is 0."""
    return max(1, math.floor(count * ratio + Fraction(1, 2))) if count else 0
