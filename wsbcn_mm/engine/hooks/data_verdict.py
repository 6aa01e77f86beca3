"""Say early in a training whether it waits for its data."""

from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..data_speed import pipelines_of, time_samples, usable_cores
from ..data_verdict import FINE, judge_training
from ..effective_batch import effective_batch


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
