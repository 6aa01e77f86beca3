"""How a batch is split over devices and micro-batches, and what another batch makes of a schedule."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

LR_RULES: dict[str, Callable[[float], float]] = {
    'linear': lambda ratio: ratio,
    'sqrt': math.sqrt,
    'constant': lambda ratio: 1.0,
}
"""Factor of the learning rate by the ratio of effective batches: linear (Goyal et al., arXiv 1706.02677), its square
root (Krizhevsky, arXiv 1404.5997), or none."""


class EffectiveBatch(NamedTuple):
    """The factors of an optimizer step's number of samples."""

    devices: int
    per_device: int
    accumulation: int

    @property
    def samples(self) -> int:
        return self.devices * self.per_device * self.accumulation

    def __str__(self) -> str:
        return f'{self.samples} = {self.devices} device(s) x {self.per_device} x accumulation {self.accumulation}'


def split_batch(samples: int, devices: int, per_device: int) -> EffectiveBatch:
    """Accumulate as many micro-batches of `per_device` samples on each device as make `samples`.

    Raises:
        ValueError: For numbers below 1, or where that is no whole number, with the nearest that are.
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
        hint += f'; {samples} itself goes with {" or ".join(map(str, nearest))} per device'
    raise ValueError(f'global batch {samples} is no multiple of {devices} device(s) x {per_device} = {forward}: {hint}')


def lr_factor(ratio: float, rule: str) -> float:
    """What the learning rate is multiplied by where an effective batch is `ratio` times the one it was tuned for.

    Raises:
        ValueError: For a rule that is not of LR_RULES.
    """
    if rule not in LR_RULES:
        raise ValueError(f'learning-rate rule {rule!r} is unknown: choose one of {", ".join(LR_RULES)}')
    return LR_RULES[rule](ratio)


def rescale_count(count: int, ratio: Fraction) -> int:
    """`count` iterations or steps times `ratio`, to the nearest whole number and, unless it is 0, at least 1."""
    return max(1, math.floor(count * ratio + Fraction(1, 2))) if count else 0
