"""How mmengine loads local checkpoints wherever this package's hooks are: nothing in them runs, damage is said.

Its own loader reads a pickle that needs code all the same, with a warning. `CheckpointLoader.register_scheme` is the
place that mmengine has for another one; `load_from`, `--resume` and every init_cfg go through it.
"""

from pathlib import Path
from typing import Any

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
