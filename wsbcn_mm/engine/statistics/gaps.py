"""Warn during training if evaluation will normalise differently."""

from collections import deque
from functools import partial
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...diagnostics.running_statistics import norms_with_statistics
from ...diagnostics.statistics_gap import statistics_gaps
from ..data.training_batches import losses
from ..runner import effective_batch, unwrapped_model


@HOOKS.register_module()
class StatisticsGapHook(Hook):
    """Compare running statistics with what the norms receive in evaluation, on the last training samples.

        custom_hooks = [dict(type='StatisticsGapHook', interval=1000)]

    `statistics_gap` in the log is the largest factor between a running variance and the measured one. A gap beyond the
    limits is a warning. Training stays bit-equal. Each comparison costs a forward pass over `samples` in evaluation
    mode, and the memory of these samples.

    Args:
        interval: Iterations between two comparisons; one more follows at the end.
        samples: Number of last samples of this device; ranks pool theirs.
        max_factor: Largest factor between the two variances without a warning.
        max_shift: Largest difference of the means without a warning, in standard deviations.
    """

    def __init__(
        self, interval: int = 1000, samples: int = 16, max_factor: float = 2.0, max_shift: float = 0.5
    ) -> None:
        if interval < 1 or samples < 1:
            raise ValueError(f'interval={interval}, samples={samples}: 1 or more is expected')
        self.interval = interval
        self.samples = samples
        self.max_factor = max_factor
        self.max_shift = max_shift
        self._recent: deque[Any] = deque(maxlen=0)

    def before_train(self, runner: Runner) -> None:
        wanted = -(-self.samples // effective_batch(runner).per_device)
        self._recent = deque(maxlen=wanted if norms_with_statistics(unwrapped_model(runner)) else 0)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._recent.append(data_batch)
        due = self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)
        if not due or not self._recent:
            return
        model = unwrapped_model(runner)
        gaps = statistics_gaps(model, self._recent, forward=partial(losses, model))
        runner.message_hub.update_scalar('train/statistics_gap', max(gap.factor for gap in gaps))
        off = [gap for gap in gaps if gap.factor > self.max_factor or gap.mean_shift > self.max_shift]
        if off:
            runner.logger.warning(
                f'{off[0]}: eval will differ from train ({len(off)} of {len(gaps)} norms are off by more than '
                f'{self.max_factor:g}x or {self.max_shift:g} standard deviations; docs/statistics.md)'
            )

    def after_train(self, runner: Runner) -> None:
        self._recent.clear()
