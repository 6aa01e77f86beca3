"""Measure running statistics on training samples: for a checkpoint, or before each evaluation of a run."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ...diagnostics.running_statistics import NormStatistics, norms_with_statistics, put_statistics, statistics_of
from ...diagnostics.statistics_gap import StatisticsGap, gaps_between
from ...surgery.calibration import Calibration, calibrate, precise_statistics
from ..checkpoint.writing import refuse_existing, write_checkpoint
from ..data.training_batches import losses, training_batches
from ..runner import averaged_model, unwrapped_model


class Recalibration(NamedTuple):
    """What `recalibrate` did.

    Attributes:
        gaps: Gaps between the checkpoint's statistics and the measured ones, the largest first.
        calibration: The measured statistics.
        left_out: Entries of the checkpoint that the new file does not have.
    """

    gaps: list[StatisticsGap]
    calibration: Calibration
    left_out: list[str]


def recalibrate(
    cfg: Config, checkpoint: str | Path, out: str | Path, *, samples: int = 200, sweeps: int = 3
) -> Recalibration:
    """Write a checkpoint with running statistics measured on training samples.

    The new file has the weights and the meta of the old one, and `meta['recalibrated']` records what was done. The old
    statistics do not enter, and the samples are the same every time: recalibrating the new file gives the same file
    again, bit for bit, on the same kind of machine.

    Args:
        cfg: Recipe of the checkpoint, prepared by `wsbcn_mm.engine.recipe.load.load_checkpoint_into`.
        checkpoint: File to read.
        out: File to write, .pth or .safetensors.
        samples: Number of training samples, spread evenly, with the recipe's augmentation.
        sweeps: See `wsbcn_mm.surgery.calibration.precise_statistics`.

    Raises:
        FileExistsError: If `out` exists.
        ValueError: If the checkpoint is not the recipe's, or as `precise_statistics`.
    """
    refuse_existing(out)
    runner = Runner.from_cfg(cfg)
    loaded = runner.load_checkpoint(str(checkpoint), strict=True)
    model: Any = runner.model
    norms = norms_with_statistics(model)
    before = statistics_of(norms)
    loader = runner.build_dataloader(cfg.train_dataloader)
    batches = training_batches(loader, samples)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        found = calibrate(model, batches, forward=partial(losses, model), sweeps=sweeps)
    measured = {name: (after.mean, after.var) for name, after in found.statistics.items()}
    gaps = gaps_between(before, measured, {name: norm.eps for name, norm in norms.items()})
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    note = dict(samples=min(samples, len(loader.dataset)), sweeps=sweeps, unreached=list(found.unreached))
    write_checkpoint(out, state, {**(loaded.get('meta') or {}), 'recalibrated': note})
    return Recalibration(gaps, found, [name for name in loaded if name not in ('meta', 'state_dict')])


KEY = 'training_statistics'
"""Entry of a checkpoint: the running statistics that training continues with, in place of the measured ones."""

FIELDS = dict(mean='running_mean', var='running_var', num_batches_tracked='num_batches_tracked')


@HOOKS.register_module()
class PreciseStatisticsHook(Hook):
    """Measure the statistics of the present weights before each validation and each checkpoint.

        custom_hooks = [dict(type='PreciseStatisticsHook')]

    For BatchNorm at one or two samples, whose running variance misses how samples differ; for moving averages of
    weights; and wherever running statistics are too noisy. Validation and the checkpoint's `state_dict` use the
    measured statistics. Training keeps its own: they are restored afterwards, and `--resume` finds them in the
    checkpoint. With EMAHook, the averaged weights are measured.

    The priority is below that of EMAHook and above that of CheckpointHook. Ranks share the samples. A validation, or a
    checkpoint without one, costs `sweeps * samples` forward passes.

    Args:
        samples: Number of training samples over all ranks, with augmentation; the same ones every time.
        sweeps: See `wsbcn_mm.surgery.calibration.precise_statistics`.
    """

    priority = 'LOW'

    def __init__(self, samples: int = 200, sweeps: int = 3) -> None:
        if samples < 1 or sweeps < 1:
            raise ValueError(f'samples={samples}, sweeps={sweeps}: 1 or more is expected')
        self.samples = samples
        self.sweeps = sweeps
        self._training = False
        self._measured: Mapping[str, NormStatistics] | None = None
        """Statistics of the present weights."""
        self._own: dict[str, NormStatistics] = {}
        """The model's own statistics, while it validates with the measured ones."""

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
                'this checkpoint has the running statistics of training, not the measured ones of '
                'PreciseStatisticsHook: with several ranks it needs SafeCheckpointHook'
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
