"""Standardise each WS weight once per optimizer step and once per evaluation."""

from contextlib import ExitStack
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...layers import standardize_once


@HOOKS.register_module()
class StandardizedWeightHook(Hook):
    """Hold `wsbcn_mm.layers.standardize_once` open from each optimizer step to the next, and during evaluation.

    In training it opens only under accumulation: one forward pass per step has nothing to save, and keeping the
    standardised weights until the step costs memory.

    mmengine's EMAHook exchanges the weights before and after each evaluation through `weight.data`, which leaves no
    trace. The context is therefore closed before an evaluation. It opens at the first batch, after every hook that
    prepares the epoch, and closes before the hooks of lower priority that end it.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._context = ExitStack()
        self._is_open = False

    def _open(self, runner: Runner) -> None:
        if not self._is_open:
            self._context.enter_context(standardize_once(runner.model))
            self._is_open = True

    def _close(self) -> None:
        self._context.close()
        self._is_open = False

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if getattr(runner.optim_wrapper, '_accumulative_counts', 1) > 1:
            self._open(runner)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self._is_open and runner.optim_wrapper.should_update():
            self._close()

    def before_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self._open(runner)

    def before_test_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self._open(runner)

    def before_val(self, runner: Runner) -> None:
        self._close()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._close()

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._close()

    def after_train(self, runner: Runner) -> None:
        self._close()
