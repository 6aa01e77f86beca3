"""Does loading keep up with the model, and if not, what would help?"""

import math
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..runner import effective_batch
from .speed import SampleTime, pipelines_of, time_samples, usable_cores

FINE = 0.1
"""Share of a step that waiting for data may take."""

SHORT_SIDE = 256
"""Of the video copies that are advised, pixels: what the recipes' crops of 224 pixels are cut from in tests."""


def describe_wait(waited: float, step: float) -> str:
    """'data 71 % of the step (0.710 of 1.000 s)'."""
    return f'data {100 * waited / step:.0f} % of the step ({waited:.3f} of {step:.3f} s)'


def bound_by(sample: SampleTime) -> str:
    """'decode-bound' or 'augment-bound', with the shares that say so.

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
    """Workers that make `rate` samples per second, if each has a core."""
    return math.ceil(round(rate * sample.seconds, 6))


def remedies(sample: SampleTime, *, workers: int, rate: float, cores: int) -> list[str]:
    """What would let the loader make `rate` samples per second.

    Args:
        sample: What one takes.
        workers: Of the loader now; 0 is the training process itself.
        rate: Samples per second that the model could take.
        cores: That these workers share.
    """
    needed = workers_needed(sample, rate)
    if needed > cores:
        found = [f'{amount(rate)} samples/s need {needed} workers with a core each, and there are {cores} cores']
    elif needed > workers:
        found = [f'num_workers={needed} instead of {workers} would make {amount(rate)} samples/s, on {cores} cores']
    else:
        found = [
            f'{needed} of the {workers} workers would make {amount(rate)} samples/s with a core each and a fast disk: '
            f'look for what else runs on the {cores} cores, and where the files are'
        ]
    return found + smaller_copies(sample)


def smaller_copies(sample: SampleTime) -> list[str]:
    """The advice to decode smaller videos, where decoding prevails and they are larger than needed."""
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
    """Verdict in one line on iterations that took `step` seconds, `waited` of them for data.

    Args:
        waited: Mean seconds between the end of a step and its next batch.
        step: Mean seconds of an iteration, waiting included.
        batch: Samples per iteration of this process.
        workers: Of the loader.
        cores: That these workers share.
        sample: What a sample takes; None if it is not known.
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
    """Verdict in lines on a loader that makes `speed` samples per second.

    Args:
        sample: What one takes.
        speed: Samples per second that the workers made, when nothing else was to do.
        workers: Of the loader.
        cores: That these workers share.
        batch: Samples per iteration of one device.
        step: Seconds of an iteration without loading, if known.
    """
    alone = amount(1 / sample.seconds)
    makes = f'num_workers={workers} on {cores} cores makes {amount(speed)} samples/s, one thread alone {alone}'
    if step is None:
        return [
            bound_by(sample),
            makes,
            *smaller_copies(sample),
            'fine or not depends on the model: --step-time SECONDS',
        ]
    rate = batch / step
    if speed > (1 - FINE) * rate:
        return [f'fine: the model takes {amount(rate)} samples/s', makes, f'if anything, it is {bound_by(sample)}']
    wait = f'expected: {describe_wait(batch / speed - step, batch / speed)}'
    return [f'{wait}, {bound_by(sample)}', makes, *remedies(sample, workers=workers, rate=rate, cores=cores)]


def amount(number: float) -> str:
    """Three digits, or all before the point."""
    return f'{number:,.0f}' if number >= 100 else f'{number:.3g}'


@HOOKS.register_module()
class DataSpeedHook(Hook):
    """Log once how much of an iteration goes into waiting for data, and if it is 10 % or more, why and what to do.

    The first iterations, in which workers start and libraries choose algorithms, do not count. Only where data are
    short some samples are loaded and timed in this process, which takes at most a few seconds.

    Args:
        iterations: After how many iterations of this run.
        skipped: How many at the start do not count.

    Raises:
        ValueError: Unless 0 <= skipped < iterations.
    """

    # after IterTimerHook, which measures
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
            runner.logger.warning(f'{verdict}. tools/benchmark_data.py RECIPE has all stages')
        else:
            runner.logger.info(verdict)
