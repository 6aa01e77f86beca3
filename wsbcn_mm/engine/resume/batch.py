"""Plan the batch of a run: a resumed run keeps the batch and length of its checkpoint."""

from pickle import UnpicklingError
from zipfile import BadZipFile

import torch
from mmengine.config import Config

from ..checkpoint.reading import HARMLESS
from ..checkpoint.selection import checkpoints_to_resume
from ..recipe.batch_plan import accumulation_of, plan_batch
from .position import KEY, Position

UNREADABLE = (BadZipFile, EOFError, LookupError, OSError, RuntimeError, TypeError, UnpicklingError, ValueError)
"""Errors of files that are damaged, need code, or do not contain a checkpoint."""


def plan_batch_as_before(
    cfg: Config, devices: int, *, global_batch: int | None = None, per_device: int | None = None
) -> list[str]:
    """Call `plan_batch`; a resumed run without `global_batch` and `per_device` keeps its batch and length.

    This applies to runs on other devices, and to recipes whose batch `plan_batch` had changed. On the same devices, a
    recipe that was edited since is used as it is, and `fit_to_run` checks it.

    Returns:
        The lines of `plan_batch`.
    """
    was = position_to_resume(cfg) if global_batch is None and per_device is None else None
    if was is None:
        return plan_batch(cfg, devices, global_batch=global_batch, per_device=per_device)
    own, batch, planned = (cfg.train_dataloader.batch_size, accumulation_of(cfg)), was.batch.samples, was.recipe
    as_it_is = own == (was.per_device, was.accumulation)
    if planned is not None and own != (planned['per_device'], planned['accumulation']):
        planned = None
    base = planned['base'] if planned else batch if as_it_is else None
    if was.devices == devices and (planned is None or (as_it_is and base == batch)):
        return plan_batch(cfg, devices)
    if base is not None:
        # A recipe that ran unchanged keeps its length and learning rate, even if it was tuned for another batch.
        cfg.auto_scale_lr = {**(cfg.get('auto_scale_lr') or {}), 'base_batch_size': base}
    return plan_batch(cfg, devices, global_batch=batch, per_device=was.per_device)


def position_to_resume(cfg: Config) -> Position | None:
    """Return the position in the first readable local checkpoint that a config resumes from; None without one."""
    if not cfg.get('resume'):
        return None
    named = cfg.get('load_from')
    for file in [named] if named else checkpoints_to_resume(cfg.work_dir):
        try:
            with torch.serialization.safe_globals(HARMLESS):
                meta = torch.load(file, map_location='cpu', mmap=True, weights_only=True)['meta']
        except UNREADABLE:
            continue  # SafeCheckpointHook reports the damage.
        return Position(**meta[KEY]) if KEY in meta else None
    return None
