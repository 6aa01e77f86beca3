"""One run at a time in a folder."""

import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

NAME = '.in_use'


def occupy(folder: str | Path) -> TextIO:
    """Hold a folder for this process, until the file that is returned is closed or the process ends in any way.

    The lock is POSIX's: processes that are forked do not have it, and shared file systems know of it on all machines.

    Raises:
        ValueError: If another process holds it.
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
            '--work-dir, or end that run first'
        ) from None
    except OSError:
        return file  # a file system without locks
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    return file
