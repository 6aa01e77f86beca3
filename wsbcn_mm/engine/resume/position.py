"""Resume a run at its position in the data, with its batch, also on another number of devices."""

from pickle import UnpicklingError
from typing import Any, NamedTuple
from zipfile import BadZipFile

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner

from ...microbatch.batch_plan import EffectiveBatch
from ..checkpoint.reading import HARMLESS, checkpoints_to_resume
from ..recipe.batch_plan import COUNTS, ParamSchedulerPerStepHook, accumulation_of, plan_batch
from ..runner import effective_batch
from .order import GlobalOrderSampler, SeededSamples

KEY = 'position'
"""Entry of a checkpoint's `meta`."""

SHOWN = 8
"""Number of sample ids in the log."""

UNREADABLE = (BadZipFile, EOFError, LookupError, OSError, RuntimeError, TypeError, UnpicklingError, ValueError)
"""Errors of files that are damaged, need code, or are not checkpoints."""


class Position(NamedTuple):
    """What a checkpoint records about the run that wrote it, beside its iteration."""

    devices: int
    per_device: int
    accumulation: int
    scheduler_ticks: int
    """Steps of an iteration-based scheduler per optimizer step."""
    last_iteration: int
    """Planned number of iterations."""
    samples: int
    """Number of training samples."""
    sampler_seed: int | None
    recipe: dict[str, int] | None = None
    """Result of `planned_recipe`; None if no batch was planned."""
    optim_wrapper: str | None = None
    """Class name, which reveals the precision; None in checkpoints without it."""

    @property
    def batch(self) -> EffectiveBatch:
        return EffectiveBatch(self.devices, self.per_device, self.accumulation)

    @property
    def optimizer_steps(self) -> int:
        return -(-self.last_iteration // self.accumulation)


def samples_seen(iteration: int, batch: EffectiveBatch) -> int:
    """Return the number of samples that all devices have seen."""
    return iteration * batch.devices * batch.per_device


def fit_to_run(checkpoint: dict[str, Any], now: Position) -> str | None:
    """Convert the counts of a checkpoint, in place, to a run on another number of devices.

    The iteration and the counts of the schedulers become those of the same optimizer step.

    Args:
        checkpoint: A loaded checkpoint. Without a Position in its meta it is left unchanged.
        now: Position of the run that resumes from it.

    Returns:
        One line on what changed; None if nothing did.

    Raises:
        ValueError: If the batch differs, or if the checkpoint is from the middle of an accumulation, which cannot be
            divided among other devices.
    """
    meta = checkpoint['meta']
    if KEY not in meta:
        return None
    was = Position(**meta[KEY])
    refuse_other_batch(was.batch, now.batch)
    if was.devices == now.devices:
        return None
    done, iterations = divmod(meta['iter'], was.accumulation)
    if iterations:
        raise ValueError(
            f'the checkpoint is from the middle of an accumulation ({iterations} of {was.accumulation} micro-batches '
            f'on {was.devices} device(s)), which cannot continue on {now.devices}: resume on {was.devices}, or from a '
            f'checkpoint of an iteration that {was.accumulation} divides'
        )
    meta['iter'] = done * now.accumulation
    if was.scheduler_ticks != now.scheduler_ticks:
        for state in scheduler_states(checkpoint):
            convert_scheduler_state(state, was.scheduler_ticks, now.scheduler_ticks)
    return (
        f'{now.devices} instead of {was.devices} device(s): accumulation {now.accumulation} instead of '
        f'{was.accumulation} keeps {now.batch.samples} samples per optimizer step, and the order of the data continues'
    )


def refuse_other_batch(was: EffectiveBatch, now: EffectiveBatch) -> None:
    """Raise ValueError unless the batch is the same, or the same batch divided among other devices."""
    if was == now or (was.devices != now.devices and was.samples == now.samples):
        return
    raise ValueError(
        f'the checkpoint was trained with effective batch {was}, and this run has {now}. To continue: --global-batch '
        f'{was.samples} --per-device {was.per_device}. To start a new run from its weights: --cfg-options '
        'load_from=FILE instead of --resume'
    )


def scheduler_states(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the states of the schedulers that count iterations."""
    states = checkpoint.get('param_schedulers') or []
    flat = [one for several in states.values() for one in several] if isinstance(states, dict) else states
    return [state for state in flat if not state.get('by_epoch', True)]


def convert_scheduler_state(state: dict[str, Any], was: int, now: int) -> None:
    """Convert the counts of a scheduler; begin, end and milestones come from the new run's config."""
    for name in (*COUNTS, 'total_iters', 'cumulative_periods', '_schedule_phases'):
        state.pop(name, None)
    for name in ('last_step', '_global_step'):
        state[name] = state[name] * now // was


def plan_batch_as_before(
    cfg: Config, devices: int, *, global_batch: int | None = None, per_device: int | None = None
) -> list[str]:
    """Plan the batch as `plan_batch`, but let a resumed run without given numbers keep its batch and length.

    This concerns other devices, and recipes whose batch `plan_batch` had changed. On the same devices, a recipe that
    was edited since is used as it is, and `fit_to_run` checks it.
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
        # A recipe that ran unchanged keeps its length and learning rate, whatever batch it was tuned for.
        cfg.auto_scale_lr = {**(cfg.get('auto_scale_lr') or {}), 'base_batch_size': base}
    return plan_batch(cfg, devices, global_batch=batch, per_device=was.per_device)


def planned_recipe(cfg: Config) -> dict[str, int] | None:
    """Return the recipe's own factors and the batch of its counts, from a config that `plan_batch` has seen."""
    plan = cfg.get('batch_plan')
    return plan and dict(base=plan.base, per_device=plan.recipe.per_device, accumulation=plan.recipe.accumulation)


def position_to_resume(cfg: Config) -> Position | None:
    """Return the position in the local checkpoint that a config resumes from; None without a readable one."""
    if not cfg.get('resume'):
        return None
    named = cfg.get('load_from')
    for file in [named] if named else checkpoints_to_resume(cfg.work_dir):
        try:
            with torch.serialization.safe_globals(HARMLESS):
                meta = torch.load(file, map_location='cpu', mmap=True, weights_only=True)['meta']
        except UNREADABLE:
            continue  # SafeCheckpointHook says what is wrong with it.
        return Position(**meta[KEY]) if KEY in meta else None
    return None


@HOOKS.register_module()
class ResumePositionHook(Hook):
    """Write a run's position in the order of its data into checkpoints, and let `--resume` continue there.

    No sample is read twice or skipped: the first batch is the one that would have come next. The order also continues
    on another number of devices if the effective batch is the same (`fit_to_run`). Only for iteration-based loops;
    mmengine handles those by epochs.

    Raises:
        ValueError: If the run to resume had another batch, or stopped where it cannot be divided among other devices.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._loaded: Position | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            checkpoint['meta'][KEY] = position_of(runner)._asdict()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        meta = checkpoint.get('meta') or {}
        if not runner._resume or not isinstance(runner.train_loop, IterBasedTrainLoop):
            return
        change = fit_to_run(checkpoint, position_of(runner))
        self._loaded = Position(**meta[KEY]) if KEY in meta else None
        if change:
            runner.logger.info(change)

    def before_train(self, runner: Runner) -> None:
        if not runner.iter or not isinstance(runner.train_loop, IterBasedTrainLoop):
            return
        if runner.iter >= runner.max_iters:
            runner.logger.warning(
                f'the checkpoint is of iteration {runner.iter:,}, and the run has {runner.max_iters:,}: nothing is '
                'left to train'
            )
            return
        now, was, sampler = position_of(runner), self._loaded, sampler_of(runner)
        if was is not None:
            if was.samples != now.samples:
                runner.logger.warning(
                    f'the training data have {now.samples:,} samples, and had {was.samples:,} when the checkpoint was '
                    'written: their order differs from here on'
                )
            if was.optimizer_steps != now.optimizer_steps:
                runner.logger.warning(
                    f'the run has {now.optimizer_steps:,} optimizer steps, and had {was.optimizer_steps:,} when the '
                    'checkpoint was written'
                )
            if was.optim_wrapper not in (None, now.optim_wrapper):
                runner.logger.warning(
                    f'the run trains with {now.optim_wrapper}, and trained with {was.optim_wrapper} when the '
                    'checkpoint was written: the precision changes from here on (--amp)'
                )
            if sampler is not None and was.sampler_seed is not None:
                sampler.seed = was.sampler_seed
        if sampler is not None and not isinstance(runner.train_dataloader.dataset, SeededSamples):
            runner.logger.warning(
                'the training data are not wrapped in SeededSamples, as tools/train.py does: their augmentation '
                'differs from that of the run before'
            )
        seen = samples_seen(runner.iter, now.batch)
        order = 'in an order that the sampler does not reveal'
        if sampler is not None:
            order = f'next sample ids {", ".join(map(str, sampler.upcoming(seen, SHOWN)))}, ...'
        runner.logger.info(f'resuming at iteration {runner.iter:,}: {seen:,} samples seen, {order}')


def position_of(runner: Runner) -> Position:
    """Return the position that a checkpoint of `runner` records."""
    batch, sampler = effective_batch(runner), sampler_of(runner)
    per_step = any(isinstance(hook, ParamSchedulerPerStepHook) for hook in runner.hooks)
    return Position(
        **batch._asdict(),
        scheduler_ticks=1 if per_step else batch.accumulation,
        last_iteration=runner.max_iters,
        samples=len(runner.train_dataloader.dataset),
        sampler_seed=None if sampler is None else sampler.seed,
        recipe=planned_recipe(runner.cfg),
        optim_wrapper=type(runner.optim_wrapper).__name__,
    )


def sampler_of(runner: Runner) -> GlobalOrderSampler | None:
    """Return the sampler of the training data if it is a GlobalOrderSampler."""
    sampler = runner.train_dataloader.batch_sampler.sampler
    return sampler if isinstance(sampler, GlobalOrderSampler) else None
