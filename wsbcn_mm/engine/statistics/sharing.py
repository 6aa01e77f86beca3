"""Move BCN's estimates once per optimizer step."""

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
"""Entry of a checkpoint, there only if it was written in the middle of an accumulation: what is pending, by rank."""


@HOOKS.register_module()
class StepStatisticsHook(Hook):
    """Commit `wsbcn_mm.microbatch.StepStatistics` after every optimizer step, as the optimizer wrapper tells of it.

    Its priority is above that of EMAHook, of the loggers and of CheckpointHook, so that they see the buffers of after
    the step. A checkpoint from the middle of an accumulation carries what is pending on every rank, and a resumed run
    goes on from there. (mmengine's own CheckpointHook saves rank 0's share alone; the resumed run says so.)

    mmengine's wrapper leaves `broadcast_buffers` off, which is right here: all ranks hold identical buffers.

    Models without BatchChannelNorm layers of estimated statistics are left alone.

    Args:
        match_batch: Set the layers' rate, but for frozen ones, to that at which their estimates are as noisy as
            statistics of this many samples (`wsbcn_mm.microbatch.matched_rate`), given the recipe's batch.

    Raises:
        ValueError: For an OptimWrapperDict, whose model steps as it likes.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self, match_batch: int | None = None) -> None:
        self.match_batch = match_batch
        self._statistics: StepStatistics | None = None
        self._gathered: list[State] = []
        self._loaded: list[State] = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        loaded = checkpoint.get(KEY, [])
        self._loaded = [loaded] if isinstance(loaded, dict) else loaded  # rank 0's alone, until 0.1

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
                    'the checkpoint was written in the middle of an accumulation and has the pending BCN statistics of '
                    f'rank 0 alone: the next step misses those of {runner.world_size - 1} other rank(s)'
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

    For BatchNorm that is not synchronised: every rank has statistics of its own data, evaluates with them, and rank 0's
    are saved. BCN under StepStatisticsHook, and synchronised norms, have the same ones on every rank already and stay
    as they are, bit for bit; so does everything on a single device. A moving average of EMAHook is merged too, before
    that hook (of lower priority) hands it to the model.
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
