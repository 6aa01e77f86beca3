"""Plan the memory of a recipe's training, validation and test, without a device and without data."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from ...microbatch.activation_memory import MODES, set_activation_memory
from ...microbatch.memory_plan import Choice, StepMemory, fake_tensors, step_memory
from ...surgery.kinds import conv_kind
from ..recipe.checks import requested_activation_memory
from ..recipe.model import build_model, copies_of_test, evaluation_shape, input_shape
from ..recipe.tree import hooks_in

PRECISIONS: dict[str, torch.dtype | None] = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}
STANDARDIZED_WEIGHT_HOOK = 'StandardizedWeightHook'


class RecipeMemory(NamedTuple):
    """Memory of a recipe, and of its training step under other choices."""

    own: Choice
    training: StepMemory
    validation: StepMemory
    test: StepMemory
    choices: dict[Choice, StepMemory]
    shapes: dict[str, tuple[int, ...]]
    """Shapes of the inputs, by stage."""


def plan_recipe(
    cfg: Config, *, on_gpu: bool = True, with_alternatives: bool = True, most_samples: int = 2
) -> RecipeMemory:
    """Run a recipe's training, validation and test step on fake tensors, and the training step of every alternative.

    The alternatives are 1 and 2 samples per device, every `activation_memory`, float32 and bfloat16. Gradient
    accumulation is planned with two micro-batches, which need as much as more do.

    Departures from a GPU's step:

    * Autocast is the CPU's. Norms and interpolations run in float32 as under CUDA's, and so does 3D pooling. Where
      activations are recomputed, group norms stay in 16 bits.
    * Weight Standardization keeps its filters in float32 and in 16 bits.
    * Dropout keeps its mask in the precision of its input.
    * The plan is for one process, without the buckets of DistributedDataParallel.
    * Moving averages of weights, which hooks keep, are not included.

    Args:
        cfg: A recipe of segmentation or video.
        on_gpu: Plan for a GPU's choices (one call for all parameters in the optimizer, CUDA's autocast) or a CPU's.
        with_alternatives: Whether to plan the alternatives, which take most of the time.
        most_samples: Most samples per device of an alternative.

    Raises:
        ValueError: If the recipe does not specify the size of its inputs, or has several optimizers.
    """
    own = own_choice(cfg)
    shapes = dict(
        training=input_shape(cfg), validation=evaluation_shape(cfg, 'val'), test=evaluation_shape(cfg, 'test')
    )
    with fake_tensors(), DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        recipe = _FakeRecipe(cfg, on_gpu)
        choices = {
            choice: recipe.training(choice, (choice.samples, *shapes['training'][1:]))
            for choice in [own, *(alternatives(own) if with_alternatives else [])]
            if choice == own or choice.samples <= most_samples
        }
        validate = partial(recipe.model.val_step, batch_of(shapes['validation']))
        validation = recipe.evaluation(validate, 'validation', recipe.wrapper(None).optimizer)
        test = recipe.evaluation(step_of_test(cfg, recipe.model), 'test', None)
    return RecipeMemory(own, choices[own], validation, test, choices, shapes)


def own_choice(cfg: Config) -> Choice:
    """Return the choice that the recipe itself makes."""
    wrapper = cfg.optim_wrapper
    precision = 'bf16' if wrapper.get('type') == 'Bf16OptimWrapper' else 'fp32'
    if wrapper.get('type') == 'AmpOptimWrapper':
        precision = {'bfloat16': 'bf16', 'torch.bfloat16': 'bf16'}.get(str(wrapper.get('dtype')), 'fp16')
    return Choice(cfg.train_dataloader.batch_size, requested_activation_memory(cfg)['mode'], precision)


def alternatives(own: Choice) -> list[Choice]:
    """Return every other choice of 1 or 2 samples, activation memory and precision."""
    every = [Choice(samples, mode, precision) for precision in ('fp32', 'bf16') for samples in (1, 2) for mode in MODES]
    return [choice for choice in every if choice != own]


def step_of_test(cfg: Config, model: BaseModel) -> Callable[[], object]:
    """Return a function that tests one batch; with test-time augmentation it averages over the copies."""
    shape, copies = evaluation_shape(cfg, 'test'), copies_of_test(cfg)
    if copies is None:
        return partial(model.test_step, batch_of(shape))
    averaging, sizes = copies
    original = evaluation_shape(cfg, 'val')[2:]
    batches = [batch_of((shape[0], 3, *size), original) for size in sizes]
    together = {key: [batch[key] for batch in batches] for key in batches[0]}
    return partial(MODELS.build(averaging | dict(module=model)).test_step, together)


class _FakeRecipe:
    """A recipe's model on fake tensors, and its steps."""

    def __init__(self, cfg: Config, on_gpu: bool) -> None:
        self.cfg = cfg
        self.on_gpu = on_gpu
        self.model = revert_sync_batchnorm(build_model(cfg, 'cpu'))
        self.accumulation = min(cfg.optim_wrapper.get('accumulative_counts', 1), 2)
        self.standardizes_once = any(hook.get('type') == STANDARDIZED_WEIGHT_HOOK for hook in hooks_in(cfg))
        self.modules = requested_activation_memory(cfg).get('modules')
        self.wrappers: dict[torch.dtype | None, _Autocast] = {}

    def wrapper(self, dtype: torch.dtype | None) -> '_Autocast':
        """Return the recipe's optimizer, with its state allocated and its forward passes under autocast to `dtype`."""
        if dtype not in self.wrappers:
            settings = dict(self.cfg.optim_wrapper)
            for key in ('loss_scale', 'dtype', 'use_fsdp'):
                settings.pop(key, None)
            settings |= dict(type=_Autocast, accumulative_counts=self.accumulation)
            wrapper = build_optim_wrapper(self.model, settings)
            if not isinstance(wrapper, _Autocast):
                raise ValueError('the recipe has several optimizers: a plan needs a recipe with one')
            wrapper.dtype = dtype
            for group in wrapper.optimizer.param_groups:
                if self.on_gpu and group.get('foreach', False) is None and not group.get('fused'):
                    group['foreach'] = True  # torch's own choice for parameters on a GPU
            if self.wrappers:
                wrapper.optimizer.state = next(iter(self.wrappers.values())).optimizer.state
            else:
                for parameter in self.model.parameters():
                    parameter.grad = torch.zeros_like(parameter)
                wrapper.step()
                wrapper.zero_grad()
            self.wrappers[dtype] = wrapper
        return self.wrappers[dtype]

    def training(self, choice: Choice, shape: tuple[int, ...]) -> StepMemory:
        """Return the memory of one optimizer step."""
        set_activation_memory(self.model, choice.activation_memory, self.modules)
        wrapper = self.wrapper(PRECISIONS[choice.precision])
        # Recomputation restores autocast, but not function modes.
        wrapper.as_cuda = self.on_gpu and choice.activation_memory == 'all'
        self.model.train()

        def step() -> None:
            for _ in range(self.accumulation):
                self.model.train_step(batch_of(shape), wrapper)

        kept = self._kept_filters() if self.accumulation > 1 and choice.activation_memory != 'all' else []
        return step_memory(step, self.model, wrapper.optimizer, present=kept)

    def evaluation(self, step: Callable[[], object], stage: str, optimizer: torch.optim.Optimizer | None) -> StepMemory:
        """Return the memory of one batch: of validation, with the optimizer in memory, or of a test, without one."""
        self.model.eval()
        with torch.no_grad():
            return step_memory(step, self.model, optimizer, stage=stage, present=self._kept_filters())

    def _kept_filters(self) -> list[Tensor]:
        """Return tensors of the size of the standardised filters that are kept between forward passes."""
        if not self.standardizes_once:
            return []
        return [torch.empty_like(conv.weight) for conv in self.model.modules() if conv_kind(conv) == 'WS']


class _Autocast(OptimWrapper):
    """mmengine's AmpOptimWrapper on a CPU, without the gradient scaler, which holds only one number."""

    dtype: torch.dtype | None = None
    as_cuda = True

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(super().optim_context(model))
            if self.dtype is not None:
                stack.enter_context(torch.autocast('cpu', self.dtype))
                if self.as_cuda:
                    stack.enter_context(_Float32AsOnCuda())
            yield


class _Float32AsOnCuda(TorchFunctionMode):
    """Run in float32 the functions that autocast runs in float32 on CUDA, but in 16 bits on a CPU."""

    FUNCTIONS = frozenset([functional.group_norm, functional.layer_norm, functional.interpolate])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.FUNCTIONS:
            args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
        return func(*args, **(kwargs or {}))


def batch_of(shape: tuple[int, ...], original: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Return a batch as the loader gives it, for inputs of this shape: images with label maps, or clips with labels.

    Args:
        shape: As returned by `evaluation_shape`.
        original: (H, W) of the images in their files; by default that of `shape`.
    """
    samples = [BaseDataElement() for _ in range(shape[0])]
    for sample in samples:
        if len(shape) == 4:
            sample.gt_sem_seg = PixelData(data=torch.zeros(1, *shape[2:], dtype=torch.int64))
            size = tuple(shape[2:])
            sample.set_metainfo(
                dict(img_path='', ori_shape=original or size, img_shape=size, pad_shape=size, padding_size=[0, 0, 0, 0])
            )
        else:
            sample.gt_label = torch.zeros(1, dtype=torch.int64)
    return dict(inputs=[torch.zeros(shape[1:], dtype=torch.uint8) for _ in samples], data_samples=samples)
