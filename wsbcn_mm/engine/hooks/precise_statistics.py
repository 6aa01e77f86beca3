"""Evaluate and save with statistics measured anew."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ...diagnostics.running_statistics import NormStatistics, norms_with_statistics, put_statistics, statistics_of
from ...surgery.calibration import precise_statistics
from ..runner_model import averaged_model, unwrapped_model
from ..training_batches import losses, training_batches

KEY = 'training_statistics'
"""Entry of a checkpoint: the running statistics that training goes on with, in place of the measured ones."""

FIELDS = dict(mean='running_mean', var='running_var', num_batches_tracked='num_batches_tracked')


@HOOKS.register_module()
class PreciseStatisticsHook(Hook):
    """Before each validation and each checkpoint, measure the statistics of the weights that it has.

        custom_hooks = [..., dict(type='PreciseStatisticsHook')]

    For BatchNorm at one or two samples, whose running variance misses how samples differ, for moving averages of
    weights, and wherever the running statistics are too noisy. Validation sees the measured statistics and the
    checkpoint's `state_dict` has them; training does not notice: its own are put back, and `--resume` finds them in the
    checkpoint. With EMAHook it is the averaged weights that are measured.

    Its priority is below that of EMAHook and above that of CheckpointHook. Ranks share the samples. It costs
    `sweeps * samples` forward passes for each validation, and for each checkpoint that comes without one.

    Args:
        samples: Training samples, of all ranks together, with their augmentation; the same ones every time.
        sweeps: See `wsbcn_mm.surgery.calibration.precise_statistics`.
    """

    priority = 'LOW'

    def __init__(self, samples: int = 200, sweeps: int = 3) -> None:
        if samples < 1 or sweeps < 1:
            raise ValueError(f'samples={samples}, sweeps={sweeps}: 1 or more are expected')
        self.samples = samples
        self.sweeps = sweeps
        self._training = False
        self._measured: Mapping[str, NormStatistics] | None = None
        """Of the present weights."""
        self._own: dict[str, NormStatistics] = {}
        """The model's, while it validates with the measured ones."""

    def before_train(self, runner: Runner) -> None:
        self._training = bool(norms_with_statistics(unwrapped_model(runner)))
        self._measured = None

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self._measured = None

    def after_train(self, runner: Runner) -> None:
        self._training = False

    def before_val_epoch(self, runner: Runner) -> None:
        if not self._training:
            return
        model = unwrapped_model(runner)
        measured = self._measure(runner, model)
        if len(runner.val_dataloader):
            norms = norms_with_statistics(model)
            self._own = statistics_of(norms)
            put_statistics(norms, measured)

    def after_val_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        # Not after the epoch, where EMAHook exchanges what the model has before this hook's turn.
        if self._own and batch_idx + 1 == len(runner.val_dataloader):
            put_statistics(norms_with_statistics(unwrapped_model(runner)), self._own)
            self._own = {}

    def gather_for_checkpoint(self, runner: Runner) -> None:
        if self._training:
            self._measure(runner, averaged_model(runner) or unwrapped_model(runner))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if not self._training:
            return
        if self._measured is None and runner.world_size > 1:
            runner.logger.warning(
                'this checkpoint has the running statistics of training, not those that PreciseStatisticsHook '
                'measures: with several ranks that needs SafeCheckpointHook'
            )
            return
        self.gather_for_checkpoint(runner)
        state, own = checkpoint['state_dict'], {}
        for name, statistics in (self._measured or {}).items():
            for field, buffer in FIELDS.items():
                own[f'{name}.{buffer}'] = state[f'{name}.{buffer}']
                state[f'{name}.{buffer}'] = getattr(statistics, field).cpu()
        checkpoint[KEY] = own

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        own = checkpoint.get(KEY)
        if own is None or not runner._resume:
            return
        averaged = averaged_model(runner)
        if averaged is not None and 'ema_state_dict' in checkpoint:
            averaged.load_state_dict(own, strict=False)
        else:
            checkpoint['state_dict'].update(own)

    def _measure(self, runner: Runner, model: nn.Module) -> Mapping[str, NormStatistics]:
        if self._measured is None:
            batches = training_batches(runner.train_dataloader, self.samples, rank=runner.rank, ranks=runner.world_size)
            found = precise_statistics(model, batches, forward=partial(losses, model), sweeps=self.sweeps)
            self._measured = found.statistics
            runner.logger.info(
                f'{len(found.statistics)} norms measured on {self.samples} samples, {len(found.unreached)} were not '
                f'reached; the last sweep moved their means by up to {found.change:.1e} standard deviations'
            )
        return self._measured
