"""Layer settings of a checkpoint, kept beside its weights, since files of GN and GN + WS have equal keys and shapes.

A fingerprint has the settings of each convolution and norm that a state dict does not contain:

    {'backbone.conv1': {'conv': 'WS', 'variant': 'jhu', 'eps': 1e-05},
     'backbone.bn1': {'norm': 'BCN', 'groups': 32, 'eps': 1e-05, 'rate': 0.1, 'statistics': 'estimated', ...}, ...}

It is plain data, safe to load without running code. `compare` needs only one such table for the file and one for the
model. Settings that a table lacks are not compared, and are reported as unknown.
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
"""Settings that change the function of the same weights. The others (rate, statistics) only affect training."""


def fingerprint(model: nn.Module) -> Fingerprint:
    """Return {name of a convolution or norm: its settings} of a built model."""
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
    """Return one setting. A WS convolution without the key `gain`, as in files older than gains, has no gain."""
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
    # SyncBN is the same layer, trained with synchronised statistics.
    kind = 'BN' if norm_kind(norm) == 'SyncBN' else norm_kind(norm)
    settings: dict[str, Value] = {'norm': kind}
    for key, attribute in (('groups', 'num_groups'), ('eps', 'eps'), ('rate', 'momentum')):
        if hasattr(norm, attribute):
            settings[key] = getattr(norm, attribute)
    return settings


def fingerprint_of_state(state: Mapping[str, Tensor]) -> Fingerprint:
    """Return what keys and shapes of a foreign state dict show: the kind of each norm, and where convolutions are.

    They show neither whether filters were trained with Weight Standardization nor how many groups GroupNorm has.
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
    """Result of comparing a checkpoint's fingerprint with a model's."""

    verdict: str
    """'match', 'mismatch', or 'unknown': nothing contradicts, but the file does not show whether it has WS."""
    theirs: str
    """Description of the checkpoint, such as 'gn-ws'; 'gn or gn-ws' if it does not show its WS."""
    ours: str
    """Description of the model."""
    differences: list[str]
    """One line for each setting that differs, with the number of layers and the first of them."""


def compare(theirs: Fingerprint, ours: Fingerprint) -> Comparison:
    """Compare a checkpoint's fingerprint with a model's, over the layers that both have.

    Raises:
        ValueError: If the model has layers, but none in common with the checkpoint.
    """
    theirs, ours = _by_canonical_name(theirs), _by_canonical_name(ours)
    common = [name for name in ours if name in theirs]
    if ours and not common:
        raise ValueError(
            f'the checkpoint and the model have no layer in common: the checkpoint has {_first(theirs)}, the model '
            f'{_first(ours)}'
        )
    theirs, ours = {name: theirs[name] for name in common}, {name: ours[name] for name in common}
    found: dict[tuple[str, Value, Value], list[str]] = {}
    for name in common:
        for key in DECIDING:
            a, b = _setting(theirs[name], key), _setting(ours[name], key)
            if a is not None and b is not None and not _same(a, b):
                found.setdefault((key, a, b), []).append(name)
                break  # further settings of another kind of layer add nothing
    lines = [
        f'{len(names)} x {key} {a} in the checkpoint, {b} in the model (the first: {names[0]})'
        for (key, a, b), names in found.items()
    ]
    silent = any(settings.get('conv', 'known') is None for settings in theirs.values())
    verdict = 'mismatch' if lines else 'unknown' if silent else 'match'
    return Comparison(verdict, describe(theirs), describe(ours), lines)


def describe(layers: Fingerprint) -> str:
    """Describe a fingerprint in one word: bn, gn, gn-ws, ...; 'gn or gn-ws' if convolutions are of unknown kind.

    The most frequent norm counts. A model has WS if any of its convolutions has.
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
