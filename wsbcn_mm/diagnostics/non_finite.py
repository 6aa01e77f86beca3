"""Where in a model infinities and nan begin."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..layers import BatchChannelNorm
from .running_statistics import norms_with_statistics


class Values(NamedTuple):
    """What there is in one or more tensors.

    Attributes:
        dtype: Of the first.
        total: Number of values.
        bad: Of them, infinite or nan.
        low: Least of the others; 0 if there are none.
        high: Largest of the others; 0 if there are none.
    """

    dtype: str
    total: int
    bad: int
    low: float
    high: float

    def __str__(self) -> str:
        if self.bad == self.total:
            return f'{self.dtype}, none of {self.total} finite'
        of_them = f', {self.bad} of {self.total} not finite, the others' if self.bad else ','
        return f'{self.dtype}{of_them} {self.low:.4g} to {self.high:.4g}'


def measure(tensors: Iterable[Tensor]) -> Values | None:
    """Values of all floating tensors among these; None if there are none."""
    floating = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not floating:
        return None
    flat = torch.cat([t.flatten().to(floating[0].device, torch.float64) for t in floating])
    finite = flat[flat.isfinite()]
    low, high = (float(v) for v in finite.aminmax()) if finite.numel() else (0.0, 0.0)
    return Values(str(floating[0].dtype).removeprefix('torch.'), flat.numel(), flat.numel() - finite.numel(), low, high)


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is infinite or nan; waits for the device once."""
    checks = [t.detach().isfinite().all() for t in tensors if t.is_floating_point() and t.numel()]
    return not checks or bool(torch.stack([check.to(checks[0].device) for check in checks]).all())


class BadModule(NamedTuple):
    """The first module that gave out something that is not finite.

    Attributes:
        name: In `model.named_modules()`.
        module: Its repr.
        inputs: What it took.
        outputs: What it gave.
        state: Its parameters and buffers, by name.
    """

    name: str
    module: str
    inputs: Values | None
    outputs: Values
    state: dict[str, Values]

    def __str__(self) -> str:
        said = dict(input=self.inputs or 'no numbers', output=self.outputs, **self.state)
        lines = [f'  {name:12} {values}' for name, values in said.items()]
        if self.inputs is not None and self.inputs.bad:
            lines[0] += ': from an operation before it that is no module'
        return '\n'.join([f'the first module that gives out such values: {self.name}, {self.module}', *lines])


class NormState:
    """Copies of all that the forward passes of a model change: its buffers, and what BCN has pending."""

    def __init__(self, model: nn.Module) -> None:
        pending = (m.pending_totals for m in model.modules() if isinstance(m, BatchChannelNorm))
        self._tensors = [*model.buffers(), *(totals for totals in pending if totals is not None)]
        self._copies = [tensor.clone() for tensor in self._tensors]

    @torch.no_grad()
    def put_back(self) -> None:
        """Make the state that of when this was made."""
        for tensor, copy in zip(self._tensors, self._copies, strict=True):
            tensor.copy_(copy)


@contextmanager
def recording_first(model: nn.Module) -> Iterator[list[BadModule]]:
    """Inside, note the first module without children whose output is not finite; the list has it, or nothing."""
    found: list[BadModule] = []
    names = {module: name for name, module in model.named_modules() if not any(True for _ in module.children())}

    def look(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        outputs = tensors_in(out)
        if found or all_finite(outputs):
            return
        values = measure(outputs)
        assert values is not None
        state = {name: measure([t]) for name, t in (*module.named_parameters(), *module.named_buffers())}
        known = {name: one for name, one in state.items() if one is not None}
        found.append(BadModule(names[module], repr(module), measure(tensors_in((args, kwargs))), values, known))

    handles = [module.register_forward_hook(look, with_kwargs=True) for module in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def first_non_finite(model: nn.Module, run: Callable[[], object]) -> BadModule | None:
    """Run a forward pass again, in the mode the model is in, and say which module is the first to go wrong.

    Nothing learns, and running statistics stay as they are. Random parts, such as dropout, draw other numbers than the
    first time; None if everything is finite then.
    """
    before = NormState(model)
    try:
        with torch.no_grad(), recording_first(model) as found:
            run()
    finally:
        before.put_back()
    return found[0] if found else None


def state_that_is_not_finite(model: nn.Module) -> list[str]:
    """Names of parameters and buffers with values that are infinite or nan."""
    named = [*model.named_parameters(), *model.named_buffers()]
    if all_finite(tensor for _, tensor in named):
        return []
    return [name for name, tensor in named if not all_finite([tensor])]


def describe_norms(model: nn.Module) -> str:
    """One line: the running statistics of all norms together, and the first that has others than numbers."""
    norms = norms_with_statistics(model)
    if not norms:
        return 'norms with running statistics: none'
    bad = [name for name, norm in norms.items() if not all_finite([norm.running_mean, norm.running_var])]
    mean, var = (measure(getattr(norm, key) for norm in norms.values()) for key in ('running_mean', 'running_var'))
    told = f'running_mean {mean}; running_var {var}'
    return f'running statistics of {len(norms)} norms: {told}' + (f'; not finite in {bad[0]} first' if bad else '')
