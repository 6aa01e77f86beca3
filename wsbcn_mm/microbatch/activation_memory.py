"""Train with fewer activations in memory: keep convolution outputs, recompute norms, ReLUs and sums in the backward.

Between two convolutions a network keeps two maps: the norm's input and the next convolution's input. The second follows
from the first in a few operations per value; a convolution needs as many as its fan-in. So a block keeps its input and
the outputs of its convolutions, and recomputes the rest when the backward pass reaches it. Only one block is recomputed
at a time. Losses, gradients and running statistics equal those of the plain step, bit for bit.

This is `torch.utils.checkpoint` over each block with two dispatch modes that save and reuse the convolution outputs.
torch's own selective policies fail if the recomputation runs an operation that the first pass did not run. That happens
with autocast's cached casts, and with norms that distinguish the two passes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from ..ops.ws.weight_standardization import fan_in
from ..surgery.kinds import conv_kind, norm_kind, unknown_statistics

MODES = ('all', 'save_conv', 'full_checkpoint')
CONVOLUTION = torch.ops.aten.convolution.default


def set_activation_memory(model: nn.Module, mode: str, modules: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Choose what the blocks of `model` keep for the backward pass.

    Each block gets a `forward` attribute of its own. Its class, names, hooks, state and copies do not change; without
    gradients (evaluation, EMA) it runs as before. A later call replaces an earlier one.

    Args:
        model: Any model; changed in place.
        mode: `all` keeps every activation, as torch does. `save_conv` keeps a block's input and the outputs of its
            convolutions, except for expansions (see `expands`), which are cheap to recompute. `full_checkpoint` keeps
            only a block's input; every convolution runs twice.
        modules: Names of the modules to treat as blocks; by default those of `find_blocks`.

    Returns:
        The blocks by name; empty for `all`.

    Raises:
        ValueError: For an unknown mode or module, a module inside another, a model without a block, a model with its
            own checkpointing (`with_cp`), or running statistics of an unknown norm, which would move twice.
    """
    if mode not in MODES:
        raise ValueError(f'activation_memory={mode!r}: one of {", ".join(MODES)} is expected')
    for module in model.modules():
        if _is_set(module):
            del module.forward
    if mode == 'all':
        return {}
    own = [name for name, module in model.named_modules() if getattr(module, 'with_cp', False)]
    if own:
        raise ValueError(
            f'activation_memory={mode!r}: {len(own)} modules (the first: {own[0]}) have with_cp=True, their own '
            "checkpointing; set with_cp=False, and activation_memory='full_checkpoint' for the same effect"
        )
    blocks = find_blocks(model) if modules is None else _named(model, modules)
    if not blocks:
        raise ValueError(
            f'activation_memory={mode!r} finds no block in {type(model).__name__}: no element of an nn.Sequential or '
            'nn.ModuleList has two convolutions and two norms; pass the names of the blocks as modules'
        )
    for name, block in blocks.items():
        unknown = unknown_statistics(block)
        if unknown:
            raise ValueError(
                f'activation_memory={mode!r}: {name}.{unknown[0]} keeps running statistics but is not a known norm; '
                'recomputation would move them twice'
            )
    for block in blocks.values():
        block.forward = partial(_checkpointed_forward, block, mode)
    return blocks


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that are recomputed one at a time, by name.

    A block is an element of a sequence (`nn.Sequential`, `nn.ModuleList`) that has at least two convolutions and two
    norms and is not a sequence itself, such as a residual block in a ResNet's stage. A sequence of smaller elements is
    one block if it has at least two of each, such as a deep stem or the branches of an ASPP.
    """
    return dict(_blocks_below('', model, is_element=False))


def _blocks_below(name: str, module: nn.Module, is_element: bool) -> Iterator[tuple[str, nn.Module]]:
    if _conv_norm_pairs(module) < 2:
        return
    below = [(child_name, child) for child_name, child in module.named_children() if _conv_norm_pairs(child) > 1]
    sequence = isinstance(module, nn.Sequential | nn.ModuleList)
    runs = type(module).forward is not nn.Module.forward  # a bare ModuleList is never called
    if (is_element and not sequence) or (sequence and runs and not below):
        yield name, module
        return
    for child_name, child in below:
        yield from _blocks_below(f'{name}.{child_name}' if name else child_name, child, is_element=sequence)


def _conv_norm_pairs(module: nn.Module) -> int:
    below = list(module.modules())
    return min(sum(conv_kind(m) is not None for m in below), sum(norm_kind(m) is not None for m in below))


def describe_blocks(model: nn.Module, blocks: dict[str, nn.Module]) -> str:
    """Describe in one line the blocks by class, and the convolutions and norms outside, which keep all activations."""
    classes = Counter(type(block).__name__ for block in blocks.values())
    inside = {module for block in blocks.values() for module in block.modules()}
    outside = [
        name
        for name, module in model.named_modules()
        if module not in inside and (conv_kind(module) is not None or norm_kind(module) is not None)
    ]
    return (
        f'{len(blocks)} blocks ({", ".join(f"{n} {name}" for name, n in sorted(classes.items()))}); '
        f'left out: {", ".join(outside) or "no convolution and no norm"}'
    )


def expands(weight: Tensor, *, groups: int = 1, transposed: bool = False) -> bool:
    """Return whether a convolution has more output channels than values in a filter.

    Such convolutions need less work per output value than others: the last convolution and the shortcut of a
    bottleneck, the first convolution of a stem, a depthwise one. The output of a bottleneck's last convolution is as
    large as the block's input, which is kept.

    Args:
        weight, groups, transposed: As in `wsbcn_mm.ops.ws.weight_standardization.fan_in`.
    """
    out_channels = weight.shape[1] * groups if transposed else weight.shape[0]
    return fan_in(weight, groups=groups, transposed=transposed) < out_channels


def _is_set(module: nn.Module) -> bool:
    forward = vars(module).get('forward')
    return isinstance(forward, partial) and forward.func is _checkpointed_forward


def _named(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    known = dict(model.named_modules())
    for name in names:
        if not name or name not in known:
            raise ValueError(f'activation_memory: {type(model).__name__} has no module {name!r}')
        for other in names:
            if name.startswith(f'{other}.'):
                raise ValueError(f'activation_memory: {name!r} is inside {other!r}; name one of them')
    return {name: known[name] for name in names}


# Compiled code would run neither the dispatch modes nor the swap of buffers in the right pass.
@torch.compiler.disable(reason='activation_memory runs blocks eagerly')  # type: ignore[untyped-decorator]
def _checkpointed_forward(block: nn.Module, mode: str, *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return recomputed(block, forward, *args, mode=mode, **kwargs)


def recomputed(
    block: nn.Module, function: Callable[..., Any], *args: Any, mode: str = 'full_checkpoint', **kwargs: Any
) -> Any:
    """Return `function(*args, **kwargs)`, keep what `mode` keeps, and recompute the rest in the backward pass.

    Args:
        block: Module that contains every norm that `function` runs; their running statistics move once.
        function: Returns one or more tensors.
        mode: `save_conv` or `full_checkpoint`, as in `set_activation_memory`.
    """
    return checkpoint(function, *args, use_reentrant=False, context_fn=partial(_contexts, block, mode), **kwargs)


def _contexts(block: nn.Module, mode: str) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    if mode == 'full_checkpoint':
        return nullcontext(), _Recomputation(block, nullcontext)
    saved: list[tuple[Tensor, int] | None] = []
    return _SaveConvs(saved), _Recomputation(block, partial(_ReuseConvs, saved))


class _SaveConvs(TorchDispatchMode):
    """Append the output of each convolution with its version, or None if it is to be recomputed."""

    def __init__(self, saved: list[tuple[Tensor, int] | None]) -> None:
        super().__init__()
        self.saved = saved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is CONVOLUTION:
            cheap = expands(args[1], groups=args[8], transposed=args[6])
            self.saved.append(None if cheap else (_alias(out), out._version))
        return out


def _alias(out: Tensor) -> Tensor:
    """Return `out` detached, which avoids a reference cycle with its graph, but sharing its version counter."""
    # Below autograd, a view shares its base's version counter only if this key is not excluded.
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return out.detach()


class _ReuseConvs(TorchDispatchMode):
    """Return the saved outputs in the order of the first pass."""

    def __init__(self, saved: list[tuple[Tensor, int] | None]) -> None:
        super().__init__()
        self.rest = iter(saved)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        entry = next(self.rest, None) if func is CONVOLUTION else None
        # An in-place operation after the convolution, such as a ReLU without a norm, changed the saved output.
        if entry is None or entry[0]._version != entry[1]:
            return func(*args, **(kwargs or {}))
        return entry[0].detach()


class _Recomputation:
    """Context of a recomputation. It can be entered again, when a retained graph runs backward a second time."""

    def __init__(self, block: nn.Module, reuse: Callable[[], AbstractContextManager[Any]]) -> None:
        self.block = block
        self.reuse = reuse

    def __enter__(self) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(_with_spare_buffers(self.block))
        self.stack.enter_context(self.reuse())

    def __exit__(self, *exception: Any) -> None:
        self.stack.__exit__(*exception)


@contextmanager
def _with_spare_buffers(block: nn.Module) -> Iterator[None]:
    """Give norms that normalise with live statistics temporary buffers to update, which are discarded.

    BatchChannelNorm normalises with its buffers, and detects a recomputation itself.
    """
    norms = [m for m in block.modules() if m.training and norm_kind(m) in ('BN', 'SyncBN', 'IN')]
    buffers = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: None if b is None else b.clone() for name, b in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, own in zip(norms, buffers, strict=True):
            norm._buffers.update(own)
