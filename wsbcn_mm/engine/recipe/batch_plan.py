"""Adapt a recipe to the available devices: the batch, and the learning rate and the counts that follow from it.

A recipe declares the batch that it was tuned for in mmengine's key `auto_scale_lr = dict(base_batch_size=16,
rule='linear', enable=False)`. `base_batch_size` is the number of samples of one optimizer step, over all devices and
micro-batches. `rule` is how the learning rate follows another number (`wsbcn_mm.microbatch.batch_plan.LR_RULES`).
"""

import math
import os
from fractions import Fraction
from typing import Any

from mmengine.config import Config
from mmengine.hooks import ParamSchedulerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...microbatch.batch_plan import EffectiveBatch, lr_factor, rescale_count, split_batch

PER_STEP = 'ParamSchedulerPerStepHook'
WARM_UPS = ('LinearLR', 'ConstantLR')
COUNTS = ('begin', 'end', 'milestones', 'step_size', 'T_max', 'total_steps', 'periods')
"""Settings of mmengine's schedulers that count iterations."""
LEARNING_RATES = ('eta_min', 'eta_max')


def world_size(cfg: Config) -> int:
    """Return the number of training processes, one per device, of a config from `prepare_launch`."""
    return int(os.environ['WORLD_SIZE']) if cfg.launcher == 'pytorch' else 1


def plan_batch(
    cfg: Config, devices: int, *, global_batch: int | None = None, per_device: int | None = None
) -> list[str]:
    """Make `cfg` train with this batch, for the same number of samples, and return a report.

    If `global_batch` or `per_device` is given, accumulation follows from it, and the other keeps the recipe's value.
    The learning rate follows the recipe's rule. Iterations, validations, checkpoints and iteration-based schedules are
    converted by samples, and rounded to whole optimizer steps. Under accumulation, schedules then count optimizer steps
    (`ParamSchedulerPerStepHook`), and the other counts forward passes, as in mmengine. Epochs stay epochs.

    If neither is given, the recipe's numbers do not change. A line reports an effective batch for which the recipe was
    not tuned, and another line a learning-rate schedule that is not as long as the run. Only with
    `auto_scale_lr.enable=True` does the learning rate follow the batch. This counts accumulation, unlike mmengine's own
    scaling.

    Args:
        cfg: A recipe, changed in place. `cfg.batch_plan` then has the numbers of the table as plain data.
        devices: Training processes, one per device.
        global_batch: Samples per optimizer step, over all devices and micro-batches.
        per_device: Samples per forward pass on each device.

    Returns:
        Lines of a table with the numbers of the recipe and of this run; empty for a recipe of an unsupported form.

    Raises:
        ValueError: If the numbers do not divide (the message names the nearest that do), or the recipe cannot be
            converted.
    """
    asked = global_batch is not None or per_device is not None
    unread = unread_key(cfg)
    if unread:
        if asked:
            raise ValueError(f'--global-batch and --per-device need a recipe with {unread}')
        return []
    scaling: dict[str, Any] = cfg.get('auto_scale_lr') or {}
    base: Any = scaling.get('base_batch_size')
    rule = scaling.get('rule', 'linear')
    if asked and base is None:
        raise ValueError(
            '--global-batch and --per-device need the batch that the recipe was tuned for: add '
            '--cfg-options auto_scale_lr.base_batch_size=N'
        )
    batch = EffectiveBatch(devices, cfg.train_dataloader.batch_size, accumulation_of(cfg))
    if asked:
        batch = split_batch(
            base if global_batch is None else global_batch,
            devices,
            batch.per_device if per_device is None else per_device,
        )
    base = base or batch.samples
    factor = lr_factor(batch.samples / base, rule)
    recipe = figures(cfg, base)
    if asked:
        convert_counts(cfg, base, batch)
    if asked or scaling.get('enable'):
        scale_learning_rates(cfg, factor)
        cfg.auto_scale_lr = {**scaling, 'base_batch_size': batch.samples, 'enable': False}
    run = figures(cfg, batch.samples)
    counted = base if asked else batch.samples
    cfg.batch_plan = dict(devices=devices, base=counted, lr_rule=rule, recipe=recipe, run=run)
    lines = [f'batch plan: effective batch {batch}', *table(recipe, run)]
    if not asked and batch.samples != base:
        lines.append(difference(base, devices, recipe, run))
    return lines + misfit_of_schedule(run)


def unread_key(cfg: Config) -> str | None:
    """Return what the recipe lacks for a batch plan; None if it lacks nothing."""
    if not isinstance((cfg.get('train_dataloader') or {}).get('batch_size'), int):
        return 'train_dataloader.batch_size'
    if not isinstance(((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('lr'), (int, float)):
        return 'one optimizer, optim_wrapper.optimizer.lr'
    return None if cfg.get('train_cfg') else 'train_cfg'


def accumulation_of(cfg: Config) -> int:
    return cfg.optim_wrapper.get('accumulative_counts', 1)


def schedulers_of(cfg: Config) -> list[dict]:
    found = cfg.get('param_scheduler') or []
    return [found] if isinstance(found, dict) else list(found)


def iteration_schedulers_of(cfg: Config) -> list[dict]:
    return [one for one in schedulers_of(cfg) if not one.get('by_epoch', True)]


def forwards_per_tick(cfg: Config) -> int:
    """Return the forward passes per device between two steps of an iteration-based scheduler."""
    hook = (cfg.get('default_hooks') or {}).get('param_scheduler') or {}
    return accumulation_of(cfg) if hook.get('type') == PER_STEP else 1


def figures(cfg: Config, samples_per_step: int) -> dict[str, Any]:
    """Return batch, learning rate and length of a config as plain data. `steps` are optimizer steps."""
    accumulation, loop = accumulation_of(cfg), cfg.train_cfg
    steps_per_tick = Fraction(forwards_per_tick(cfg), accumulation)
    found: dict[str, Any] = dict(
        effective_batch=samples_per_step,
        per_device=cfg.train_dataloader.batch_size,
        accumulation=accumulation,
        learning_rate=cfg.optim_wrapper.optimizer.lr,
    )
    if 'max_iters' in loop:
        found |= dict(
            iterations=loop.max_iters,
            optimizer_steps=plain(Fraction(loop.max_iters, accumulation)),
            samples=plain(Fraction(loop.max_iters * samples_per_step, accumulation)),
        )
    elif 'max_epochs' in loop:
        found['epochs'] = loop.max_epochs
    ends = [(one['type'], plain(one['end'] * steps_per_tick)) for one in iteration_schedulers_of(cfg) if 'end' in one]
    found['warm_up_steps'] = next((end for kind, end in ends if kind in WARM_UPS), 0)
    found['schedule_ends_steps'] = [end for kind, end in ends if kind not in WARM_UPS]
    found['lr_drops_steps'] = [
        plain(drop * steps_per_tick) for one in iteration_schedulers_of(cfg) for drop in one.get('milestones', [])
    ]
    found['val_interval'] = loop.get('val_interval')
    found['checkpoint_interval'] = checkpoints(cfg).get('interval')
    return {name: value for name, value in found.items() if value not in (None, [])}


def checkpoints(cfg: Config) -> dict:
    return (cfg.get('default_hooks') or {}).get('checkpoint') or {}


def plain(number: Fraction) -> int | float:
    return int(number) if number.denominator == 1 else round(float(number), 2)


def convert_counts(cfg: Config, base: int, batch: EffectiveBatch) -> None:
    """Set batch and accumulation, and convert counts of iterations to the same number of samples.

    Raises:
        ValueError: If a scheduler cannot be converted, or would end within its first optimizer step.
    """
    forwards, ticks = accumulation_of(cfg), forwards_per_tick(cfg)
    to_steps = Fraction(base, forwards * batch.samples)
    for scheduler in iteration_schedulers_of(cfg):
        if 'max_iters' in cfg.train_cfg:
            scheduler.setdefault('end', cfg.train_cfg.max_iters // ticks)
        convert_scheduler(scheduler, to_steps * ticks, batch)
    if batch.accumulation > 1:
        for scheduler in schedulers_of(cfg):
            refuse_counts_by_mmengine(scheduler)
    if 'max_iters' in cfg.train_cfg:
        if 'dynamic_intervals' in cfg.train_cfg:
            raise ValueError('--global-batch and --per-device do not convert train_cfg.dynamic_intervals: remove it')
        for name in ('max_iters', 'val_begin', 'val_interval'):
            if name in cfg.train_cfg:
                cfg.train_cfg[name] = rescale_count(cfg.train_cfg[name], to_steps) * batch.accumulation
    saving = checkpoints(cfg)
    if not saving.get('by_epoch', True) and saving.get('interval', -1) > 0:
        saving['interval'] = rescale_count(saving['interval'], to_steps) * batch.accumulation
    cfg.train_dataloader.batch_size = batch.per_device
    cfg.optim_wrapper.accumulative_counts = batch.accumulation
    if batch.accumulation > 1:
        cfg.setdefault('default_hooks', {})
        cfg.default_hooks.param_scheduler = dict(type=PER_STEP)


def convert_scheduler(scheduler: dict, ratio: Fraction, batch: EffectiveBatch) -> None:
    """Multiply the counts of `scheduler` by `ratio`.

    Raises:
        ValueError: If it cannot be converted, or would last only one optimizer step.
    """
    kind = scheduler['type']
    if kind.startswith('Exponential') and ratio != 1:
        raise ValueError(f'{kind} decays in every iteration: --global-batch and --per-device do not support it')
    for name in COUNTS:
        if isinstance(scheduler.get(name), int):
            scheduler[name] = rescale_count(scheduler[name], ratio)
        elif scheduler.get(name):
            scheduler[name] = [rescale_count(count, ratio) for count in scheduler[name]]
    if 'end' in scheduler and scheduler['end'] - scheduler.get('begin', 0) < 2:
        raise ValueError(
            f'{kind} would last {scheduler["end"] - scheduler.get("begin", 0)} optimizer step(s) at a global batch of '
            f'{batch.samples}, but needs at least 2: use a smaller --global-batch'
        )


def refuse_counts_by_mmengine(scheduler: dict) -> None:
    """Raise ValueError if mmengine would count forward passes for a scheduler that must count optimizer steps."""
    if scheduler.get('convert_to_iter_based') or not (scheduler.get('by_epoch', True) or 'end' in scheduler):
        raise ValueError(
            f'{scheduler["type"]} lets mmengine count its iterations, which are forward passes, not optimizer steps: '
            "under accumulation set by_epoch=False and 'end', or use only epochs"
        )


def scale_learning_rates(cfg: Config, factor: float) -> None:
    """Scale the learning rate of the optimizer, and the bounds of the learning-rate schedulers."""
    cfg.optim_wrapper.optimizer.lr *= factor
    for scheduler in schedulers_of(cfg):
        for name in LEARNING_RATES:
            if scheduler['type'].endswith('LR') and scheduler.get(name):
                scheduler[name] *= factor


def table(recipe: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """Format a table: names, the recipe's numbers and this run's."""
    rows = [('', 'recipe', 'this run')]
    rows += [(name.replace('_', ' '), text(recipe.get(name)), text(value)) for name, value in run.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [f'  {name:<{widths[0]}}  {old:>{widths[1]}}  {new:>{widths[2]}}' for name, old, new in rows]


def text(value: Any) -> str:
    if isinstance(value, list):
        return ', '.join(map(text, value))
    return f'{value:g}' if isinstance(value, float) else str(value)


def misfit_of_schedule(run: dict[str, Any]) -> list[str]:
    """Return one line if the learning-rate schedule is longer or shorter than the run, else none."""
    ends = run.get('schedule_ends_steps', [])
    last, steps = max([run['warm_up_steps'], *ends]), math.ceil(run.get('optimizer_steps', 0))
    if not steps or last == steps or (last < steps and not ends):
        return []
    consequence = 'the schedule is cut off' if last > steps else f'it is constant from step {text(last)} on'
    return [
        f'the learning rate is scheduled for {text(last)} optimizer steps, but this run has {steps}: {consequence} '
        "(set 'end' in param_scheduler)"
    ]


def difference(base: int, devices: int, recipe: dict[str, Any], run: dict[str, Any]) -> str:
    """Return one line on an effective batch that the recipe was not tuned for."""
    before, now = text(recipe['learning_rate']), text(run['learning_rate'])
    rate = f'stays {before}' if before == now else f'changes from {before} to {now}'
    seen = (
        f', {run["iterations"]} iterations process {text(run["samples"])} samples instead of {text(recipe["samples"])}'
        if 'samples' in run
        else ''
    )
    try:
        split_batch(base, devices, run['per_device'])
        advice = f'--global-batch {base} restores the batch of the recipe'
    except ValueError as error:
        advice = str(error)
    return (
        f'effective batch {run["effective_batch"]}, but the recipe is tuned for {base}: the learning rate {rate}'
        f'{seen}; {advice}'
    )


@HOOKS.register_module()
class ParamSchedulerPerStepHook(ParamSchedulerHook):
    """Step the iteration-based schedulers after each optimizer step; mmengine's hook steps after each forward pass.

    The learning rates of k accumulated micro-batches are then bit-equal to those of one batch of the same samples. The
    hook replaces mmengine's: `default_hooks=dict(param_scheduler=dict(type=...))`.
    """

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.optim_wrapper.should_update():
            super().after_train_iter(runner, *args, **kwargs)
