"""What a training step needs in memory at each of its moments, and what that is.

    with fake_tensors():                 # shapes alone: no device, no memory, next to no time
        model, optimizer = ...
        step()                           # the optimizer's state is made in the first step
        memory = step_memory(step, model, optimizer)
    memory.peak().total

The step is the real one, forward, backward and optimizer; every storage that its operations return is counted from its
birth to its end.
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
"""`weights`: parameters and buffers. `gradients`: those that the optimizer reads. `activations`: what the forward pass
makes, its inputs included. `workspace`: what the backward pass and the optimizer make and give up again, recomputed
activations and gradients of activations among it."""


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
    """(operations,) names."""
    bytes: NDArray[np.int64]
    """(kinds, operations) bytes alive, in the order of `KINDS`."""

    def peak(self, stage: str | None = None) -> Moment:
        """The moment of the most bytes, in one stage or in all.

        Raises:
            ValueError: If the step has no such stage.
        """
        among = self.bytes if stage is None else self.bytes[:, self.stages == stage]
        if not among.size:
            raise ValueError(f'stage={stage!r}: the step has {", ".join(dict.fromkeys(self.stages.tolist()))}')
        return Moment(*among[:, among.sum(0).argmax()].tolist())


def step_memory(
    step: Callable[[], object],
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    stage: str = 'forward',
    present: Iterable[Tensor] = (),
) -> StepMemory:
    """Run a step and record what it has in memory after each operation; works on real and on fake tensors.

    The stages are `backward` inside a backward pass, `optimizer` inside `optimizer.step`, and `stage` elsewhere. What a
    step finds, such as the optimizer's state of earlier steps, is counted too. Memory inside one operation is
    invisible: a convolution's workspace, an allocator's fragmentation.

    Args:
        step: Any code; it may step the optimizer, several times too.
        model: Its parameters and buffers are the weights.
        optimizer: The optimizer that `step` steps, or that is there while it runs.
        stage: Name of the rest.
        present: Tensors that count as activations and were there before.
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
    """Remembers in which stage each operation ran."""

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
    """Inside, tensors have a shape, a dtype and a device, but no memory and no values; operations compute shapes alone.

    Where a shape depends on values it is the largest there can be, e.g. a mask selects everything; a number read from a
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
    """As many positions on each axis as a mask has elements; other indices as they are."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [torch.zeros(index.numel(), dtype=torch.int64, device=index.device) for _ in range(index.ndim)]


class Choice(NamedTuple):
    """A way to run a recipe."""

    samples: int
    """Per device and forward pass."""
    activation_memory: str
    """A mode of `set_activation_memory`."""
    precision: str
    """`fp32`, or the 16-bit type of autocast."""


def by_speed(choices: Iterable[Choice]) -> list[Choice]:
    """Choices by the time they take per sample, as far as that is known without running them, the fastest first.

    16 bits before 32, then what is recomputed, from nothing to everything, then more samples at once.
    """
    return sorted(choices, key=lambda c: (c.precision == 'fp32', MODES.index(c.activation_memory), -c.samples))


def fastest(choices: Iterable[Choice]) -> Choice | None:
    """The first of them `by_speed`; None of none."""
    return next(iter(by_speed(choices)), None)
