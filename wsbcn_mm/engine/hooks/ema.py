"""Evaluate and save a moving average of the weights."""

from typing import Any

from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .. import averaging as _averaging  # noqa: F401 - registers the average


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
