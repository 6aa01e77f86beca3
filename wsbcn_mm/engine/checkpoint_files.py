"""Read checkpoints of unknown origin without running what is in them, and write those that say where they come from."""

import hashlib
import json
import struct
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from .atomic_files import write_atomically
from .checkpoint_damage import DamagedCheckpointError, damage_in
from .environment import pip_install

CONTAINERS = ('state_dict', 'model', 'model_state_dict', 'state_dict_ema')
"""Keys under which training code keeps the weights of a checkpoint."""


class CheckpointFile(NamedTuple):
    """What a checkpoint file has."""

    state: dict[str, Tensor]
    meta: dict[str, Any]
    ignored: list[str]
    """Keys beside the weights, such as the optimizer's state."""


def read_checkpoint(path: str | Path, *, trust: bool = False) -> CheckpointFile:
    """Read .pth (and every other name that torch wrote), .safetensors or .npz.

    Args:
        trust: Read a pickle that needs more than tensors and plain data; it can run any code. Of a module in it the
            state dict is taken.

    Raises:
        DamagedCheckpointError: If the file is not what was written.
        FileNotFoundError: If there is no such file.
        ImportError: For .safetensors without that package.
        ValueError: If a pickle needs code and is not trusted, or no tensors are found.
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
    """Read what torch.save wrote, without running anything in it: tensors, plain data, and mmengine's and numpy's own.

    Args:
        trust: Run the code that a pickle needs to be read, if it needs any.
        map_location: Device of the tensors, as torch.load takes it.

    Raises:
        DamagedCheckpointError: If the file is not what was written.
        ValueError: If it needs code and is not trusted.
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
            if is_zipfile(path):  # whose checksums fit
                raise
            raise DamagedCheckpointError(f'checkpoint {path} is damaged: {str(error) or "it ends too soon"}') from None
        if trust:
            return torch.load(path, map_location=map_location, weights_only=False)
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if 'GLOBAL' in line or 'nsupported' in line), lines[0])
        raise ValueError(
            f'{path} needs code to be read, not tensors and plain data alone ({reason}). A file like this can run '
            'anything: if you know where it comes from, tools/convert_checkpoint.py --trust makes weights alone of it'
        ) from None


def _history_statistic(owner: Any, name: str) -> Any:
    """What mmengine's log histories ask getattr for, and nothing else."""
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
"""What checkpoints of mmengine's own CheckpointHook have beside tensors and plain data: log histories and numbers."""


def require_safetensors() -> None:
    """Raise ImportError with what to do where the `convert` extra is missing."""
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
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no iterable
            said = file.metadata() or {}
    except SafetensorError as error:
        raise DamagedCheckpointError(f'checkpoint {path} is damaged: {error}') from None
    return {'state_dict': state, 'meta': {key: _from_json(value) for key, value in said.items()}}


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


def write_checkpoint(path: str | Path, state: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write weights with what is known of them: .safetensors (metadata as JSON), or mmengine's .pth otherwise.

    Raises:
        FileExistsError: If the file exists already.
    """
    refuse_existing(path)
    # By way of memory: a file that torch.save names itself has that name in it, and may be left half-written.
    if Path(path).suffix == '.safetensors':
        require_safetensors()
        from safetensors.torch import save

        # Copies: that format has no tensors that share memory, as tied weights do.
        own = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}
        data = save(own, {key: json.dumps(value) for key, value in meta.items()})
    else:
        buffer = BytesIO()
        torch.save({'meta': meta, 'state_dict': {key: tensor.contiguous() for key, tensor in state.items()}}, buffer)
        data = buffer.getvalue()
    write_atomically(path, data)


def refuse_existing(path: str | Path) -> None:
    """Raise FileExistsError for a file that would be overwritten."""
    if Path(path).exists():
        raise FileExistsError(f'{path} exists already, and is not overwritten')


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
