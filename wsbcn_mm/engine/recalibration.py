"""Give a checkpoint the statistics that its weights should evaluate with."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from ..diagnostics.running_statistics import norms_with_statistics, statistics_of
from ..diagnostics.statistics_gap import StatisticsGap, gaps_between
from ..surgery.calibration import Calibration, calibrate
from .checkpoint_files import refuse_existing, write_checkpoint
from .hooks.start_from_bn import KEY as UNFINISHED_START
from .training_batches import losses, training_batches


class Recalibration(NamedTuple):
    """What `recalibrate` did.

    Attributes:
        gaps: Between the checkpoint's statistics and the measured ones, the largest first.
        calibration: The measured ones.
        left_out: Entries of the checkpoint that the new file has not.
    """

    gaps: list[StatisticsGap]
    calibration: Calibration
    left_out: list[str]


def recalibrate(
    cfg: Config, checkpoint: str | Path, out: str | Path, *, samples: int = 200, sweeps: int = 3
) -> Recalibration:
    """Write a checkpoint with the running statistics that its weights have on training samples, measured anew.

    The new file has the weights and the meta of the old one, and says in `meta['recalibrated']` what was done. The old
    statistics have no part in the new ones, and the samples are the same every time: recalibrating the new file gives
    that file again, bit for bit, on the same kind of machine.

    Args:
        cfg: Recipe of the checkpoint, as `wsbcn_mm.engine.recipe.load_checkpoint_into` left it.
        checkpoint: What to read.
        out: What to write, .pth or .safetensors.
        samples: Of the training data, spread evenly, with the recipe's augmentation.
        sweeps: See `wsbcn_mm.surgery.calibration.precise_statistics`.

    Raises:
        FileExistsError: If `out` exists.
        ValueError: If the checkpoint is not the recipe's, was written while `BNStartHook` was at work, or as
            `precise_statistics`.
    """
    refuse_existing(out)
    runner = Runner.from_cfg(cfg)
    loaded = runner.load_checkpoint(str(checkpoint), strict=True)
    if UNFINISHED_START in loaded:
        raise ValueError(
            f'{checkpoint} is from the way from BN to WS and BCN: its layers are not yet what they will be'
        )
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
