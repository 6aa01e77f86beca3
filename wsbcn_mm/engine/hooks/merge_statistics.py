"""One set of running statistics for all ranks before evaluation and saving."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...diagnostics.running_statistics import norms_with_statistics
from ...microbatch.merged_statistics import merge_statistics
from ..runner_model import averaged_model, unwrapped_model


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
