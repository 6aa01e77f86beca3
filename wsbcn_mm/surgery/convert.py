"""Change the norms and convolutions of a built model in place."""

from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..layers import BatchChannelNorm
from ..layers.batch_channel_norm import resolve_groups
from ..layers.ws_conv import _WSConv
from .kinds import BATCH_NORMS, conv_kind, norm_kind, unknown_statistics
from .policies import UNKNOWN_STATISTICS, get_policy, grouped, why_no_policy, why_no_ws
from .replacement import (
    channels_of,
    divide_statistics,
    filter_scale,
    new_norm,
    plain_conv,
    replace_modules,
    reset_statistics,
    standardized_conv,
    statistics_at_start,
    why_irreplaceable,
)
from .trace import Example, Trace, norms_after, norms_after_by_order, trace

DEFAULT_GROUPS = 32


@dataclass(frozen=True)
class Change:
    """One replaced layer: the old kind, the new kind, and a note on what was not carried over unchanged."""

    old: str
    new: str
    note: str = ''


@dataclass(frozen=True)
class Conversion:
    """Report of `convert`, by the names of the layers.

    Attributes:
        policy: Name of the policy.
        traced: Whether the norms after convolutions were seen in a forward pass, or guessed from the order of modules.
        changed: Replaced layers.
        kept: Layers that already were as the policy wants them.
        left_out: Layers that the policy applies to, or seems to, and why they were not replaced.
    """

    policy: str
    traced: bool
    changed: dict[str, Change]
    kept: tuple[str, ...]
    left_out: dict[str, str]

    def counts(self) -> Counter[tuple[str, str]]:
        """Count the replaced layers by old and new kind."""
        return Counter((change.old, change.new) for change in self.changed.values())

    def __str__(self) -> str:
        rule = 'a traced forward' if self.traced else 'the order of modules'
        lines = [f'converted to {self.policy}; norms after convolutions: from {rule}']
        lines += [f'  {count} {old} -> {new}' for (old, new), count in sorted(self.counts().items())]
        lines += [f'  {len(self.kept)} kept: they conform to the policy']
        notes = Counter(change.note for change in self.changed.values() if change.note)
        lines += [f'  {count} replaced, {note}' for note, count in notes.items()]
        lines += [f'  left out: {line}' for line in grouped(self.left_out)]
        return '\n'.join(lines)


@torch.no_grad()
def convert(
    model: nn.Module,
    policy: str,
    *,
    example: Example | None = None,
    filter: Callable[[str, nn.Module], bool] = lambda name, module: True,
    num_groups: int | None = None,
    channels_per_group: int | None = None,
    fit_groups: bool = False,
    rate: float = 0.1,
    warmup: bool = True,
    variant: str = 'jhu',
    gain: str | None = None,
) -> Conversion:
    """Give a model the norms and convolutions of a policy, in place. If an error is raised, nothing is changed.

    Weight Standardization is applied only to convolutions that a norm follows: not to classifiers, and not to filters
    of a single weight. Every layer keeps its name, its mode, its hooks and its place, or places if it is shared.
    Parameters that are carried over remain the same objects. Convert before the optimizer is built and before the model
    is wrapped, because new parameters are created.

    These are carried over: BatchNorm's affine and statistics to BatchChannelNorm, as its batch half; the affine between
    BatchNorm and GroupNorm; a standardised filter, baked, to a plain convolution. A plain filter that is standardised
    loses its scale and its mean. The statistics of the norm after it absorb the scale. Nothing absorbs the mean, so a
    trained model must continue training, or its statistics must be calibrated.

    Args:
        model: Any model.
        policy: One of `wsbcn_mm.surgery.policies.POLICIES`.
        example: An input, or a function that runs all parts of the model, to see which norm follows which convolution.
            Without it, the order of modules decides (`norms_after_by_order`).
        filter: Called with name and module; a layer is not replaced if it returns False.
        num_groups: Groups of GroupNorm and BatchChannelNorm; by default those of the replaced layer, or 32.
        channels_per_group: Alternative to `num_groups`.
        fit_groups: If `num_groups` does not divide the channels, use the largest divisor below it.
        rate: Rate of BatchChannelNorm.
        warmup: Warm-up of BatchChannelNorm, if it starts without statistics.
        variant: Variant of Weight Standardization.
        gain: Gain of Weight Standardization.

    Raises:
        ValueError: For an unknown policy, variant or gain, groups that do not divide the channels, a model that is a
            single layer, wrapped or compiled, or a BatchNorm whose rank is unknown.
    """
    wanted = get_policy(policy)
    check_convertible(model)
    if num_groups is not None and channels_per_group is not None:
        raise ValueError(f'num_groups={num_groups} and channels_per_group={channels_per_group}: give one of them')
    seen = None if example is None else trace(model, example)
    followers = norms_after(model, seen)
    new: dict[str, tuple[nn.Module, str]] = {}
    kept: list[str] = []
    left_out = dict.fromkeys(unknown_statistics(model), UNKNOWN_STATISTICS)
    unfit: list[str] = []
    regroup = num_groups is not None or channels_per_group is not None
    for name, layer in model.named_modules():
        kind = conv_kind(layer) or norm_kind(layer)
        if kind is None:
            continue
        if isinstance(layer, _ConvNd):
            target = 'WS' if wanted.wants_ws(name) else 'plain'
            reason = why_no_ws(name, layer, seen, followers) if target == 'WS' else None
        else:
            target = wanted.norm
            reason = why_no_policy(layer)
        has_groups = target == 'GN' or target.startswith('BCN')
        stays = kind == target and not (has_groups and regroup)
        if reason is None and not stays:
            reason = why_irreplaceable(layer) or (None if filter(name, layer) else 'excluded by the filter')
        groups = DEFAULT_GROUPS
        if reason is None and not stays and has_groups:
            try:
                groups = groups_of(layer, num_groups, channels_per_group, fit_groups)
            except ValueError as error:
                unfit.append(f'`{name}`: {error}')
                continue
            stays = kind == target and groups == layer.num_groups
        if reason is not None:
            left_out[name] = reason
        elif stays:
            kept.append(name)
        elif target == 'WS':
            new[name] = standardized_conv(layer, variant, gain), ''
        elif target == 'plain':
            new[name] = plain_conv(layer), ''
        else:
            rank = rank_of(name, layer, model, seen, followers) if target == 'BN' else None
            new[name] = new_norm(layer, target, rank=rank, groups=groups, rate=rate, warmup=warmup)
    if unfit:
        more = f'; and {len(unfit) - 3} more' if len(unfit) > 3 else ''
        raise ValueError(
            f'the groups do not divide the channels of {len(unfit)} norms: {"; ".join(unfit[:3])}{more}. Give '
            'num_groups or channels_per_group that fit, or fit_groups=True for the largest divisor below'
        )

    one_to_one = seen.pairs if seen else norms_after_by_order(model)
    changed = put_in_place(model, new, followers, one_to_one)
    return Conversion(policy, seen is not None, changed, tuple(kept), left_out)


def put_in_place(
    model: nn.Module,
    new: Mapping[str, tuple[nn.Module, str]],
    followers: Mapping[str, tuple[str, ...]],
    one_to_one: Container[str],
) -> dict[str, Change]:
    """Replace layers, and hand the scale of filters to the running statistics after them.

    Args:
        model: The model.
        new: By layer name, the new layer and a note on what is lost.
        followers: The norms after each convolution.
        one_to_one: Convolutions whose norm follows no other convolution.
    """
    old = dict(model.named_modules())
    replace_modules(model, {old[name]: layer for name, (layer, _) in new.items()})
    now = dict(model.named_modules())
    changed: dict[str, Change] = {}
    for name, (layer, note) in new.items():
        if isinstance(layer, _WSConv):
            norms = {norm: now[norm] for norm in followers[name]}
            note = hand_scale_to_norms(layer, norms, paired=name in one_to_one)
        elif isinstance(layer, _ConvNd):
            layer.weight.copy_(old[name].standardized_weight())
            note = 'filters baked: outputs stay the same'
        changed[name] = Change(describe(old[name]), describe(layer), note)
    return changed


def check_convertible(model: nn.Module) -> None:
    """Raise ValueError for a model whose layers cannot be replaced."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.jit.ScriptModule)
    if isinstance(model, wrappers) or hasattr(model, '_orig_mod'):
        raise ValueError(f'the model is a {type(model).__name__}: convert the inner model, before it is wrapped')
    if conv_kind(model) or norm_kind(model):
        raise ValueError(f'the model is a single {type(model).__name__}: put it into a module to have it replaced')
    if any(isinstance(m, BatchChannelNorm) and m.pending_totals is not None for m in model.modules()):
        raise ValueError('the model already has StepStatistics: convert it before StepStatistics is created')


def groups_of(norm: nn.Module, num_groups: int | None, channels_per_group: int | None, fit: bool) -> int:
    """Return the number of groups of the norm that replaces `norm`.

    Raises:
        ValueError: If it does not divide the channels.
    """
    channels = channels_of(norm)
    if channels_per_group is None:
        groups = num_groups or int(getattr(norm, 'num_groups', DEFAULT_GROUPS))
        if fit:
            groups = max(d for d in range(1, min(groups, channels) + 1) if channels % d == 0)
        return resolve_groups(channels, groups, None)
    return resolve_groups(channels, DEFAULT_GROUPS, channels_per_group)


def rank_of(
    name: str, norm: nn.Module, model: nn.Module, seen: Trace | None, followers: Mapping[str, tuple[str, ...]]
) -> int:
    """Return the number of axes of a norm's input: as traced, else by the convolutions before it, else by all.

    Raises:
        ValueError: If it cannot be determined.
    """
    if seen and name in seen.input_shapes:
        ranks = {len(shape) for shape in seen.input_shapes[name]}
    else:
        convs = {name: conv for name, conv in model.named_modules() if isinstance(conv, _ConvNd)}
        before = [conv for conv_name, conv in convs.items() if name in followers.get(conv_name, ())]
        ranks = {2 + len(conv.kernel_size) for conv in before or convs.values()}
    kinds = {BATCH_NORMS.get(rank) for rank in ranks}
    if len(kinds) != 1 or None in kinds:
        raise ValueError(
            f'the BatchNorm that replaces `{name}`, a {type(norm).__name__}, depends on the number of axes of its '
            f'input, which is {sorted(ranks) or "unknown"}: give an example input, or exclude the layer by filter'
        )
    return ranks.pop()


def hand_scale_to_norms(conv: _WSConv, norms: Mapping[str, nn.Module], *, paired: bool) -> str:
    """Convert the running statistics after a convolution to those of its standardised filters; return a note.

    If the filters have mean zero, the outputs do not change, up to eps. Shared statistics are reset.
    """
    trained = [norm for norm in norms.values() if not statistics_at_start(norm)]
    for norm in trained:
        if paired:
            divide_statistics(norm, filter_scale(conv), conv.bias)
        else:
            reset_statistics(norm)
    if not trained:
        return ''
    if paired:
        return 'filter scales moved into the running statistics, filter means lost: continue training, or calibrate'
    return 'running statistics after shared filters reset: continue training, or calibrate'


def describe(layer: nn.Module) -> str:
    """Return the kind of a layer and its number of groups: `WSConv2d`, `GN(32)`, `BCN(32)`."""
    kind = norm_kind(layer)
    if kind is None:
        return type(layer).__name__
    groups = getattr(layer, 'num_groups', None)
    return kind if groups is None else f'{kind}({groups})'
