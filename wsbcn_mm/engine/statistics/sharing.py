"""Running statistics of all ranks: BCN's move once per optimizer step, BatchNorm's merge before evaluation."""

from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...diagnostics.running_statistics import norms_with_statistics
from ...microbatch import StepStatistics, matched_rate
from ...microbatch.merged_statistics import merge_statistics
from ..resume.accumulation import State, accumulating, gather_states
from ..runner import averaged_model, effective_batch, unwrapped_model

KEY = 'step_statistics'
"""Entry of a checkpoint from the middle of an accumulation: pending statistics, one entry per rank."""


@HOOKS.register_module()
class StepStatisticsHook(Hook):
    """Commit `wsbcn_mm.microbatch.StepStatistics` after every optimizer step.

    The priority is above that of EMAHook, loggers and CheckpointHook, so that they see the buffers after the step. A
    checkpoint from the middle of an accumulation holds the pending statistics of every rank, and a resumed run
    continues from them. (mmengine's own CheckpointHook saves only those of rank 0; the resumed run warns.)

    mmengine's wrapper leaves `broadcast_buffers` off, which is right here: all ranks hold identical buffers.

    Models without BatchChannelNorm layers of estimated statistics are left unchanged.

    Args:
        match_batch: Set the rate of all layers that are not frozen so that their estimates are as noisy as statistics
            of this many samples, given the recipe's batch (`wsbcn_mm.microbatch.matched_rate`).

    Raises:
        ValueError: For an OptimWrapperDict, which does not report its steps.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self, match_batch: int | None = None) -> None:
        self.match_batch = match_batch
        self._statistics: StepStatistics | None = None
        self._gathered: list[State] = []
        self._loaded: list[State] = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self._loaded = checkpoint.get(KEY, [])

    def before_train(self, runner: Runner) -> None:
        statistics = StepStatistics(unwrapped_model(runner))
        layers = statistics.layers.values()
        if not layers:
            return
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            statistics.close()
            raise ValueError(
                'OptimWrapperDict does not tell when it steps: leave StepStatisticsHook out, and '
                "use wsbcn_mm.microbatch.StepStatistics in the model's train_step"
            )
        self._statistics = statistics
        runner.logger.info(f'{len(layers)} BCN layers move their estimates once per optimizer step')
        if self.match_batch is not None:
            batch = effective_batch(runner)
            rate = matched_rate(batch.samples, self.match_batch, samples_per_forward=batch.per_device)
            for layer in layers:
                layer.rate = rate if layer.rate > 0 else 0
            runner.logger.info(
                f'BCN rate {rate:.4f}: as noisy as a batch of {self.match_batch}, from {batch.per_device} sample(s) a '
                f'forward and {batch.samples} a step'
            )
        if runner.iter > 0 and self._loaded:
            if len(self._loaded) < runner.world_size:
                runner.logger.warning(
                    'the checkpoint was written in the middle of an accumulation and has only the pending BCN '
                    f'statistics of rank 0: the next step misses those of {runner.world_size - 1} other rank(s)'
                )
            if get_rank() < len(self._loaded):
                statistics.load_state_dict(self._loaded[get_rank()])

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self._statistics is not None and runner.optim_wrapper.should_update():
            self._statistics.commit()

    def gather_for_checkpoint(self, runner: Runner) -> None:
        pending = self._statistics is not None and accumulating(runner)
        self._gathered = gather_states(self._statistics.state_dict()) if pending else []

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        pending = self._statistics.state_dict() if self._statistics is not None else {}
        if pending:
            checkpoint[KEY] = self._gathered or [pending]
        self._gathered = []

    def after_train(self, runner: Runner) -> None:
        if self._statistics is None:
            return
        if self._statistics.state_dict():
            runner.logger.warning(
                'training stopped in the middle of an accumulation: neither its gradients nor its BCN statistics count'
            )
        self._statistics.close()
        self._statistics = None


@HOOKS.register_module()
class StatisticsMergeHook(Hook):
    """Merge the ranks' running statistics before each validation and each checkpoint (`merge_statistics`).

    For BatchNorm that is not synchronised: without this hook, every rank evaluates with statistics of its own data, and
    only those of rank 0 are saved. Statistics that are equal on all ranks stay bit-equal: those of synchronised norms,
    of BCN under StepStatisticsHook, and of a single device. The moving average of EMAHook is merged too, before that
    hook, which has a lower priority, passes it to the model.
    """

    priority = 'ABOVE_NORMAL'

    def before_val_epoch(self, runner: Runner) -> None:
        self._merge(runner)

    def gather_for_checkpoint(self, runner: Runner) -> None:
        self._merge(runner)

    def _merge(self, runner: Runner) -> None:
        if runner.world_size > 1:
            for model in (unwrapped_model(runner), averaged_model(runner)):
                if model is not None:
                    merge_statistics(norms_with_statistics(model))
