"""Evaluate and save a moving average of the weights."""

from typing import Any

import torch
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import nn

from ...diagnostics.running_statistics import norms_with_statistics
from . import averaging as _averaging  # noqa: F401 - registers the average


@HOOKS.register_module()
class EMAPerStepHook(EMAHook):
    """mmengine's EMAHook, with the same arguments, that averages running statistics and moves once per optimizer step.

    mmengine's own moves after every forward pass, also where accumulation has left the weights as they were: the
    average then spans fewer steps the more is accumulated. `momentum` here is that of a step.

    Evaluation has the average; a checkpoint has it as `state_dict`, and the weights that training goes on with as
    `ema_state_dict`. `--resume` puts both back.

    Args:
        ema_type: A registered average.
        **kwargs: See mmengine's EMAHook.
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
    """Exponential moving average of the weights, and of the running means and variances that belong to them.

    Averaged weights need statistics of their own. What a convolution hands on is linear in its weights, so to first
    order the mean under averaged weights is the average of the means. The variance is averaged likewise: that of BCN is
    taken around the running mean, which has the spread between images in it, and adding the spread of the means over
    time would count it twice. `PreciseStatisticsHook` has the exact ones.

    Every other buffer, counters and flags included, is the model's own at any time. (mmengine's own average leaves the
    statistics at those of the raw weights, or with update_buffers=True lets counters stand at their first value.)

    Args:
        model, momentum, interval, device: As of mmengine's ExponentialMovingAverage.
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
