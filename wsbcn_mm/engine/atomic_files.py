"""Files that are there whole or not at all, whatever stops the process or fills the disk."""

import errno
import os
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
