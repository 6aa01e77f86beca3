"""What a checkpoint was trained with, kept beside its weights: GN and GN + WS files have the same keys and shapes.

A fingerprint says of each convolution and norm what a state dict does not:

    {'backbone.conv1': {'conv': 'WS', 'variant': 'jhu', 'eps': 1e-05},
     'backbone.bn1': {'norm': 'BCN', 'groups': 32, 'eps': 1e-05, 'rate': 0.1, 'statistics': 'estimated', ...}, ...}

It is plain data, safe to load without running code. `compare` needs no more than one such table for the file and one
for the model; what a table does not say is not compared, and said to be unknown.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from ..layers import BatchChannelNorm
from ..layers.ws_conv import _WSConv
from ..ops.ws.weight_standardization import get_variant
from .kinds import conv_kind, norm_kind
from .layer_names import canonical_names, join_norm_halves

Value = str | int | float | None
Fingerprint = dict[str, dict[str, Value]]

DECIDING = ('conv', 'variant', 'gain', 'norm', 'groups', 'affine', 'eps')
"""What changes the function that the same weights compute. The rest (rate, statistics) changes training alone."""


def fingerprint(model: nn.Module) -> Fingerprint:
    """{name of a convolution or norm: its settings} of a built model."""
    layers: Fingerprint = {}
    for name, module in model.named_modules():
        if conv_kind(module):
            layers[name] = _conv_settings(module)
        elif norm_kind(module):
            layers[name] = _norm_settings(module)
    return layers


def _conv_settings(conv: nn.Module) -> dict[str, Value]:
    if not isinstance(conv, _WSConv):
        return {'conv': 'plain'}
    gain: dict[str, Value] = {} if conv.gain is None else {'gain': conv.gain}
    return {'conv': 'WS', 'variant': conv.variant, **gain, 'eps': get_variant(conv.variant, conv.ws_eps).eps}


def _setting(layer: Mapping[str, Value], key: str) -> Value:
    """One setting; a WS convolution whose gain is not said, as in files from before there were gains, has none."""
    return layer.get(key, 'none' if key == 'gain' and layer.get('conv') == 'WS' else None)


def _norm_settings(norm: nn.Module) -> dict[str, Value]:
    if isinstance(norm, BatchChannelNorm):
        return {
            'norm': 'BCN',
            'groups': norm.num_groups,
            'affine': norm.channel_affine,
            'eps': norm.eps,
            'rate': norm.rate,
            'statistics': norm.statistics,
        }
    # Synchronised statistics are another way to train the same layer.
    kind = 'BN' if norm_kind(norm) == 'SyncBN' else norm_kind(norm)
    settings: dict[str, Value] = {'norm': kind}
    for key, attribute in (('groups', 'num_groups'), ('eps', 'eps'), ('rate', 'momentum')):
        if hasattr(norm, attribute):
            settings[key] = getattr(norm, attribute)
    return settings


def fingerprint_of_state(state: Mapping[str, Tensor]) -> Fingerprint:
    """What the keys and shapes of a foreign state dict tell: the kind of each norm, and where convolutions are.

    Whether filters were trained with Weight Standardization they do not tell, nor how many groups GroupNorm has.
    """
    state = join_norm_halves(state)
    layers: Fingerprint = {}
    for key, tensor in state.items():
        layer, _, entry = key.rpartition('.')
        if entry != 'weight':
            continue
        if tensor.ndim >= 3:
            layers[layer] = {'conv': None}
        elif f'{layer}.group_weight' in state:
            size = state[f'{layer}.group_weight'].numel()
            per_channel = size == tensor.numel()
            layers[layer] = {'norm': 'BCN', **({'affine': 'channel'} if per_channel else {'groups': size})}
        elif tensor.ndim == 1:
            layers[layer] = {'norm': 'BN' if f'{layer}.running_mean' in state else 'GN'}
    return layers


class Comparison(NamedTuple):
    """How a checkpoint's fingerprint and a model's agree."""

    verdict: str
    """'match', 'mismatch', or 'unknown': nothing contradicts, but the file does not say whether it has WS."""
    theirs: str
    """The checkpoint in words, such as 'gn-ws'; 'gn or gn-ws' where it does not say."""
    ours: str
    """The model in words."""
    differences: list[str]
    """One line for each setting in which layers differ, with their number and the first of them."""


def compare(theirs: Fingerprint, ours: Fingerprint) -> Comparison:
    """Compare a checkpoint's fingerprint with a model's, over the layers that both have.

    Raises:
        ValueError: If they have no layer in common, and the model has some.
    """
    theirs, ours = _by_canonical_name(theirs), _by_canonical_name(ours)
    common = [name for name in ours if name in theirs]
    if ours and not common:
        raise ValueError(
            f'the checkpoint and the model have no layer in common: it has {_first(theirs)}, the model {_first(ours)}'
        )
    theirs, ours = {name: theirs[name] for name in common}, {name: ours[name] for name in common}
    found: dict[tuple[str, Value, Value], list[str]] = {}
    for name in common:
        for key in DECIDING:
            a, b = _setting(theirs[name], key), _setting(ours[name], key)
            if a is not None and b is not None and not _same(a, b):
                found.setdefault((key, a, b), []).append(name)
                break  # the settings of another kind of layer say nothing more
    lines = [
        f'{len(names)} x {key} {a} in the checkpoint, {b} in the model (the first: {names[0]})'
        for (key, a, b), names in found.items()
    ]
    silent = any(settings.get('conv', 'said') is None for settings in theirs.values())
    verdict = 'mismatch' if lines else 'unknown' if silent else 'match'
    return Comparison(verdict, describe(theirs), describe(ours), lines)


def describe(layers: Fingerprint) -> str:
    """A fingerprint in a word: bn, gn, gn-ws, ...; 'gn or gn-ws' where convolutions are of unknown kind.

    The norm is the most frequent one; a model has WS if any of its convolutions has.
    """
    norms = Counter(str(settings['norm']) for settings in layers.values() if 'norm' in settings)
    norm = norms.most_common(1)[0][0].split()[0].lower() if norms else 'no norm'
    convs = {settings['conv'] for settings in layers.values() if 'conv' in settings}
    if 'WS' in convs:
        return f'{norm}-ws'
    return f'{norm} or {norm}-ws' if None in convs else norm


def _by_canonical_name(layers: Fingerprint) -> Fingerprint:
    names = canonical_names(f'{name}.weight' for name in layers)
    return {names[f'{name}.weight'].removesuffix('.weight'): settings for name, settings in layers.items()}


def _same(a: Value, b: Value) -> bool:
    return math.isclose(a, b) if isinstance(a, float) and isinstance(b, float) else a == b


def _first(names: Iterable[str], count: int = 3) -> str:
    listed = list(names)
    return ', '.join(listed[:count]) + (', ...' if len(listed) > count else '') or 'none'
