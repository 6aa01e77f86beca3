"""Timing in interleaved rounds, so that a slow moment of the machine slows all sides."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import torch

Work = Callable[[], object]


def cpu_timer(work: Work, repeats: int) -> float:
    """Return the milliseconds of one call, the mean over `repeats` calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) * 1e3 / repeats


def cuda_timer(work: Work, repeats: int) -> float:
    """As `cpu_timer`, with events on the current stream: launches overlap with earlier kernels."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / repeats


TIMERS = {'cpu': cpu_timer, 'cuda': cuda_timer}


def interleave(
    works: Mapping[str, Work],
    *,
    device: torch.device,
    rounds: int,
    warmup: int = 3,
    sample_ms: float = 5.0,
    advance: Callable[[], object] = lambda: None,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time A B C A B C ..., one sample of each in every round.

    Args:
        works: Name -> a function to time.
        device: Where they run.
        rounds: Number of samples of each.
        warmup: Number of calls of each before the first sample.
        sample_ms: A sample is the mean over the calls that fill this time, at least one.
        advance: Called after every round.

    Returns:
        Milliseconds of one call, by name and round, and the reason for each work that raised in the warm-up and was
        left out.
    """
    timer = TIMERS[device.type]
    repeats, reasons = {}, {}
    for name, work in works.items():
        try:
            for _ in range(warmup):
                work()
            repeats[name] = max(1, math.ceil(sample_ms / timer(work, 1)))
        except Exception as error:
            reasons[name] = reason_of(error)
    samples: dict[str, list[float]] = {name: [] for name in repeats}
    for _ in range(rounds):
        for name, calls in repeats.items():
            samples[name].append(timer(works[name], calls))
        advance()
    return samples, reasons


def reason_of(error: Exception) -> str:
    """Return an error as one line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), '')
    return f'{type(error).__name__}: {first}' if first else type(error).__name__
