"""Judge whether data loading keeps up with the model, and advise what would help."""

import math
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..runner import effective_batch
from .speed import SampleTime, pipelines_of, time_samples, usable_cores

FINE = 0.1
"""Fraction of a step that may be spent waiting for data."""

SHORT_SIDE = 256
"""Pixels of the short side of the advised video copies: the recipes' tests cut crops of 224 pixels from this size."""


def describe_wait(waited: float, step: float) -> str:
    """Return 'data 71 % of the step (0.710 of 1.000 s)'."""
    return f'data {100 * waited / step:.0f} % of the step ({waited:.3f} of {step:.3f} s)'


def bound_by(sample: SampleTime) -> str:
    """Return 'decode-bound' or 'augment-bound', with the shares of the time.

    >>> from wsbcn_mm.engine.data.speed import Stage
    >>> bound_by(SampleTime((Stage('DecodeClip', 0.06), Stage('FlipClip', 0.02)), 0.08, 10))
    'decode-bound: decode 75 % of the 80 ms of a sample (DecodeClip 75 %)'
    """
    decodes = sample.decoding >= 0.5
    kind, share = ('decode', sample.decoding) if decodes else ('augment', 1 - sample.decoding)
    longest = max((s for s in sample.stages if s.decodes == decodes), key=lambda s: s.seconds)
    return (
        f'{kind}-bound: {kind} {100 * share:.0f} % of the {1000 * sample.seconds:.3g} ms of a sample '
        f'({longest.name} {100 * longest.seconds / sample.seconds:.0f} %)'
    )


def workers_needed(sample: SampleTime, rate: float) -> int:
    """Return the number of workers, with a core each, that load `rate` samples per second."""
    return math.ceil(round(rate * sample.seconds, 6))


def remedies(sample: SampleTime, *, workers: int, rate: float, cores: int) -> list[str]:
    """Return advice on how the loader can reach `rate` samples per second.

    Args:
        sample: Time to load one sample.
        workers: Current workers of the loader; 0 is the training process itself.
        rate: Samples per second that the model could consume.
        cores: Cores that these workers share.
    """
    needed = workers_needed(sample, rate)
    if needed > cores:
        found = [f'{amount(rate)} samples/s need {needed} workers with a core each; {cores} cores are available']
    elif needed > workers:
        found = [f'num_workers={needed} instead of {workers} would load {amount(rate)} samples/s on {cores} cores']
    else:
        found = [
            f'{needed} of the {workers} workers would load {amount(rate)} samples/s with a core each and a fast disk: '
            f'check the other load on the {cores} cores and the speed of the disk'
        ]
    return found + smaller_copies(sample)


def smaller_copies(sample: SampleTime) -> list[str]:
    """Advise smaller copies of the videos, if decoding dominates and the frames are larger than needed."""
    if sample.frame_size is None or sample.decoding < 0.5 or min(sample.frame_size) <= SHORT_SIDE:
        return []
    height, width = sample.frame_size
    factor = (min(height, width) / SHORT_SIDE) ** 2
    return [
        f'copies of the videos with a short side of {SHORT_SIDE} have 1/{factor:.1f} of the {width}x{height} pixels'
    ]


def judge_training(
    waited: float, step: float, *, batch: int, workers: int, cores: int, sample: SampleTime | None
) -> str:
    """Return a verdict in one line on iterations that took `step` seconds, `waited` of them for data.

    Args:
        waited: Mean seconds between the end of a step and its next batch.
        step: Mean seconds of an iteration, waiting included.
        batch: Samples per iteration of this process.
        workers: Workers of the loader.
        cores: Cores that these workers share.
        sample: Time to load one sample; None if unknown.
    """
    wait = describe_wait(waited, step)
    if waited < FINE * step:
        return f'{wait}: fine'
    if sample is None:
        return f'{wait}: the loader does not keep up with the model'
    rate = batch / max(step - waited, 1e-6)
    advice = remedies(sample, workers=workers, rate=rate, cores=cores)
    return f'{wait}, {bound_by(sample)}; {"; ".join(advice)}'


def judge_loader(
    sample: SampleTime, speed: float, *, workers: int, cores: int, batch: int, step: float | None
) -> list[str]:
    """Return a verdict in lines on a loader that loads `speed` samples per second.

    Args:
        sample: Time to load one sample.
        speed: Samples per second of the workers, when nothing else runs.
        workers: Workers of the loader.
        cores: Cores that these workers share.
        batch: Samples per iteration of one device.
        step: Seconds of an iteration without loading, if known.
    """
    one_thread = amount(1 / sample.seconds)
    makes = f'num_workers={workers} on {cores} cores loads {amount(speed)} samples/s, a single thread {one_thread}'
    if step is None:
        return [
            bound_by(sample),
            makes,
            *smaller_copies(sample),
            'whether this is enough depends on the model: set --step-time SECONDS',
        ]
    rate = batch / step
    if speed > (1 - FINE) * rate:
        return [f'fine: the model consumes {amount(rate)} samples/s', makes, bound_by(sample)]
    wait = f'expected: {describe_wait(batch / speed - step, batch / speed)}'
    return [f'{wait}, {bound_by(sample)}', makes, *remedies(sample, workers=workers, rate=rate, cores=cores)]


def amount(number: float) -> str:
    """Format a number with three significant digits, or as an integer from 100 on."""
    return f'{number:,.0f}' if number >= 100 else f'{number:.3g}'


@HOOKS.register_module()
class DataSpeedHook(Hook):
    """Log once which share of an iteration is spent waiting for data. From 10 % on, log the cause and the remedies.

    The first iterations do not count: workers start and libraries choose algorithms. Only if loading is too slow, the
    hook times some samples in this process, which takes at most a few seconds.

    Args:
        iterations: Iterations of this run after which the hook logs.
        skipped: Iterations at the start that do not count.

    Raises:
        ValueError: Unless 0 <= skipped < iterations.
    """

    # After IterTimerHook, which measures.
    priority = 'LOW'

    def __init__(self, iterations: int = 100, skipped: int = 10) -> None:
        if not 0 <= skipped < iterations:
            raise ValueError(f'iterations={iterations}, skipped={skipped}: 0 <= skipped < iterations is expected')
        self.iterations = iterations
        self.skipped = skipped
        self.seen = 0

    def before_train(self, runner: Runner) -> None:
        self.seen = 0

    @master_only
    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        self.seen += 1
        if self.seen != self.iterations:
            return
        counted = self.iterations - self.skipped
        waited, step = (runner.message_hub.get_scalar(f'train/{name}').mean(counted) for name in ('data_time', 'time'))
        loader = runner.train_dataloader
        short = waited >= FINE * step
        verdict = judge_training(
            waited,
            step,
            batch=effective_batch(runner).per_device,
            workers=loader.num_workers,
            cores=usable_cores(),
            sample=time_samples(loader.dataset, 16, at_most=3.0) if short and pipelines_of(loader.dataset) else None,
        )
        if short:
            runner.logger.warning(f'{verdict}. tools/benchmark_data.py RECIPE times every stage')
        else:
            runner.logger.info(verdict)
