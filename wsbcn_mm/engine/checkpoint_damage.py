"""Tell whole checkpoint files from damaged ones by the checksums that torch writes into them."""

import re
import zlib
from pathlib import Path
from zipfile import BadZipFile, ZipFile


class DamagedCheckpointError(ValueError):
    """A checkpoint file is not what was written."""


def damage_in(path: str | Path) -> str | None:
    """What is wrong with a file of torch.save, or None. Reads all of it, and runs nothing in it.

    Files are zip archives since torch 1.6, with a checksum for every tensor, which torch.load does not compare. Older
    ones are bare pickles without any.
    """
    path = Path(path)
    with path.open('rb') as file:
        start = file.read(4)
    if not start:
        return 'it is empty'
    if start.startswith(b'\x80'):
        return None
    if start != b'PK\x03\x04':
        return f'it starts with {start!r}, as no file of torch.save does'
    try:
        with ZipFile(path) as archive:
            if not any(name.endswith('/data.pkl') for name in archive.namelist()):
                return 'it is an archive, but none of torch.save'
            damaged = archive.testzip()
    except (BadZipFile, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError, zlib.error) as error:
        return f'it is not the archive it was: {error}'
    return damaged and f'{damaged} in it does not fit its checksum'


def checkpoints_of_a_run(folder: str | Path) -> list[Path]:
    """Files that a run in this folder can go on from, the newest first: by name, as copying changes dates."""
    return sorted((path for path in Path(folder).glob('*.pth') if step_of(path) and path.is_file()), key=step_of)[::-1]


def step_of(path: Path) -> int:
    """Iteration or epoch in the name of a run's checkpoint; 0 for other names."""
    found = re.fullmatch(r'(?:iter|epoch)_(\d+)\.pth', path.name)
    return int(found[1]) if found else 0


def named_last(work_dir: str | Path) -> str:
    """What `last_checkpoint` of a run names; empty if nothing."""
    pointer = Path(work_dir) / 'last_checkpoint'
    return pointer.read_text().strip() if pointer.is_file() else ''


def checkpoints_to_resume(work_dir: str | Path) -> list[Path]:
    """Local files that a run in this folder can go on from, in this order.

    The one that `last_checkpoint` names comes first, then those before it, the newest first, and at last those after
    it: the folder may have some of another, longer run.
    """
    named = named_last(work_dir)
    if not named or '://' in named:
        return [] if named else checkpoints_of_a_run(work_dir)
    last = Path(named)
    folders = dict.fromkeys([last.parent, Path(work_dir)])
    others = [path for folder in folders for path in checkpoints_of_a_run(folder) if path != last]
    others.sort(key=lambda path: step_of(path) > step_of(last))
    return [last, *others] if last.is_file() else others


def first_whole(paths: list[Path]) -> tuple[Path | None, dict[Path, str]]:
    """The first file that is whole, and what is wrong with those before it."""
    damaged: dict[Path, str] = {}
    for path in paths:
        damage = damage_in(path)
        if damage is None:
            return path, damaged
        damaged[path] = damage
    return None, damaged
