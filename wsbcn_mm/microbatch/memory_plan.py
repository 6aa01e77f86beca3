"""Measure the memory of a training step after each operation, by kind.

    with fake_tensors():                 # only shapes: no device, no memory, almost no time
        model, optimizer = ...
        step()                           # the first step creates the optimizer's state
        memory = step_memory(step, model, optimizer)
    memory.peak().total

The step is the real one: forward, backward and optimizer. Every storage that its operations return counts as long as it
is alive.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..diagnostics.allocations import Allocation, Allocations
from ..layers.recomputation import is_recomputation
from .activation_memory import MODES

KINDS = ('weights', 'optimizer', 'gradients', 'activations', 'workspace')
"""Kinds of memory.

`weights` are parameters and buffers. `optimizer` is the optimizer's state. `gradients` are those that the optimizer
reads. `activations` are allocated by the forward pass and include its inputs. `workspace` is allocated by the backward
pass and the optimizer and freed again, such as recomputed activations and gradients of activations.
"""


class Moment(NamedTuple):
    """Bytes alive after one operation."""

    weights: int
    optimizer: int
    gradients: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        return sum(self)


class StepMemory(NamedTuple):
    """Memory over a step."""

    stages: NDArray[np.str_]
    """(operations,) names of stages."""
    bytes: NDArray[np.int64]
    """(kinds, operations) bytes alive; kinds are in the order of `KINDS`."""

    def peak(self, stage: str | None = None) -> Moment:
        """Return the moment with the most bytes, in one stage or in the whole step.

        Raises:
            ValueError: If the step has no such stage.
        """
        among = self.bytes if stage is None else self.bytes[:, self.stages == stage]
        if not among.size:
            stages = ', '.join(dict.fromkeys(self.stages.tolist()))
            raise ValueError(f'stage={stage!r}: one of the stages of the step is expected: {stages}')
        return Moment(*among[:, among.sum(0).argmax()].tolist())


def step_memory(
    step: Callable[[], object],
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    stage: str = 'forward',
    present: Iterable[Tensor] = (),
) -> StepMemory:
    """Run a step and record its memory after each operation, with real or fake tensors.

    The stage is `backward` inside a backward pass, `optimizer` inside `optimizer.step`, and `stage` elsewhere. Memory
    from before the step counts too, such as the optimizer's state. Memory inside one operation is invisible, such as a
    convolution's workspace or the allocator's fragmentation.

    Args:
        step: Any code; it may step the optimizer, even several times.
        model: Its parameters and buffers are the weights.
        optimizer: The optimizer that `step` steps, or whose state is in memory while it runs.
        stage: Name of the stage outside the backward pass and the optimizer.
        present: Existing tensors that count as activations.
    """
    optimizing = False

    def stage_now() -> str:
        return 'backward' if is_recomputation() else 'optimizer' if optimizing else stage

    def kind_now() -> str:
        return 'activations' if stage_now() == stage else 'workspace'

    ledger = _StagedAllocations(kind_now, stage_now)
    parameters = list(model.parameters())

    def mark(tensors: Iterable[Tensor], kind: str) -> None:
        for tensor in tensors:
            entry = ledger.of(tensor)
            if entry is not None and entry.kind in ('activations', 'workspace'):
                entry.kind = kind

    def gradients() -> list[Tensor]:
        return [p.grad for p in parameters if p.grad is not None]

    def state() -> list[Tensor]:
        return [t for t in tree_iter(optimizer.state_dict()['state'] if optimizer else ()) if isinstance(t, Tensor)]

    def begin(*_: Any) -> None:
        nonlocal optimizing
        mark(gradients(), 'gradients')
        optimizing = True

    def end(*_: Any) -> None:
        nonlocal optimizing
        mark(state(), 'optimizer')
        optimizing = False

    ledger.adopt([*parameters, *model.buffers()], 'weights')
    ledger.adopt(gradients(), 'gradients')
    ledger.adopt(state(), 'optimizer')
    ledger.adopt(present, 'activations')
    hooks = [optimizer.register_step_pre_hook(begin), optimizer.register_step_post_hook(end)] if optimizer else []
    try:
        with ledger:
            held = step()
    finally:
        for hook in hooks:
            hook.remove()
    mark(gradients(), 'gradients')
    memory = StepMemory(np.array(ledger.stages), _bytes_alive(ledger.record, ledger.operations))
    del held
    return memory


class _StagedAllocations(Allocations):
    """Record the stage of each operation."""

    def __init__(self, kind: Callable[[], str], stage: Callable[[], str]) -> None:
        super().__init__(kind)
        self.stage = stage
        self.stages: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.stages += [self.stage()] * (self.operations - len(self.stages))
        return out


def _bytes_alive(record: Sequence[Allocation], operations: int) -> NDArray[np.int64]:
    change = np.zeros((len(KINDS), operations + 1), dtype=np.int64)
    for entry in record:
        kind = KINDS.index(entry.kind)
        change[kind, entry.born] += entry.nbytes
        if entry.died is not None:
            change[kind, entry.died] -= entry.nbytes
    return change.cumsum(1)[:, :operations]


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Create tensors with shape, dtype and device, but without memory and values; operations only compute shapes.

    A shape that depends on values is the largest possible one, e.g. a mask selects everything. A number read from a
    tensor is 1.
    """
    with FakeTensorMode(), _WorstCase():
        yield


class _WorstCase(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return _one(args[0].dtype)
        if func is torch.ops.aten.index.Tensor:
            args = args[0], [part for index in args[1] for part in _all_of(index)]
        return func(*args, **(kwargs or {}))


def _one(dtype: torch.dtype) -> float | int | bool:
    if dtype == torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1


def _all_of(index: Tensor | None) -> list[Tensor | None]:
    """Replace a mask by as many positions on each axis as it has elements; keep other indices."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [torch.zeros(index.numel(), dtype=torch.int64, device=index.device) for _ in range(index.ndim)]


class Choice(NamedTuple):
    """A way to run a recipe."""

    samples: int
    """Samples per device and forward pass."""
    activation_memory: str
    """A mode of `set_activation_memory`."""
    precision: str
    """`fp32`, or the 16-bit type of autocast."""


def by_speed(choices: Iterable[Choice]) -> list[Choice]:
    """Sort choices by their expected time per sample, the fastest first; nothing is measured.

    16 bits come before 32, then less recomputation before more, then more samples before fewer.
    """
    return sorted(choices, key=lambda c: (c.precision == 'fp32', MODES.index(c.activation_memory), -c.samples))


def fastest(choices: Iterable[Choice]) -> Choice | None:
    """Return the first choice of `by_speed`, or None without choices."""
    return next(iter(by_speed(choices)), None)
