"""Turn the state of a run into tensors and plain data, which `torch.load(weights_only=True)` reads."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

SCALARS: tuple[type, ...] = (bool, int, float, complex, str, bytes)


LEFT_OUT = object()


def to_plain(value: Any, name: str, left_out: list[str]) -> Any:
    """The same value in tensors, numbers, texts, dicts, lists, tuples and sets.

    numpy's scalars become numbers, its arrays tensors (lists, where torch has no such dtype), subclasses of plain types
    those types, paths texts. Of anything else dicts lose the entry, and lists have None in its place.

    Args:
        name: What the value is called.
        left_out: Receives 'name (type)' of everything that is not in the result.
    """
    plain = _to_plain(value, name, left_out)
    return None if plain is LEFT_OUT else plain


def _to_plain(value: Any, name: str, left_out: list[str]) -> Any:
    if value is None or isinstance(value, (Tensor, torch.dtype, torch.device)):
        return value
    if isinstance(value, np.generic):
        return _to_plain(value.item(), name, left_out)
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(value.copy())
        except TypeError:
            return _to_plain(value.tolist(), name, left_out)
    for kind in SCALARS:
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        entries = {key: _to_plain(entry, f'{name}.{key}', left_out) for key, entry in value.items()}
        kept = {to_plain(key, f'a key of {name}', left_out): e for key, e in entries.items() if e is not LEFT_OUT}
        return _ordered_like(value, kept) if isinstance(value, OrderedDict) else kept
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(to_plain(entry, f'{name}.{number}', left_out) for number, entry in enumerate(value))
    left_out.append(f'{name} ({type(value).__module__}.{type(value).__qualname__})')
    return LEFT_OUT


def _ordered_like(original: OrderedDict, entries: dict) -> OrderedDict:
    """With the attributes of the original: state dicts of torch have their modules' versions there."""
    ordered = OrderedDict(entries)
    ordered.__dict__.update(vars(original))
    return ordered


def history_to_plain(history: HistoryBuffer) -> dict[str, Any]:
    """What a smoothed log value is made of."""
    values, counts = history.data
    return {'values': values, 'counts': counts, 'max_length': history.max_length}


def history_from_plain(plain: dict[str, Any]) -> HistoryBuffer:
    """The inverse of `history_to_plain`."""
    values, counts = (np.asarray(torch.as_tensor(plain[name]).cpu()) for name in ('values', 'counts'))
    return HistoryBuffer(values, counts, plain['max_length'])
