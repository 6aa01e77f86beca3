"""Save a run's position in its data, and resume there, also on other devices."""

from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner

from ...microbatch.batch_plan import EffectiveBatch
from ..recipe.batch_plan import COUNTS, ParamSchedulerPerStepHook
from ..runner import effective_batch
from .order import GlobalOrderSampler
from .seeded_samples import SeededSamples

KEY = 'position'
"""Entry of a checkpoint's `meta`."""

SHOWN = 8
"""Number of upcoming sample ids in the log."""


class Position(NamedTuple):
    """State of the run that wrote a checkpoint, in addition to its iteration."""

    devices: int
    per_device: int
    accumulation: int
    scheduler_ticks: int
    """Steps of an iteration-based scheduler per optimizer step."""
    last_iteration: int
    """Planned number of iterations."""
    samples: int
    """Length of the training data."""
    sampler_seed: int | None
    recipe: dict[str, int] | None = None
    """Result of `planned_recipe`; None if no batch was planned."""
    optim_wrapper: str | None = None
    """Class name of the optimizer wrapper, which indicates the precision; None in checkpoints without it."""

    @property
    def batch(self) -> EffectiveBatch:
        return EffectiveBatch(self.devices, self.per_device, self.accumulation)

    @property
    def optimizer_steps(self) -> int:
        return -(-self.last_iteration // self.accumulation)


@HOOKS.register_module()
class ResumePositionHook(Hook):
    """Save a run's position in the order of its data in checkpoints, and resume there.

    No sample is read twice or skipped: the first batch after `--resume` is the one that would have come next. On
    another number of devices the order continues too, if the effective batch is the same (`fit_to_run`). The hook
    handles iteration-based loops only; mmengine handles epoch-based ones.

    Raises:
        ValueError: If the run to resume had another effective batch, or stopped in the middle of an accumulation that
            cannot be divided among other devices.
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
                f'the checkpoint is at iteration {runner.iter:,}, and the run has {runner.max_iters:,}: nothing is '
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
                    f'the run has {now.optimizer_steps:,} optimizer steps in all, and had {was.optimizer_steps:,} when '
                    'the checkpoint was written'
                )
            if was.optim_wrapper not in (None, now.optim_wrapper):
                runner.logger.warning(
                    f'the run trains with {now.optim_wrapper}, and trained with {was.optim_wrapper} when the '
                    'checkpoint was written: the precision differs from here on (--amp)'
                )
            if sampler is not None and was.sampler_seed is not None:
                sampler.seed = was.sampler_seed
        if sampler is not None and not isinstance(runner.train_dataloader.dataset, SeededSamples):
            runner.logger.warning(
                'the training data are not wrapped in SeededSamples, as tools/train.py does: their augmentation '
                'differs from that of the previous run'
            )
        seen = samples_seen(runner.iter, now.batch)
        order = 'the sampler does not report the next sample ids'
        if sampler is not None:
            order = f'next sample ids {", ".join(map(str, sampler.upcoming(seen, SHOWN)))}, ...'
        runner.logger.info(f'resuming at iteration {runner.iter:,}: {seen:,} samples seen, {order}')


def fit_to_run(checkpoint: dict[str, Any], now: Position) -> str | None:
    """Convert the counters of a checkpoint, in place, to a run on other devices.

    Its iteration and the counters of its schedulers become those of the same optimizer step.

    Args:
        checkpoint: As loaded. Without a Position in its meta it stays unchanged.
        now: Position of the run that resumes from it.

    Returns:
        A description of the change; None if nothing changed.

    Raises:
        ValueError: If the effective batch differs, or the checkpoint is from the middle of an accumulation, which
            cannot be divided among other devices.
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
            f'checkpoint at a multiple of {was.accumulation} iterations'
        )
    meta['iter'] = done * now.accumulation
    if was.scheduler_ticks != now.scheduler_ticks:
        for state in scheduler_states(checkpoint):
            count_schedule_anew(state, was.scheduler_ticks, now.scheduler_ticks)
    return (
        f'{now.devices} instead of {was.devices} device(s): accumulation {now.accumulation} instead of '
        f'{was.accumulation} keeps {now.batch.samples} samples per optimizer step, and the order of the data continues'
    )


def refuse_other_batch(was: EffectiveBatch, now: EffectiveBatch) -> None:
    """Raise ValueError unless the effective batch is the same, possibly divided among other devices."""
    if was == now or (was.devices != now.devices and was.samples == now.samples):
        return
    raise ValueError(
        f'the checkpoint was trained with effective batch {was}, and this run has {now}. To resume, use --global-batch '
        f'{was.samples} --per-device {was.per_device}. To start a new run from its weights, omit --resume and use '
        '--cfg-options load_from=FILE'
    )


def scheduler_states(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the states of the schedulers that count iterations."""
    states = checkpoint.get('param_schedulers') or []
    flat = [one for several in states.values() for one in several] if isinstance(states, dict) else states
    return [state for state in flat if not state.get('by_epoch', True)]


def count_schedule_anew(state: dict[str, Any], was: int, now: int) -> None:
    """Convert the counters of a scheduler. Begin, end and milestones come from the new run's config."""
    for name in (*COUNTS, 'total_iters', 'cumulative_periods', '_schedule_phases'):
        state.pop(name, None)
    for name in ('last_step', '_global_step'):
        state[name] = state[name] * now // was


def position_of(runner: Runner) -> Position:
    """Return the position to save in the checkpoints of `runner`."""
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
    """Return the sampler of the training data if it is a GlobalOrderSampler, else None."""
    sampler = runner.train_dataloader.batch_sampler.sampler
    return sampler if isinstance(sampler, GlobalOrderSampler) else None


def planned_recipe(cfg: Config) -> dict[str, int] | None:
    """Return the recipe's own batch factors and the batch of its counts.

    None if `plan_batch` did not see the config.
    """
    plan = cfg.get('batch_plan')
    return plan and dict(base=plan.base, per_device=plan.recipe.per_device, accumulation=plan.recipe.accumulation)


def samples_seen(iteration: int, batch: EffectiveBatch) -> int:
    """Return the number of samples that all devices have seen."""
    return iteration * batch.devices * batch.per_device
