"""How mmengine loads checkpoints wherever this package's hooks are: nothing in them runs, damage is said.

Its own loaders read a pickle that needs code all the same, with a warning. `CheckpointLoader.register_scheme` is the
place that mmengine has for others; `load_from`, `--resume` and every init_cfg go through it. Files of model zoos
(torchvision://, open-mmlab://, mmcls://) are still fetched and read by mmengine itself.
"""

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.runner import CheckpointLoader

from .checkpoint_damage import DamagedCheckpointError, checkpoints_of_a_run, first_whole
from .checkpoint_files import read_checkpoint, read_pickle


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_file(filename: str, map_location: Any = None) -> Any:
    """Read a local checkpoint: what torch.save wrote, or the .safetensors of tools/publish.py.

    Args:
        map_location: Device of the tensors, as torch.load takes it.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedCheckpointError: If it is not what was written, naming a whole one of the same run.
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
        raise DamagedCheckpointError(f'{error}. The newest whole one beside it: {other or "none"}') from None


@CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), force=True)
def load_from_url(filename: str, map_location: Any = None) -> Any:
    """Fetch a checkpoint into torch's folder of downloads, unless a file of that name is there, and read that.

    Raises:
        OSError: If it cannot be fetched.
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
