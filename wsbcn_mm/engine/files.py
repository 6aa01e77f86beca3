"""Files that are there whole or not at all, whatever stops the process or fills the disk."""

import difflib
import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a used-up quota, a limit on the size of files."""

PARTIAL = '.partial'
"""Suffix of a file that is being written, and of what is left of it where the process was killed."""


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file in place of the one of that name, which stays as it was until the new one is on the disk.

    The data go to a hidden file in the same folder and reach the disk before it takes the name; then the folder, which
    has the name, reaches the disk.

    Raises:
        OSError: If it cannot be written; nothing is left of it then.
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
    """`write_atomically`, unless the file has these bytes already: a prepared folder may be read-only.

    Returns:
        Whether it was written.
    """
    path = Path(path)
    if path.is_file() and path.read_bytes() == data:
        return False
    write_atomically(path, data)
    return True


def remove_partial_files(folder: str | Path) -> list[Path]:
    """Remove what killed processes left half-written in a folder; gives their paths."""
    left = sorted(Path(folder).glob(f'.*{PARTIAL}'))
    for path in left:
        path.unlink(missing_ok=True)
    return left


@register_backend('atomic', force=True)
class AtomicBackend(LocalBackend):
    """mmengine's backend of local files with atomic writes; `backend_args=dict(backend='atomic')` asks for it."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, obj)


SHOWN = 3
"""How many names a message lists."""


def missing(files: Sequence[Path]) -> str:
    """'missing: a, b, c and 2 more; nearest existing name: d' for files that are not there."""
    return f'missing: {some(map(str, files))}; {nearest(files[0])}'


def require(path: Path) -> None:
    """Raise FileNotFoundError for a file or folder that does not exist, naming the nearest thing that does."""
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist; {nearest(path)}')


def nearest(path: Path) -> str:
    """'nearest existing name: ...' for a path that does not exist: what is most like it where the path breaks off."""
    folder, name = path, ''
    while not folder.is_dir():
        folder, name = folder.parent, folder.name
    names = sorted(entry.name for entry in folder.iterdir())
    like = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    if like:
        return f'nearest existing name: {folder / like[0]}'
    return f'nearest existing folder: {folder}' + (f', which has {some(names)}' if names else ', which is empty')


def some(names: Iterable[str]) -> str:
    """'a, b, c and 7 more'."""
    listed = list(names)
    more = f' and {len(listed) - SHOWN} more' if len(listed) > SHOWN else ''
    return ', '.join(listed[:SHOWN]) + more
