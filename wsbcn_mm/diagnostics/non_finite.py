"""Find the module where infinities and nan first appear."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..layers import BatchChannelNorm
from .running_statistics import norms_with_statistics


class Values(NamedTuple):
    """Summary of the values in one or more tensors.

    Attributes:
        dtype: Dtype of the first tensor.
        total: Number of values.
        bad: Number of infinite or nan values.
        low: Smallest finite value; 0 if there is none.
        high: Largest finite value; 0 if there is none.
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
    """Summarise the values of all floating-point tensors; None if there are none."""
    floating = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not floating:
        return None
    flat = torch.cat([t.flatten().to(floating[0].device, torch.float64) for t in floating])
    finite = flat[flat.isfinite()]
    low, high = (float(v) for v in finite.aminmax()) if finite.numel() else (0.0, 0.0)
    return Values(str(floating[0].dtype).removeprefix('torch.'), flat.numel(), flat.numel() - finite.numel(), low, high)


def tensors_in(value: Any) -> list[Tensor]:
    """Return every tensor in nested tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all values are finite; synchronises with the device once."""
    checks = [t.detach().isfinite().all() for t in tensors if t.is_floating_point() and t.numel()]
    return not checks or bool(torch.stack([check.to(checks[0].device) for check in checks]).all())


class BadModule(NamedTuple):
    """The first module with a non-finite output.

    Attributes:
        name: Its name in `model.named_modules()`.
        module: Its repr.
        inputs: Values of its inputs.
        outputs: Values of its outputs.
        state: Values of its parameters and buffers, by name.
    """

    name: str
    module: str
    inputs: Values | None
    outputs: Values
    state: dict[str, Values]

    def __str__(self) -> str:
        rows = dict(input=self.inputs or 'no numbers', output=self.outputs, **self.state)
        lines = [f'  {name:12} {values}' for name, values in rows.items()]
        if self.inputs is not None and self.inputs.bad:
            lines[0] += ': from an operation before it, outside any module'
        return '\n'.join([f'the first module with a non-finite output: {self.name}, {self.module}', *lines])


class NormState:
    """Copy of the state that forward passes of a model change: its buffers, and the pending totals of BCN."""

    def __init__(self, model: nn.Module) -> None:
        pending = (m.pending_totals for m in model.modules() if isinstance(m, BatchChannelNorm))
        self._tensors = [*model.buffers(), *(totals for totals in pending if totals is not None)]
        self._copies = [tensor.clone() for tensor in self._tensors]

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore the copied state."""
        for tensor, copy in zip(self._tensors, self._copies, strict=True):
            tensor.copy_(copy)


@contextmanager
def recording_first(model: nn.Module) -> Iterator[list[BadModule]]:
    """Record, in the yielded list, the first module without children that has a non-finite output."""
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
    """Repeat a forward pass in the model's current mode and return the first module with a non-finite output.

    Weights and running statistics do not change. Random layers, such as dropout, draw new numbers, so everything may be
    finite this time; then the result is None.
    """
    before = NormState(model)
    try:
        with torch.no_grad(), recording_first(model) as found:
            run()
    finally:
        before.put_back()
    return found[0] if found else None


def state_that_is_not_finite(model: nn.Module) -> list[str]:
    """Return the names of parameters and buffers that have infinite or nan values."""
    named = [*model.named_parameters(), *model.named_buffers()]
    if all_finite(tensor for _, tensor in named):
        return []
    return [name for name, tensor in named if not all_finite([tensor])]


def describe_norms(model: nn.Module) -> str:
    """Describe in one line the running statistics of all norms together, and the first norm that is not finite."""
    norms = norms_with_statistics(model)
    if not norms:
        return 'norms with running statistics: none'
    bad = [name for name, norm in norms.items() if not all_finite([norm.running_mean, norm.running_var])]
    mean, var = (measure(getattr(norm, key) for norm in norms.values()) for key in ('running_mean', 'running_var'))
    values = f'running_mean {mean}; running_var {var}'
    return f'running statistics of {len(norms)} norms: {values}' + (f'; first not finite: {bad[0]}' if bad else '')
