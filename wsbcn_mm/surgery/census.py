"""Census: list every convolution and norm of a built model, and check them against a policy.

One row per layer says which norm follows which convolution, how many values each statistic is computed from, how fast
estimates move, and which weight decay applies. Every layer that no policy would change has a reason.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..layers import BatchChannelNorm
from ..layers.ws_conv import _WSConv
from ..ops.ws.weight_standardization import fan_in
from .kinds import conv_kind, norm_kind, num_channels, unknown_statistics
from .policies import UNKNOWN_STATISTICS, Policy, grouped, why_no_policy, why_no_ws
from .trace import Trace, norms_after


@dataclass(frozen=True)
class ConvRow:
    """One convolution.

    Attributes:
        name: Name in `model.named_modules()`.
        kind: 'WS' or 'plain'.
        type: Class name.
        variant: Variant of Weight Standardization, and its gain if it has one; None for other convolutions.
        channels: Input and output channels.
        kernel_size: Kernel size along every axis.
        groups: Groups of the convolution.
        fan_in: Number of weights of one filter.
        weight_decay: Weight decay of its weight; None if no optimizer is given or has it.
        norms: Norms that receive all of its output.
    """

    name: str
    kind: str
    type: str
    variant: str | None
    channels: tuple[int, int]
    kernel_size: tuple[int, ...]
    groups: int
    fan_in: int
    weight_decay: float | None
    norms: tuple[str, ...]


@dataclass(frozen=True)
class NormRow:
    """One norm. Numbers are None if the layer lacks the property, or nothing was traced.

    Attributes:
        name: Name in `model.named_modules()`.
        kind: Kind as named by `wsbcn_mm.surgery.kinds.norm_kind`.
        type: Class name.
        channels: Number of channels.
        groups: Number of groups of channels.
        rate: Weight of a new batch in its running statistics.
        updates: Number of updates of its running statistics.
        weight_decay: Largest weight decay of its parameters; None if no optimizer is given or has them.
        samples: Samples in each batch statistic; 1 for norms that treat samples separately.
        positions: Positions of each sample in each batch statistic.
        group_values: Values of one sample in each statistic of a group of channels.
        convs: Convolutions whose output it receives.
    """

    name: str
    kind: str
    type: str
    channels: int | None
    groups: int | None
    rate: float | None
    updates: int | None
    weight_decay: float | None
    samples: int | None
    positions: int | None
    group_values: int | None
    convs: tuple[str, ...]


@dataclass(frozen=True)
class Census:
    """The layers of a model, in the order of `model.named_modules()`.

    Attributes:
        convs: The convolutions.
        norms: The norms.
        left_out: Layers that no policy would change, and why.
        traced: Whether norms after convolutions, samples and positions come from a forward pass.
    """

    convs: tuple[ConvRow, ...]
    norms: tuple[NormRow, ...]
    left_out: dict[str, str]
    traced: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the census as plain data for JSON."""
        return asdict(self)


def census(
    model: nn.Module,
    seen: Trace | None = None,
    *,
    param_groups: Iterable[Mapping[str, Any]] = (),
    accumulation: int = 1,
    ranks: int = 1,
    stepwise: bool | None = None,
) -> Census:
    """Take the census of a model.

    Args:
        model: Any model.
        seen: Its trace, with the batch of one rank. Without it, the order of modules decides which norm follows which
            convolution, and samples and positions are unknown.
        param_groups: Parameter groups of an optimizer.
        accumulation: Forward passes per optimizer step.
        ranks: Number of processes that train together.
        stepwise: Whether BatchChannelNorm's estimates move once per optimizer step, by the totals of all forward passes
            and ranks. By default, whether a `StepStatistics` handles the model now.
    """
    decay = {id(p): group.get('weight_decay', 0.0) for group in param_groups for p in group['params']}
    followers = norms_after(model, seen)
    sources: dict[str, list[str]] = {}
    for conv, norms in followers.items():
        for norm in norms:
            sources.setdefault(norm, []).append(conv)

    convs: list[ConvRow] = []
    rows: list[NormRow] = []
    left_out = dict.fromkeys(unknown_statistics(model), UNKNOWN_STATISTICS)
    for name, layer in model.named_modules():
        if isinstance(layer, _ConvNd):
            convs.append(_conv_row(name, layer, followers.get(name, ()), decay))
            reason = why_no_ws(name, layer, seen, followers)
        elif norm_kind(layer) is not None:
            shapes = seen.input_shapes.get(name, ()) if seen else ()
            together = _batches_together(layer, accumulation, ranks, stepwise)
            rows.append(_norm_row(name, layer, shapes, together, tuple(sources.get(name, ())), decay))
            reason = why_no_policy(layer)
        else:
            continue
        if reason is not None:
            left_out[name] = reason
    return Census(tuple(convs), tuple(rows), left_out, seen is not None)


def _conv_row(name: str, conv: _ConvNd, norms: tuple[str, ...], decay: Mapping[int, float]) -> ConvRow:
    return ConvRow(
        name,
        str(conv_kind(conv)),
        type(conv).__name__,
        ' '.join(filter(None, [conv.variant, conv.gain])) if isinstance(conv, _WSConv) else None,
        (conv.in_channels, conv.out_channels),
        tuple(conv.kernel_size),
        conv.groups,
        fan_in(conv.weight, groups=conv.groups, transposed=conv.transposed),
        decay.get(id(conv.weight)),
        norms,
    )


def _norm_row(
    name: str,
    norm: nn.Module,
    shapes: tuple[tuple[int, ...], ...],
    together: int,
    convs: tuple[str, ...],
    decay: Mapping[int, float],
) -> NormRow:
    kind, channels, groups = str(norm_kind(norm)), num_channels(norm), getattr(norm, 'num_groups', None)
    tracks = getattr(norm, 'running_mean', None) is not None
    updates = getattr(norm, 'num_batches_tracked', None) if tracks else None
    samples = positions = group_values = None
    if shapes and kind != 'LN':
        # A norm that runs at several sizes is only as good as its smallest statistic.
        shape = min(shapes, key=lambda shape: prod((shape[0], *shape[2:])))
        samples, positions = 1 if kind in ('GN', 'IN') else shape[0] * together, prod(shape[2:])
        if groups is not None and channels is not None:
            group_values = channels // groups * positions
    return NormRow(
        name,
        kind,
        type(norm).__name__,
        channels,
        groups,
        getattr(norm, 'momentum', None) if tracks else None,
        None if updates is None or updates.is_meta else int(updates),
        max((decay[id(p)] for p in norm.parameters() if id(p) in decay), default=None),
        samples,
        positions,
        group_values,
        convs,
    )


def _batches_together(norm: nn.Module, accumulation: int, ranks: int, stepwise: bool | None) -> int:
    """Return the number of batches in one batch statistic, over the forward passes of a step and all ranks."""
    if norm_kind(norm) in ('SyncBN', 'BCN (sync)'):
        return ranks
    if norm_kind(norm) == 'BCN' and isinstance(norm, BatchChannelNorm):
        now = norm.pending_totals is not None
        return accumulation * ranks if (now if stepwise is None else stepwise) else 1
    return 1


def summary(found: Census) -> list[str]:
    """Return log lines: pairs, the values in the statistics of each kind of norm, and the layers left out."""
    paired = sum(bool(row.norms) for row in found.convs)
    variants = Counter(row.variant for row in found.convs if row.variant)
    ws = f', WS variant {", ".join(sorted(variants))}' if variants else ''
    seen = 'seen in the forward pass' if found.traced else 'by the order of modules'
    lines = [f'{paired} of {len(found.convs)} convolutions have a norm after them, {seen}{ws}']
    for kind in dict.fromkeys(row.kind for row in found.norms):
        rows = [row for row in found.norms if row.kind == kind]
        words: list[tuple[str, list[Any]]] = [
            ('samples', [row.samples for row in rows]),
            ('positions', [row.positions for row in rows]),
            ('values per group', [row.group_values for row in rows]),
            ('rate', [row.rate for row in rows]),
            ('weight decay', [row.weight_decay for row in rows]),
        ]
        shown = [f'{word} {text}' for word, values in words if (text := _range(values))]
        lines.append(f'statistics of {len(rows)} {kind}: {", ".join(shown) or "not traced"}')
    return lines + [f'left out: {line}' for line in grouped(found.left_out)]


def _range(values: Iterable[float | None]) -> str:
    known = sorted({value for value in values if value is not None})
    return '' if not known else f'{known[0]:g}' if len(known) == 1 else f'{known[0]:g} to {known[-1]:g}'


def breaches(found: Census, policy: Policy) -> list[str]:
    """Describe where a model differs from a policy, one line for each kind of breach; empty if it conforms."""
    other: dict[str, list[str]] = {}
    for norm in found.norms:
        if norm.name not in found.left_out and norm.kind != policy.norm:
            other.setdefault(f'are {norm.kind} instead of {policy.norm}', []).append(norm.name)
    lines = [_breach('norms', reason, names) for reason, names in other.items()]
    if not any(norm.kind == policy.norm for norm in found.norms):
        lines.append(f'the model has no {policy.norm}')
    plain, standardised, unnormalised = [], [], []
    for conv in found.convs:
        if conv.kind == 'WS' and not policy.wants_ws(conv.name):
            standardised.append(conv.name)
        elif conv.kind == 'WS' and not conv.norms and found.traced:
            unnormalised.append(conv.name)
        elif conv.kind == 'plain' and policy.wants_ws(conv.name) and conv.name not in found.left_out:
            plain.append(conv.name)
    for reason, names in (
        ('have a norm after them but no Weight Standardization', plain),
        ('have Weight Standardization, which the policy does not allow there', standardised),
        ('have Weight Standardization but no norm after them', unnormalised),
    ):
        if names:
            lines.append(_breach('convolutions', reason, names))
    return lines


def _breach(what: str, reason: str, names: list[str]) -> str:
    return f'{len(names)} {what} {reason} (the first: {names[0]})'
