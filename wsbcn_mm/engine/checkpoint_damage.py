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
            damaged = archive.testzip()
    except (BadZipFile, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError, zlib.error) as error:
        return f'it is not the archive it was: {error}'
    return damaged and f'{damaged} in it does not fit its checksum'


def checkpoints_of_a_run(folder: str | Path) -> list[Path]:
    """Files that a run in this folder can go on from, the newest first: by name, as copying changes dates."""
    numbered = []
    for path in Path(folder).glob('*.pth'):
        found = re.fullmatch(r'(?:iter|epoch)_(\d+)\.pth', path.name)
        if found:
            numbered.append((int(found[1]), path))
    return [path for _, path in sorted(numbered, reverse=True)]


def first_whole(paths: list[Path]) -> tuple[Path | None, dict[Path, str]]:
    """The first file that is whole, and what is wrong with those before it."""
    damaged: dict[Path, str] = {}
    for path in paths:
        damage = damage_in(path)
        if damage is None:
            return path, damaged
        damaged[path] = damage
    return None, damaged
