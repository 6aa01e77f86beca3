"""Convert a checkpoint's contents to tensors and plain data, which load without running code."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

SCALARS: tuple[type, ...] = (bool, int, float, complex, str, bytes)
"""Plain types that are kept as they are."""

LEFT_OUT = object()
"""Marks a value that cannot be converted."""


def to_plain(value: Any, name: str, left_out: list[str]) -> Any:
    """Convert a value to tensors, numbers, strings, dicts, lists, tuples and sets.

    numpy scalars become numbers. numpy arrays become tensors, or lists if torch lacks the dtype. Subclasses of plain
    types become those types, paths become strings. Values of other types are dropped from dicts and replaced by None in
    lists.

    Args:
        value: Value to convert.
        name: Name of the value, for `left_out`.
        left_out: Receives 'name (type)' for each value that is not in the result.
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
    """Copy the attributes of the original: torch's state dicts keep their modules' versions there."""
    ordered = OrderedDict(entries)
    ordered.__dict__.update(vars(original))
    return ordered


def history_to_plain(history: HistoryBuffer) -> dict[str, Any]:
    """Return the contents of a smoothed log value as plain data."""
    values, counts = history.data
    return {'values': values, 'counts': counts, 'max_length': history.max_length}


def history_from_plain(plain: dict[str, Any]) -> HistoryBuffer:
    """Restore a smoothed log value from `history_to_plain`."""
    values, counts = (np.asarray(torch.as_tensor(plain[name]).cpu()) for name in ('values', 'counts'))
    return HistoryBuffer(values, counts, plain['max_length'])
