"""Find which norm follows which convolution in a forward pass, not from names or the order of modules."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from ..diagnostics.running_statistics import evaluating
from .kinds import conv_kind, norm_kind, num_channels

Example = Tensor | Callable[[], object]
"""An input of a model, or a function that runs it: `lambda: model(images, mode='tensor')`."""


@dataclass(frozen=True)
class Trace:
    """Data flow of a model's convolutions and norms in a forward pass, by their names in `model.named_modules()`.

    A module in several places has its first name.

    Attributes:
        input_shapes: Shapes of each layer's inputs, one per call. A layer that did not run is missing.
        receivers: Receivers of each convolution's output, per call: names of norms, and functions such as 'relu()' or
            'add()'. Empty for an output that left the model or had no visible receiver.
        sources: Source of each norm's input, one entry per call: the name of a convolution, or None for anything else.
    """

    input_shapes: dict[str, tuple[tuple[int, ...], ...]]
    receivers: dict[str, tuple[tuple[str, ...], ...]]
    sources: dict[str, tuple[str | None, ...]]

    @property
    def norms_after(self) -> dict[str, tuple[str, ...]]:
        """Convolutions whose output goes only to norms in every call, and those norms."""
        return {
            conv: tuple(dict.fromkeys(chain.from_iterable(calls)))
            for conv, calls in self.receivers.items()
            if all(taken and set(taken) <= self.sources.keys() for taken in calls)
        }

    @property
    def pairs(self) -> dict[str, str]:
        """Convolution -> norm, if all outputs of the convolution go to the norm, and it has no other input."""
        return {
            conv: norms[0]
            for conv, norms in self.norms_after.items()
            if len(norms) == 1 and set(self.sources[norms[0]]) == {conv}
        }


def why_no_norm(conv: str, seen: Trace | None) -> str:
    """Explain why no norm follows a convolution, from the trace or, without it, from the order of modules."""
    if seen is None:
        return 'the next module is not a norm with as many channels'
    if conv not in seen.input_shapes:
        return 'it did not run in the traced forward'
    receivers = list(dict.fromkeys(chain.from_iterable(seen.receivers.get(conv, ()))))
    return f'its output goes to {" and ".join(receivers)}' if receivers else 'its output leaves the model'


class Tracer(TorchFunctionMode):
    """Context manager that records a `Trace`; the model computes the same as without it.

    A norm follows a convolution if its input is the tensor object that the convolution returned, not changed by an
    in-place operation. All other receivers of the tensor, modules or functions, are recorded too. Operations inside a
    scripted or compiled module, and custom autograd functions outside of any norm, are not seen.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = {
            module: name
            for name, module in model.named_modules()
            if conv_kind(module) is not None or norm_kind(module) is not None
        }
        self._shapes: dict[str, list[tuple[int, ...]]] = {}
        self._receivers: dict[str, list[list[str]]] = {}
        self._sources: dict[str, list[str | None]] = {}
        self._outputs = WeakTensorKeyDictionary()  # output of a convolution -> its name, version, receivers
        self._inside_norm = 0
        self._handles: list[RemovableHandle] = []

    def trace(self) -> Trace:
        """Return the trace so far."""
        return Trace(
            {name: tuple(calls) for name, calls in self._shapes.items()},
            {name: tuple(map(tuple, calls)) for name, calls in self._receivers.items()},
            {name: tuple(calls) for name, calls in self._sources.items()},
        )

    def __enter__(self) -> 'Tracer':
        for module in self.layers:
            before, after = (
                (self._before_norm, self._after_norm) if norm_kind(module) else (self._before_conv, self._after_conv)
            )
            self._handles += [
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(after, always_call=True),
            ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._outputs.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        taken = [] if self._inside_norm else [x for x in tree_leaves((args, kwargs)) if self._is_output(x)]
        result = func(*args, **(kwargs or {}))
        # A function that returns no tensor, such as `x.shape`, is not a receiver.
        if taken and any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            for x in taken:
                _, version, receivers = self._outputs[x]
                if result is x and version == x._version:
                    continue  # returned unchanged: dropout in evaluation, `contiguous`
                receivers.append(getattr(func, '__name__', str(func)).strip('_') + '()')
        return result

    def _is_output(self, x: object) -> bool:
        return isinstance(x, Tensor) and x in self._outputs

    def _before_conv(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._note_shape(module, args, kwargs)

    def _after_conv(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if isinstance(out, Tensor):
            name, receivers = self.layers[module], list[str]()
            self._receivers.setdefault(name, []).append(receivers)
            self._outputs[out] = name, out._version, receivers

    def _before_norm(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inside_norm += 1
        name, x = self.layers[module], self._note_shape(module, args, kwargs)
        source = None
        if self._is_output(x):
            conv, version, receivers = self._outputs[x]
            receivers.append(name)
            source = conv if version == x._version else None
        self._sources.setdefault(name, []).append(source)

    def _after_norm(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        self._inside_norm -= 1

    def _note_shape(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        x = args[0] if args else next(iter(kwargs.values()))
        self._shapes.setdefault(self.layers[module], []).append(tuple(x.shape))
        return x


def trace(model: nn.Module, example: Example) -> Trace:
    """Run `model` once in evaluation mode, without gradients, and return which norm follows which convolution.

    The model does not change: no weights or statistics move, and every module returns to its mode.

    Args:
        model: Any model. On the meta device it costs neither time nor memory.
        example: An input, or a function without arguments that runs the parts of interest.

    Raises:
        ValueError: If no convolution and no norm ran.
    """
    with evaluating(model), torch.no_grad(), Tracer(model) as tracer:
        model(example) if isinstance(example, Tensor) else example()
    seen = tracer.trace()
    if tracer.layers and not seen.input_shapes:
        raise ValueError(f'none of the {len(tracer.layers)} convolutions and norms ran in the example forward')
    return seen


def trace_next_forward(model: nn.Module, done: Callable[[Trace], None]) -> None:
    """Trace the next forward pass of `model`, in any mode, and call `done` with the trace.

    `done` is not called if the forward raises.
    """
    tracer = Tracer(model)
    entered = False

    def before(*_: Any) -> None:
        nonlocal entered
        first.remove()
        tracer.__enter__()
        entered = True

    def after(module: nn.Module, args: Any, out: Any) -> None:
        nonlocal entered
        if entered:
            tracer.__exit__(None, None, None)
        # After an error torch iterates over the dict that `remove` would change, which would raise another error.
        if out is not None:
            last.remove()
            if entered:
                done(tracer.trace())
        entered = False

    first = model.register_forward_pre_hook(before)
    last = model.register_forward_hook(after, always_call=True)


def norms_after_by_order(model: nn.Module) -> dict[str, str]:
    """Return convolution -> norm, guessed without a forward from the order in which modules were registered.

    A norm follows if it has as many channels and is the next child of the same parent. This rule misses norms in
    another container, and is wrong for a forward that runs its modules in another order.
    """
    pairs: dict[str, str] = {}
    for prefix, parent in model.named_modules():
        children = [(f'{prefix}.{name}' if prefix else name, child) for name, child in parent.named_children()]
        for (name, conv), (next_name, norm) in pairwise(children):
            if conv_kind(conv) is not None and num_channels(norm) == conv.out_channels:
                pairs[name] = next_name
    return pairs


def norms_after(model: nn.Module, seen: Trace | None) -> dict[str, tuple[str, ...]]:
    """Return `seen.norms_after`, or without a trace `norms_after_by_order`."""
    return seen.norms_after if seen else {conv: (norm,) for conv, norm in norms_after_by_order(model).items()}
