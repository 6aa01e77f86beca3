"""Read checkpoints of unknown origin without running code in them."""

import json
import struct
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from ..environment import pip_install
from .damage import DamagedCheckpointError, damage_in

CONTAINERS = ('state_dict', 'model', 'model_state_dict', 'state_dict_ema')
"""Keys under which training code stores the weights of a checkpoint."""


def _history_statistic(owner: Any, name: str) -> Any:
    """Stand in for getattr, with only the methods that mmengine's log histories look up."""
    if owner is not HistoryBuffer or name not in ('current', 'max', 'mean', 'min'):
        raise UnpicklingError(f'Unsupported getattr of {name!r}')
    return getattr(owner, name)


_NUMPY_KINDS = ('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64', 'float32', 'float64')
HARMLESS: list[Any] = [
    HistoryBuffer,
    (_history_statistic, 'builtins.getattr'),
    *((np.empty(0).__reduce__()[0], f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
    *((np.float64(0).__reduce__()[0], f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in _NUMPY_KINDS),
]
"""Types in checkpoints of mmengine's CheckpointHook other than tensors and plain data: log histories and numbers."""


class CheckpointFile(NamedTuple):
    """Contents of a checkpoint file."""

    state: dict[str, Tensor]
    meta: dict[str, Any]
    ignored: list[str]
    """Other keys, such as the optimizer's state."""


def read_checkpoint(path: str | Path, *, trust: bool = False) -> CheckpointFile:
    """Read .safetensors, .npz, or a file of torch.save with any other suffix, such as .pth.

    Args:
        path: File to read.
        trust: Also read a pickle that needs more than tensors and plain data. It can run any code. A module in it is
            replaced by its state dict.

    Raises:
        DamagedCheckpointError: If the file is damaged.
        FileNotFoundError: If the file does not exist.
        ImportError: For .safetensors without that package.
        ValueError: If a pickle needs code and `trust` is False, or the file contains no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {str(path)!r} does not exist')
    if path.suffix == '.npz':
        loaded: Any = _read_arrays(path, trust)
    elif path.suffix == '.safetensors':
        loaded = _read_safetensors(path)
    else:
        loaded = read_pickle(path, trust=trust)
    if isinstance(loaded, nn.Module):
        loaded = loaded.state_dict()
    weights = loaded
    if isinstance(loaded, dict):
        loaded = {key: entry.state_dict() if isinstance(entry, nn.Module) else entry for key, entry in loaded.items()}
        weights = next((loaded[key] for key in CONTAINERS if isinstance(loaded.get(key), dict)), loaded)
    state = {key: t for key, t in weights.items() if isinstance(t, Tensor)} if isinstance(weights, dict) else {}
    if not state:
        raise ValueError(f'{path} has no tensors: a state dict is expected, or one under {", ".join(CONTAINERS)}')
    ignored = [key for key in weights if key not in state]
    if weights is not loaded:
        ignored += [key for key in loaded if loaded[key] is not weights and key != 'meta']
    meta = loaded.get('meta')
    return CheckpointFile(state, meta if isinstance(meta, dict) else {}, [str(key) for key in ignored])


def read_pickle(path: str | Path, *, trust: bool = False, map_location: Any = 'cpu') -> Any:
    """Read a file of torch.save without running code in it.

    It may contain tensors, plain data, and the types in `HARMLESS`.

    Args:
        path: File to read.
        trust: Run the code in the pickle, if it needs any.
        map_location: Device of the tensors, as in torch.load.

    Raises:
        DamagedCheckpointError: If the file is damaged.
        ValueError: If it needs code and `trust` is False.
    """
    damage = damage_in(path)
    if damage:
        raise DamagedCheckpointError(f'checkpoint {path} is damaged: {damage}')
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location=map_location, weights_only=True)
    except (EOFError, LookupError, RuntimeError, UnpicklingError, ValueError, struct.error) as error:
        needs_code = isinstance(error, UnpicklingError) or 'TorchScript' in str(error)
        if not needs_code:
            if is_zipfile(path):  # whose checksums match
                raise
            raise DamagedCheckpointError(f'checkpoint {path} is damaged: {str(error) or "it is truncated"}') from None
        if trust:
            return torch.load(path, map_location=map_location, weights_only=False)
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if 'GLOBAL' in line or 'nsupported' in line), lines[0])
        raise ValueError(
            f'{path} needs code to be read, because it contains more than tensors and plain data ({reason}). Such a '
            'file can run any code: if you trust it, extract the weights with tools/convert_checkpoint.py --trust'
        ) from None


def require_safetensors() -> None:
    """Raise ImportError with the command to install safetensors, if it is missing."""
    if find_spec('safetensors') is None:
        raise ImportError(
            '.safetensors files need the package safetensors, which this environment lacks: '
            + pip_install(['safetensors'])
        )


def _read_safetensors(path: Path) -> dict[str, Any]:
    require_safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, 'pt') as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not iterable
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise DamagedCheckpointError(f'checkpoint {path} is damaged: {error}') from None
    return {'state_dict': state, 'meta': {key: _from_json(value) for key, value in metadata.items()}}


def _read_arrays(path: Path, trust: bool) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=trust) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (BadZipFile, EOFError) as error:
        raise DamagedCheckpointError(f'checkpoint {path} is damaged: {error}') from None


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
