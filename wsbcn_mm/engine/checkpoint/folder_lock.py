"""Lock a run's folder against other runs."""

import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

NAME = '.in_use'
"""Name of the lock file."""


def occupy(folder: str | Path) -> TextIO:
    """Lock a folder for this process, until the returned file is closed or the process ends.

    The lock is a POSIX lock: forked processes do not inherit it, and shared file systems enforce it on all machines.

    Raises:
        ValueError: If another process holds the lock.
    """
    file = (Path(folder) / NAME).open('a+', encoding='utf-8')
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read() or 'another process'
        file.close()
        raise ValueError(
            f'{folder} is in use: {holder} trains there, and two runs would mix their checkpoints. Use another '
            '--work-dir, or stop that run first'
        ) from None
    except OSError:
        return file  # a file system without locks
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    return file
