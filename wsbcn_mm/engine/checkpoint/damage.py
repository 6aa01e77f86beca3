"""Detect damaged checkpoint files without running code in them."""

import zlib
from pathlib import Path
from zipfile import BadZipFile, ZipFile


class DamagedCheckpointError(ValueError):
    """A checkpoint file differs from what was written."""


def damage_in(path: str | Path) -> str | None:
    """Return a description of the damage in a file of torch.save, or None. Read all of it, and run no code in it.

    Since torch 1.6, files are zip archives with a checksum for every tensor, which torch.load does not verify. Older
    files are bare pickles without checksums.
    """
    path = Path(path)
    with path.open('rb') as file:
        start = file.read(4)
    if not start:
        return 'it is empty'
    if start.startswith(b'\x80'):
        return None
    if start != b'PK\x03\x04':
        return f'it starts with {start!r}, unlike files of torch.save'
    try:
        with ZipFile(path) as archive:
            if not any(name.endswith('/data.pkl') for name in archive.namelist()):
                return 'it is an archive that torch.save did not write'
            damaged = archive.testzip()
    except (BadZipFile, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError, zlib.error) as error:
        return f'the archive is corrupt: {error}'
    return damaged and f'{damaged} does not match its checksum'
