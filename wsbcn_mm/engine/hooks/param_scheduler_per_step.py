"""Schedules that count optimizer steps, whatever the accumulation."""

from typing import Any

from mmengine.hooks import ParamSchedulerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class ParamSchedulerPerStepHook(ParamSchedulerHook):
    """Step the iteration-based schedulers after each optimizer step; mmengine's own does so after each forward pass.

    The learning rates that k accumulated micro-batches train with are then those of the batch they stand for, bit by
    bit. It goes in the place of mmengine's: `default_hooks=dict(param_scheduler=dict(type=...))`.
    """

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.optim_wrapper.should_update():
            super().after_train_iter(runner, *args, **kwargs)
