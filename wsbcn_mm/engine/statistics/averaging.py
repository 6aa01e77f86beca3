"""Moving averages of weights, with the running statistics that belong to them."""

from typing import Any

import torch
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import nn

from ...diagnostics.running_statistics import norms_with_statistics


@HOOKS.register_module()
class EMAPerStepHook(EMAHook):
    """mmengine's EMAHook that also averages running statistics, and moves once per optimizer step.

    mmengine's own hook moves after every forward pass, even if accumulation left the weights unchanged: with more
    accumulation its average spans fewer steps. Here `momentum` is the momentum of an optimizer step.

    Evaluation uses the average. A checkpoint holds the average as `state_dict` and the training weights as
    `ema_state_dict`; `--resume` restores both.

    Args:
        ema_type: Registered name of the average.
        **kwargs: Arguments of mmengine's EMAHook.
    """

    def __init__(self, ema_type: str = 'EMAWithStatistics', **kwargs: Any) -> None:
        super().__init__(ema_type, **kwargs)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.optim_wrapper.should_update():
            super().after_train_iter(runner, *args, **kwargs)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        # Tools load weights into a Runner that does not run and has no average, where mmengine's hook fails.
        if hasattr(self, 'ema_model'):
            super().after_load_checkpoint(runner, checkpoint)


@MODELS.register_module()
class EMAWithStatistics(ExponentialMovingAverage):
    """Exponential moving average of weights, and of the running means and variances that belong to them.

    Averaged weights need their own statistics. A convolution's output is linear in its weights, so to first order the
    mean under averaged weights is the average of the means. The variance is averaged in the same way. BCN's variance is
    taken around the running mean and already contains the spread between images; adding the spread of the means over
    time would count it twice. `PreciseStatisticsHook` measures the exact statistics.

    All other buffers, such as counters and flags, equal the model's at any time. (mmengine's average keeps the
    statistics of the raw weights, or with update_buffers=True leaves counters at their first value.)

    Args:
        model, momentum, interval, device: Arguments of mmengine's ExponentialMovingAverage.
    """

    def __init__(
        self, model: nn.Module, momentum: float = 0.0002, interval: int = 1, device: torch.device | None = None
    ) -> None:
        super().__init__(model, momentum, interval, device, update_buffers=True)
        statistics = {f'{name}.running_{of}' for name in norms_with_statistics(model) for of in ('mean', 'var')}
        self._copied = [name for name, _ in self.module.named_buffers() if name not in statistics]

    def update_parameters(self, model: Any) -> None:
        """Move the averages towards `model` and copy its other buffers."""
        super().update_parameters(model)
        for name in self._copied:
            self.module.get_buffer(name).copy_(model.get_buffer(name))
