"""Replace mmengine's loaders of local files and URLs by ones that run no code. Importing this module registers them."""

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.runner import CheckpointLoader

from .damage import DamagedCheckpointError
from .reading import read_checkpoint, read_pickle
from .selection import checkpoints_of_a_run, first_whole


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_file(filename: str, map_location: Any = None) -> Any:
    """Read a local checkpoint: a file of torch.save, or the .safetensors of tools/publish.py.

    Args:
        filename: Path of the file.
        map_location: Device of the tensors, as in torch.load.

    Raises:
        FileNotFoundError: If the file does not exist.
        DamagedCheckpointError: If it is damaged, with the latest intact checkpoint of the same run.
        ValueError: If it needs code to be read.
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
        raise DamagedCheckpointError(f'{error}. Latest intact checkpoint in its folder: {other or "none"}') from None


@CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), force=True)
def load_from_url(filename: str, map_location: Any = None) -> Any:
    """Download a checkpoint into torch's cache folder, unless it has a file of that name, and read it.

    Raises:
        OSError: If the download fails.
        ValueError: As in `load_from_file`.
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
