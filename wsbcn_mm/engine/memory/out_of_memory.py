"""When memory runs out, say in which stage, and what would fit."""

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
from .loaders import available_memory, gibibytes
from .plan import RecipeMemory, plan_recipe

RESERVE = 2**29
"""Bytes left to convolutions inside themselves and to fragmentation, which no plan knows."""
OPTIONS = 3
OF_HOST = "can't allocate memory"
SIGNS = (OF_HOST, 'out of memory', 'CUBLAS_STATUS_ALLOC_FAILED')
KINDS = (torch.OutOfMemoryError, MemoryError, RuntimeError)


@contextmanager
def explaining_out_of_memory(
    cfg: Config, recipe: str, *, available: Callable[[], int | None] | None = None
) -> Iterator[None]:
    """Add to an error for want of memory the stage it was raised in, and the fastest ways to train that would fit.

    They are planned anew on tensors without memory (`plan_recipe`), which takes up to two minutes.

    Args:
        cfg: The recipe as it runs.
        recipe: Its file, for the commands in the message.
        available: Bytes that a process of this run can have; by default what the device says.

    Raises:
        torch.OutOfMemoryError, MemoryError, RuntimeError: The one of these that the error was, with the longer text.
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
                "It is the host's memory and not the GPU's: fewer workers, or fewer batches of each (num_workers and "
                'prefetch_factor of the loaders)'
            )
        else:
            lines += advice(cfg, recipe, where, available or device_memory)
        kind = next(kind for kind in KINDS if isinstance(error, kind))  # numpy's own takes no text
        raise kind('\n'.join(lines)).with_traceback(error.__traceback__) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in SIGNS)


def of_host(error: BaseException) -> bool:
    """Whether an allocation failed on the host, given that one failed."""
    return isinstance(error, MemoryError) or OF_HOST in str(error)


def stage_of(trace: TracebackType | None) -> str:
    """'training, forward pass of decode_head.conv_seg': read from the frames that an error passed through."""
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
    """Bytes that this process has or could get: of its GPU, or of the host; None where that is unknown."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    room = available_memory()
    return None if room is None else room.free


def advice(cfg: Config, recipe: str, where: str, available: Callable[[], int | None]) -> Iterator[str]:
    """Lines: what to change, the best first."""
    if not where.startswith('training'):
        yield from advice_for_evaluation(cfg, recipe, where)
        return
    has = available()
    print_log('planning what would fit takes up to two minutes', logger='current')
    try:
        plan = plan_recipe(cfg, on_gpu=torch.cuda.is_available(), most_samples=cfg.train_dataloader.batch_size)
    except Exception as error:  # the failure to be explained is another one
        yield f'What would fit could not be planned: {error}'
        return
    needs = plan.training.peak().total
    yield (
        f'Planned for this run: {gibibytes(needs)}' + (f'; this process can have {gibibytes(has)}' if has else '') + '.'
    )
    options = options_that_fit(plan, has)
    if options:
        yield 'These would fit, the fastest first:' if has else 'These need less, the fastest first:'
        for number, (choice, bytes_) in enumerate(options, 1):
            yield f'  {number}. {flags(plan.own, choice)}: {gibibytes(bytes_)}'
    else:
        yield 'No other precision, activation_memory or batch would fit: train on smaller inputs.'
    yield f'All of them: python tools/plan_memory.py {recipe}' + (f' --device-memory {has >> 20}MB' if has else '')


def options_that_fit(plan: RecipeMemory, available: int | None) -> list[tuple[Choice, int]]:
    """The fastest choices of not more samples that need less than the recipe and fit, with their bytes."""
    own = plan.training.peak().total
    bound = own if available is None else min(own, available - RESERVE + 1)
    peaks = {choice: memory.peak().total for choice, memory in plan.choices.items()}
    fitting = [choice for choice, peak in peaks.items() if choice.samples <= plan.own.samples and peak < bound]
    return [(choice, peaks[choice]) for choice in by_speed(fitting)][:OPTIONS]


def flags(own: Choice, choice: Choice) -> str:
    """Arguments of tools/train.py that make one choice of another."""
    said = []
    if choice.precision != own.precision:
        said.append('without --amp' if choice.precision == 'fp32' else f'--amp {amp()}')
    if choice.samples != own.samples:
        said.append(f'--per-device {choice.samples}')
    if choice.activation_memory != own.activation_memory:
        said.append(f'--cfg-options activation_memory={choice.activation_memory}')
    return ' '.join(said)


def amp() -> str:
    """The 16-bit type of this device."""
    on_gpu = torch.cuda.is_available()
    return 'bf16' if not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False) else 'fp16'


def advice_for_evaluation(cfg: Config, recipe: str, where: str) -> Iterator[str]:
    """What makes a validation or a test smaller; its model and its inputs are given."""
    if not where.startswith(('validation', 'the test')):
        return
    part = 'val' if where.startswith('validation') else 'test'
    options: list[str] = []
    loader: Any = cfg.get(f'{part}_dataloader') or {}
    if loader.get('batch_size', 1) > 1:
        options.append(f'--cfg-options {part}_dataloader.batch_size=1: one sample at a time')
    if part == 'test' and any(hook.get('type') == 'PrepareTTAHook' for hook in hooks_in(cfg)):
        options.append('--tta with smaller scales, of which the largest counts')
    if (
        TASKS.get(cfg.get('default_scope')) == 'segmentation'
        and (cfg.model.get('test_cfg') or {}).get('mode') != 'slide'
    ):
        height, width = (cfg.model.get('data_preprocessor') or {}).get('size') or (512, 512)
        window = (
            f'model.test_cfg.crop_size=({height},{width}) model.test_cfg.stride=({height * 2 // 3},{width * 2 // 3})'
        )
        options.append(f'--cfg-options model.test_cfg.mode=slide {window}: by windows, which other results come from')
    if cfg.model.get('max_test_views', 1) != 1:
        options.append('--cfg-options model.max_test_views=1: one view at a time')
    if part == 'val':
        options.append(
            f'--cfg-options train_cfg.val_interval={cfg.train_cfg.get("max_iters", cfg.train_cfg.get("max_epochs"))}: '
            f'at the end alone; python tools/test.py {recipe} CHECKPOINT evaluates without the optimizer beside it'
        )
    if not options:
        yield 'It runs one sample at a time already: evaluate smaller inputs.'
        return
    yield 'An evaluation needs less with, in this order:'
    yield from (f'  {number}. {option}' for number, option in enumerate(options[:OPTIONS], 1))
