"""Explain out-of-memory errors: the stage that raised them, and the settings that would fit."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, TestLoop, ValLoop
from torch import Tensor, nn
from torch.optim import Optimizer

from ...microbatch.memory_plan import Choice, by_speed
from ..recipe.task import TASKS
from ..recipe.tree import hooks_in
from .host_memory import available_memory, gibibytes
from .plan import RecipeMemory, plan_recipe

RESERVE = 2**29
"""Bytes kept free for the workspace of convolutions and for fragmentation, which the plan does not include."""
OPTIONS = 3
OF_HOST = "can't allocate memory"
SIGNS = (OF_HOST, 'out of memory', 'CUBLAS_STATUS_ALLOC_FAILED')
KINDS = (torch.OutOfMemoryError, MemoryError, RuntimeError)


@contextmanager
def explaining_out_of_memory(
    cfg: Config, recipe: str, *, available: Callable[[], int | None] | None = None
) -> Iterator[None]:
    """Add to an out-of-memory error the stage that raised it, and the fastest ways to train that would fit.

    `plan_recipe` plans them on fake tensors, which takes up to two minutes.

    Args:
        cfg: The recipe as it runs.
        recipe: File of the recipe, for the commands in the message.
        available: Returns the bytes that a process of this run can use; by default `device_memory`.

    Raises:
        torch.OutOfMemoryError, MemoryError, RuntimeError: The kind of the original error, with the longer text.
    """
    try:
        yield
    except KINDS as error:
        if not is_out_of_memory(error):
            raise
        where = stage_of(error.__traceback__)
        print_log(f'out of memory in {where}', logger='current')
        lines = [f'{error}', '', f'Out of memory in {where}.']
        if torch.cuda.is_available() and of_host(error):
            lines.append(
                "The host's memory is exhausted, not the GPU's: reduce num_workers or prefetch_factor of the loaders."
            )
        else:
            lines += advice(cfg, recipe, where, available or device_memory)
        # Not type(error): numpy's subclass of MemoryError does not accept a text.
        kind = next(kind for kind in KINDS if isinstance(error, kind))
        raise kind('\n'.join(lines)).with_traceback(error.__traceback__) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on a GPU or on the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in SIGNS)


def of_host(error: BaseException) -> bool:
    """Return whether a failed allocation was on the host."""
    return isinstance(error, MemoryError) or OF_HOST in str(error)


def stage_of(trace: TracebackType | None) -> str:
    """Return the stage that raised an error, read from its stack frames: 'training, forward pass of conv_seg'."""
    loop, part, model, module = 'the start, before the first iteration', '', None, None
    for frame, _ in traceback.walk_tb(trace):
        this, function = frame.f_locals.get('self'), frame.f_code.co_name
        if isinstance(this, BaseLoop):
            loop = {ValLoop: 'validation', TestLoop: 'the test'}.get(type(this), 'training')
        elif isinstance(this, Optimizer) or (isinstance(this, OptimWrapper) and function == 'step'):
            part, module = ', optimizer step', None
        elif isinstance(this, Tensor) and function == 'backward':
            part, module = ', backward pass', None
        elif isinstance(this, nn.Module):
            if model is None or is_model_wrapper(model):
                model = this
            module = this
    if module is not None and model is not None:
        name = next((name for name, other in model.named_modules() if other is module), '')
        again = 'recomputation' if part else 'forward pass'
        part += f', {again} of {name or type(module).__name__}'
    return loop + part


def device_memory() -> int | None:
    """Return the bytes that this process holds or could allocate on its GPU, else on the host; None if unknown."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    room = available_memory()
    return None if room is None else room.free


def advice(cfg: Config, recipe: str, where: str, available: Callable[[], int | None]) -> Iterator[str]:
    """Yield lines on what to change, best first."""
    if not where.startswith('training'):
        yield from advice_for_evaluation(cfg, recipe, where)
        return
    has = available()
    print_log('planning settings that would fit: this takes up to two minutes', logger='current')
    try:
        plan = plan_recipe(cfg, on_gpu=torch.cuda.is_available(), most_samples=cfg.train_dataloader.batch_size)
    except Exception as error:  # must not hide the out-of-memory error
        yield f'Planning settings that would fit failed: {error}'
        return
    needs = plan.training.peak().total
    available_here = f'; available to this process: {gibibytes(has)}' if has else ''
    yield f'Planned for this run: {gibibytes(needs)}{available_here}.'
    options = options_that_fit(plan, has)
    if options:
        yield 'These settings would fit, fastest first:' if has else 'These settings need less, fastest first:'
        for number, (choice, bytes_) in enumerate(options, 1):
            yield f'  {number}. {flags(plan.own, choice)}: {gibibytes(bytes_)}'
    else:
        yield 'No precision, activation_memory or batch size would fit: train on smaller inputs.'
    limit = f' --device-memory {has >> 20}MB' if has else ''
    yield f'List all settings: python tools/plan_memory.py {recipe}{limit}'


def options_that_fit(plan: RecipeMemory, available: int | None) -> list[tuple[Choice, int]]:
    """Return the fastest choices that fit, need less than the recipe and have no more samples, with their bytes."""
    own = plan.training.peak().total
    bound = own if available is None else min(own, available - RESERVE + 1)
    peaks = {choice: memory.peak().total for choice, memory in plan.choices.items()}
    fitting = [choice for choice, peak in peaks.items() if choice.samples <= plan.own.samples and peak < bound]
    return [(choice, peaks[choice]) for choice in by_speed(fitting)][:OPTIONS]


def flags(own: Choice, choice: Choice) -> str:
    """Return the arguments of tools/train.py that turn the choice `own` into `choice`."""
    arguments = []
    if choice.precision != own.precision:
        arguments.append('without --amp' if choice.precision == 'fp32' else f'--amp {amp()}')
    if choice.samples != own.samples:
        arguments.append(f'--per-device {choice.samples}')
    if choice.activation_memory != own.activation_memory:
        arguments.append(f'--cfg-options activation_memory={choice.activation_memory}')
    return ' '.join(arguments)


def amp() -> str:
    """Return the 16-bit type that this device supports, for --amp."""
    on_gpu = torch.cuda.is_available()
    return 'bf16' if not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False) else 'fp16'


def advice_for_evaluation(cfg: Config, recipe: str, where: str) -> Iterator[str]:
    """Yield lines on how a validation or a test with the given model and inputs needs less memory."""
    if not where.startswith(('validation', 'the test')):
        return
    part = 'val' if where.startswith('validation') else 'test'
    options: list[str] = []
    loader: Any = cfg.get(f'{part}_dataloader') or {}
    if loader.get('batch_size', 1) > 1:
        options.append(f'--cfg-options {part}_dataloader.batch_size=1: one sample at a time')
    if part == 'test' and any(hook.get('type') == 'PrepareTTAHook' for hook in hooks_in(cfg)):
        options.append('--tta with smaller scales: the largest one determines the memory')
    if (
        TASKS.get(cfg.get('default_scope')) == 'segmentation'
        and (cfg.model.get('test_cfg') or {}).get('mode') != 'slide'
    ):
        height, width = (cfg.model.get('data_preprocessor') or {}).get('size') or (512, 512)
        window = (
            f'model.test_cfg.crop_size=({height},{width}) model.test_cfg.stride=({height * 2 // 3},{width * 2 // 3})'
        )
        options.append(f'--cfg-options model.test_cfg.mode=slide {window}: sliding windows; the results differ')
    if cfg.model.get('max_test_views', 1) != 1:
        options.append('--cfg-options model.max_test_views=1: one view at a time')
    if part == 'val':
        options.append(
            f'--cfg-options train_cfg.val_interval={cfg.train_cfg.get("max_iters", cfg.train_cfg.get("max_epochs"))}: '
            f'only at the end; python tools/test.py {recipe} CHECKPOINT evaluates without an optimizer in memory'
        )
    if not options:
        yield 'The evaluation already runs one sample at a time: use smaller inputs.'
        return
    yield 'To reduce the memory of an evaluation, try in this order:'
    yield from (f'  {number}. {option}' for number, option in enumerate(options[:OPTIONS], 1))
