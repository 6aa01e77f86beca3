"""Write files atomically, hash them, and name missing files together with the nearest existing name."""

import difflib
import errno
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, an exceeded quota and a limit on the size of files."""

PARTIAL = '.partial'
"""Suffix of a file while it is written. A killed process leaves such a file behind."""

SHOWN = 3
"""Number of names that a message lists."""


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file atomically. An existing file stays unchanged until the new one is on the disk.

    The data go to a hidden file in the same folder. This file is synchronised to the disk and then renamed to `path`.
    Finally the folder, which has the name, is synchronised.

    Raises:
        OSError: If the file cannot be written. The hidden file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.{os.getpid()}{PARTIAL}')
    try:
        with partial.open('wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def update_atomically(path: str | Path, data: bytes) -> bool:
    """Call `write_atomically`, unless the file has these bytes already: a prepared folder may be read-only.

    Returns:
        Whether the file was written.
    """
    path = Path(path)
    if path.is_file() and path.read_bytes() == data:
        return False
    write_atomically(path, data)
    return True


def remove_partial_files(folder: str | Path) -> list[Path]:
    """Remove the partial files of killed processes from a folder, and return their paths."""
    left = sorted(Path(folder).glob(f'.*{PARTIAL}'))
    for path in left:
        path.unlink(missing_ok=True)
    return left


@register_backend('atomic', force=True)
class AtomicBackend(LocalBackend):
    """mmengine's backend for local files, with atomic writes. Select it with `backend_args=dict(backend='atomic')`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, obj)


def missing(files: Sequence[Path]) -> str:
    """Describe missing files: 'missing: a, b, c and 2 more; nearest existing name: d'."""
    return f'missing: {some(map(str, files))}; {nearest(files[0])}'


def require(path: Path) -> None:
    """Raise FileNotFoundError with the nearest existing name, if a file or folder does not exist."""
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist; {nearest(path)}')


def nearest(path: Path) -> str:
    """Return 'nearest existing name: ...' for a missing path: the most similar name in its last existing folder."""
    folder, name = path, ''
    while not folder.is_dir():
        folder, name = folder.parent, folder.name
    names = sorted(entry.name for entry in folder.iterdir())
    like = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    if like:
        return f'nearest existing name: {folder / like[0]}'
    return f'nearest existing folder: {folder}' + (f', which has {some(names)}' if names else ', which is empty')


def some(names: Iterable[str]) -> str:
    """Join names: 'a, b, c and 7 more'."""
    listed = list(names)
    more = f' and {len(listed) - SHOWN} more' if len(listed) > SHOWN else ''
    return ', '.join(listed[:SHOWN]) + more


def sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
