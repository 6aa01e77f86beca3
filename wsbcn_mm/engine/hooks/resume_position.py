"""Go on at the sample where the checkpoint's run was, and say so."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner

from ..effective_batch import effective_batch
from ..resume import KEY, Position, fit_to_run, planned_recipe, samples_seen
from ..samplers import GlobalOrderSampler
from ..seeded_samples import SeededSamples
from .param_scheduler_per_step import ParamSchedulerPerStepHook

SHOWN = 8


@HOOKS.register_module()
class ResumePositionHook(Hook):
    """Write a run's place in the order of its data into checkpoints, and have `--resume` go on there.

    Nothing is read twice or skipped: training's first batch is the one that would have come next. With another number
    of devices the order goes on too, if the effective batch is the same (`wsbcn_mm.engine.resume`). Iteration-based
    loops alone; those by epochs are left to mmengine.

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
