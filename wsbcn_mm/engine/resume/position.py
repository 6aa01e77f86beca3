"""Where a run stands in its data, what batch it has, and how it goes on with other devices."""

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

UNREADABLE = (BadZipFile, EOFError, LookupError, OSError, RuntimeError, TypeError, UnpicklingError, ValueError)
"""What files raise that are damaged, need code, or are no checkpoints."""


class Position(NamedTuple):
    """What a checkpoint says of the run that wrote it, beside its iteration."""

    devices: int
    per_device: int
    accumulation: int
    scheduler_ticks: int
    """Steps of an iteration-based scheduler in one optimizer step."""
    last_iteration: int
    """Number of iterations that it was to have."""
    samples: int
    """Length of the training data."""
    sampler_seed: int | None
    recipe: dict[str, int] | None = None
    """`planned_recipe`; None where nothing was planned."""
    optim_wrapper: str | None = None
    """Name of its class, which tells the precision; None in checkpoints that do not say."""

    @property
    def batch(self) -> EffectiveBatch:
        return EffectiveBatch(self.devices, self.per_device, self.accumulation)

    @property
    def optimizer_steps(self) -> int:
        return -(-self.last_iteration // self.accumulation)


def samples_seen(iteration: int, batch: EffectiveBatch) -> int:
    """By all devices."""
    return iteration * batch.devices * batch.per_device


def fit_to_run(checkpoint: dict[str, Any], now: Position) -> str | None:
    """Have a checkpoint, changed in place, count as a run with other devices does, and say what that changes.

    Its iteration, and what its schedulers count, become those of the same optimizer step.

    Args:
        checkpoint: As loaded, with a Position in its meta; others are left alone.
        now: Of the run that goes on from it.

    Raises:
        ValueError: If the batch is another one, or the checkpoint is from the middle of an accumulation, which cannot
            be divided among other devices.
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
            f'on {was.devices} device(s)), which cannot go on with {now.devices}: resume with {was.devices}, or from a '
            f'checkpoint of an iteration that {was.accumulation} divides'
        )
    meta['iter'] = done * now.accumulation
    if was.scheduler_ticks != now.scheduler_ticks:
        for state in scheduler_states(checkpoint):
            count_schedule_anew(state, was.scheduler_ticks, now.scheduler_ticks)
    return (
        f'{now.devices} instead of {was.devices} device(s): accumulation {now.accumulation} instead of '
        f'{was.accumulation} keeps {now.batch.samples} samples per optimizer step, and the order of the data goes on'
    )


def refuse_other_batch(was: EffectiveBatch, now: EffectiveBatch) -> None:
    """Raise ValueError unless the batch is the same, or divided among other devices."""
    if was == now or (was.devices != now.devices and was.samples == now.samples):
        return
    raise ValueError(
        f'the checkpoint was trained with effective batch {was}, and this run has {now}. To go on: --global-batch '
        f'{was.samples} --per-device {was.per_device}. To start anew from its weights: no --resume, and --cfg-options '
        'load_from=FILE'
    )


def scheduler_states(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the schedulers that count iterations."""
    states = checkpoint.get('param_schedulers') or []
    flat = [one for several in states.values() for one in several] if isinstance(states, dict) else states
    return [state for state in flat if not state.get('by_epoch', True)]


def count_schedule_anew(state: dict[str, Any], was: int, now: int) -> None:
    """Convert what a scheduler has counted; begin, end and milestones are left to the new run's config."""
    for name in (*COUNTS, 'total_iters', 'cumulative_periods', '_schedule_phases'):
        state.pop(name, None)
    for name in ('last_step', '_global_step'):
        state[name] = state[name] * now // was


def plan_batch_as_before(
    cfg: Config, devices: int, *, global_batch: int | None = None, per_device: int | None = None
) -> list[str]:
    """`plan_batch`, but a run that goes on and is given no numbers keeps the batch and the length that it had.

    That goes for other devices, and for a recipe whose batch `plan_batch` had changed. On the same devices a recipe
    that has been changed since holds as it is, and `fit_to_run` judges it.
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
        # A recipe that ran as it is, whatever it was tuned for, keeps length and learning rate.
        cfg.auto_scale_lr = {**(cfg.get('auto_scale_lr') or {}), 'base_batch_size': base}
    return plan_batch(cfg, devices, global_batch=batch, per_device=was.per_device)


def planned_recipe(cfg: Config) -> dict[str, int] | None:
    """Of a config that `plan_batch` has seen: the recipe's own factors, and the batch that its counts are for."""
    plan = cfg.get('batch_plan')
    return plan and dict(base=plan.base, per_device=plan.recipe.per_device, accumulation=plan.recipe.accumulation)


def position_to_resume(cfg: Config) -> Position | None:
    """Of the local checkpoint that a config resumes from, where there is one that can be read and has it."""
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


SHOWN = 8


@HOOKS.register_module()
class ResumePositionHook(Hook):
    """Write a run's place in the order of its data into checkpoints, and have `--resume` go on there.

    Nothing is read twice or skipped: training's first batch is the one that would have come next. With another number
    of devices the order goes on too, if the effective batch is the same (`fit_to_run`). Iteration-based loops only;
    those by epochs are left to mmengine.

    Raises:
        ValueError: If the run to resume had another batch, or cannot be divided among other devices where it stopped.
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
                    'written: they come in another order from here on'
                )
            if was.optimizer_steps != now.optimizer_steps:
                runner.logger.warning(
                    f'the run is to have {now.optimizer_steps:,} optimizer steps, and was to have '
                    f'{was.optimizer_steps:,} when the checkpoint was written'
                )
            if was.optim_wrapper not in (None, now.optim_wrapper):
                runner.logger.warning(
                    f'the run trains with {now.optim_wrapper}, and trained with {was.optim_wrapper} when the '
                    'checkpoint was written: the precision is another one from here on (--amp)'
                )
            if sampler is not None and was.sampler_seed is not None:
                sampler.seed = was.sampler_seed
        if sampler is not None and not isinstance(runner.train_dataloader.dataset, SeededSamples):
            runner.logger.warning(
                'the training data are not wrapped in SeededSamples, which tools/train.py does: their augmentation is '
                'not that of the run before'
            )
        seen = samples_seen(runner.iter, now.batch)
        order = 'in an order that the sampler does not tell'
        if sampler is not None:
            order = f'next sample ids {", ".join(map(str, sampler.upcoming(seen, SHOWN)))}, ...'
        runner.logger.info(f'going on at iteration {runner.iter:,}: {seen:,} samples seen, {order}')


def position_of(runner: Runner) -> Position:
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
    """The sampler of the training data, where it is ours."""
    sampler = runner.train_dataloader.batch_sampler.sampler
    return sampler if isinstance(sampler, GlobalOrderSampler) else None
