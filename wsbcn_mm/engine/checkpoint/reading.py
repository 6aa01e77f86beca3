"""Read checkpoint files without running code in them, detect damaged ones, and write weights with their meta data.

Importing this file makes mmengine's CheckpointLoader read local files and URLs in the same way.
"""

import hashlib
import json
import re
import struct
import zlib
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple
from urllib.parse import urlparse
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ..environment import pip_install
from ..files import write_atomically

CONTAINERS = ('state_dict', 'model', 'model_state_dict', 'state_dict_ema')
"""Keys under which training code keeps the weights of a checkpoint."""


_NUMPY_KINDS = ('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64', 'float32', 'float64')


def _history_statistic(owner: Any, name: str) -> Any:
    """Stand in for getattr in mmengine's log histories, and allow nothing else."""
    if owner is not HistoryBuffer or name not in ('current', 'max', 'mean', 'min'):
        raise UnpicklingError(f'Unsupported getattr of {name!r}')
    return getattr(owner, name)


HARMLESS: list[Any] = [
    HistoryBuffer,
    (_history_statistic, 'builtins.getattr'),
    *((np.empty(0).__reduce__()[0], f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
    *((np.float64(0).__reduce__()[0], f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in _NUMPY_KINDS),
]
"""Types in checkpoints of mmengine's own CheckpointHook beside tensors and plain data: log histories and numbers."""


class DamagedCheckpointError(ValueError):
    """A checkpoint file differs from what was written."""


class CheckpointFile(NamedTuple):
    """Contents of a checkpoint file."""

    state: dict[str, Tensor]
    meta: dict[str, Any]
    ignored: list[str]
    """Keys beside the weights, such as the optimizer's state."""


def read_checkpoint(path: str | Path, *, trust: bool = False) -> CheckpointFile:
    """Read .safetensors, .npz, or any other file as one that torch.save wrote.

    Args:
        path: The file.
        trust: Also read pickles that need code, which can run anything. A pickled module gives its state dict.

    Raises:
        DamagedCheckpointError: If the file differs from what was written.
        FileNotFoundError: If the file does not exist.
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
    """Read a file of torch.save without running code: tensors, plain data, and the types of mmengine and numpy.

    Args:
        path: The file.
        trust: Run the code that a pickle needs to be read.
        map_location: Device of the tensors, as for torch.load.

    Raises:
        DamagedCheckpointError: If the file differs from what was written.
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
            if is_zipfile(path):  # whose checksums fit
                raise
            raise DamagedCheckpointError(f'checkpoint {path} is damaged: {str(error) or "it ends too soon"}') from None
        if trust:
            return torch.load(path, map_location=map_location, weights_only=False)
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if 'GLOBAL' in line or 'nsupported' in line), lines[0])
        raise ValueError(
            f'{path} contains more than tensors and plain data, and reading it would run code ({reason}). If you trust '
            'its origin, tools/convert_checkpoint.py --trust converts it to weights'
        ) from None


def write_checkpoint(path: str | Path, state: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write weights and meta data: .safetensors (meta data as JSON), else mmengine's .pth.

    Raises:
        FileExistsError: If the file already exists.
    """
    refuse_existing(path)
    # In memory first: torch.save would put the name of a file into it, and could leave it half-written.
    if Path(path).suffix == '.safetensors':
        require_safetensors()
        from safetensors.torch import save

        # Copies: the format does not allow tensors that share memory, such as tied weights.
        own = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}
        data = save(own, {key: json.dumps(value) for key, value in meta.items()})
    else:
        buffer = BytesIO()
        torch.save({'meta': meta, 'state_dict': {key: tensor.contiguous() for key, tensor in state.items()}}, buffer)
        data = buffer.getvalue()
    write_atomically(path, data)


def refuse_existing(path: str | Path) -> None:
    """Raise FileExistsError if a file exists and would be overwritten."""
    if Path(path).exists():
        raise FileExistsError(f'{path} already exists and is not overwritten')


def sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_file(filename: str, map_location: Any = None) -> Any:
    """Read a local checkpoint: a file of torch.save, or the .safetensors of tools/publish.py.

    Args:
        filename: The file.
        map_location: Device of the tensors, as for torch.load.

    Raises:
        FileNotFoundError: If the file does not exist.
        DamagedCheckpointError: If it is damaged; the message names an intact one of the same run.
        ValueError: If reading it would run code.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {str(path)!r} does not exist')
    if path.suffix == '.safetensors':
        file = read_checkpoint(path)
        return {'state_dict': file.state, 'meta': file.meta}
    try:
        return read_pickle(path, map_location=map_location)
    except DamagedCheckpointError as error:
        other, _ = first_whole([one for one in checkpoints_of_a_run(path.parent) if one != path])
        raise DamagedCheckpointError(f'{error}. The newest intact one beside it: {other or "none"}') from None


@CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), force=True)
def load_from_url(filename: str, map_location: Any = None) -> Any:
    """Download a checkpoint into torch's folder of downloads, unless a file of that name exists, and read it.

    Raises:
        OSError: If the download fails.
        ValueError: As `load_from_file`.
    """
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(filename).path).name
    if is_main_process():
        _fetch(filename, path)
    barrier()
    _fetch(filename, path)  # on other machines
    return load_from_file(str(path), map_location)


def _fetch(url: str, path: Path) -> None:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))


def damage_in(path: str | Path) -> str | None:
    """Return what is wrong with a file of torch.save, or None; read all of it without running anything in it.

    Since torch 1.6 the files are zip archives with a checksum per tensor, which torch.load does not check. Older files
    are bare pickles without checksums.
    """
    path = Path(path)
    with path.open('rb') as file:
        start = file.read(4)
    if not start:
        return 'it is empty'
    if start.startswith(b'\x80'):
        return None
    if start != b'PK\x03\x04':
        return f'it starts with {start!r}, unlike any file of torch.save'
    try:
        with ZipFile(path) as archive:
            if not any(name.endswith('/data.pkl') for name in archive.namelist()):
                return 'it is an archive, but not one of torch.save'
            damaged = archive.testzip()
    except (BadZipFile, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError, zlib.error) as error:
        return f'the archive is broken: {error}'
    return damaged and f'{damaged} in it does not match its checksum'


def first_whole(paths: list[Path]) -> tuple[Path | None, dict[Path, str]]:
    """Return the first intact file, and what is wrong with those before it."""
    damaged: dict[Path, str] = {}
    for path in paths:
        damage = damage_in(path)
        if damage is None:
            return path, damaged
        damaged[path] = damage
    return None, damaged


def checkpoints_to_resume(work_dir: str | Path) -> list[Path]:
    """Return the local files that a run in this folder can resume from, in the order of preference.

    The one that `last_checkpoint` names comes first, then those before it, the newest first. Those after it come last:
    they may belong to another, longer run.
    """
    named = named_last(work_dir)
    if not named or '://' in named:
        return [] if named else checkpoints_of_a_run(work_dir)
    last = Path(named)
    folders = dict.fromkeys([last.parent, Path(work_dir)])
    others = [path for folder in folders for path in checkpoints_of_a_run(folder) if path != last]
    others.sort(key=lambda path: step_of(path) > step_of(last))
    return [last, *others] if last.is_file() else others


def checkpoints_of_a_run(folder: str | Path) -> list[Path]:
    """Return the checkpoints of a run, the newest first: by name, since copying changes dates."""
    return sorted((path for path in Path(folder).glob('*.pth') if step_of(path) and path.is_file()), key=step_of)[::-1]


def step_of(path: Path) -> int:
    """Return the iteration or epoch in the name of a run's checkpoint; 0 for other names."""
    found = re.fullmatch(r'(?:iter|epoch)_(\d+)\.pth', path.name)
    return int(found[1]) if found else 0


def named_last(work_dir: str | Path) -> str:
    """Return the path that `last_checkpoint` of a run names; empty without one."""
    pointer = Path(work_dir) / 'last_checkpoint'
    return pointer.read_text().strip() if pointer.is_file() else ''


def require_safetensors() -> None:
    """Raise ImportError with the remedy if the `convert` extra is missing."""
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
