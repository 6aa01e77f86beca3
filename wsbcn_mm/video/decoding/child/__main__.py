"""The decoding process: `python wsbcn_mm/video/decoding/child SOCKET MEMORY PARENT` serves until its parent ends.

A request is `(what, backend, path, indices)`. An answer is `(value, error, complaints)`; value or error is None:

* 'load': None, after importing the backend's library, if it is installed;
* 'open': `(num_frames, fps)`;
* 'read': the shape of the frames; their bytes are at the start of the shared memory;
* 'verify': the fields of `readers.Verified`.

Complaints are the lines that the decoding libraries wrote meanwhile. They report concealed errors nowhere else.
"""

import ctypes
import math
import mmap
import os
import re
import signal
import sys
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import readers

PR_SET_PDEATHSIG = 1
STANDARD_ERROR = 2
MAX_COMPLAINTS = 20
HARMLESS = ('mmco: unref short failure', 'co located POCs unavailable')
"""Messages that appear after each seek, for intact files too."""


def main(connection: Connection, memory: int, parent: int) -> None:
    """Serve one connection, with one file open at a time."""
    die_with(parent)
    load_pyav()
    connection.send('ready')
    shared = Shared(memory)
    source: tuple[Any, Any] = (None, None)
    while True:
        try:
            what, backend, path, indices = connection.recv()
        except EOFError:
            return
        forget_complaints()
        value, error = None, None
        try:
            if what == 'load':
                if backend == 'decord':
                    load_decord()
            elif what == 'verify':
                value = tuple(readers.verify(path))
            else:
                if what == 'open' or source[0] != (backend, path):
                    if source[1]:
                        source[1].close()
                    source = (None, None)
                    source = ((backend, path), readers.READERS[backend](path))
                if what == 'open':
                    value = (source[1].num_frames, source[1].fps)
                else:
                    value = source[1].read(indices, shared.array).shape
        except Exception as problem:
            error = readers.reason(problem)
        connection.send((value, error, complaints()))


def die_with(parent: int) -> None:
    """Let the kernel end this process with its parent, even during a call that never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


def load_decord() -> None:
    """Import decord and limit its messages to errors. It takes 380 MB, so only its users load it."""
    with suppress(ImportError):
        decord = import_module('decord')
        decord.logging.set_level(decord.logging.ERROR)


def load_pyav() -> None:
    """Import PyAV and limit its messages to errors."""
    with suppress(ImportError):
        av = import_module('av')
        av.logging.set_libav_level(av.logging.ERROR)
        av.logging.restore_default_callback()


def forget_complaints() -> None:
    os.ftruncate(STANDARD_ERROR, 0)
    os.lseek(STANDARD_ERROR, 0, os.SEEK_SET)


def complaints() -> list[str]:
    """Return the first distinct lines written to standard error, a file in memory, since the last request."""
    sys.stderr.flush()
    text = os.pread(STANDARD_ERROR, 1 << 16, 0).decode(errors='replace')
    lines = re.sub(r' @ 0x[0-9a-f]+', '', text).splitlines()
    return [line for line in dict.fromkeys(lines) if not line.endswith(HARMLESS)][:MAX_COMPLAINTS]


class Shared:
    """Memory shared with the parent. It grows to the largest array and is kept, because fresh pages are slow."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._bytes = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return a uint8 array at the start of the memory; the next one overwrites it."""
        size = math.prod(shape)
        if self._bytes.size < size:
            os.ftruncate(self._memory, size)
            self._bytes = np.frombuffer(mmap.mmap(self._memory, size), np.uint8)
        return self._bytes[:size].reshape(shape)


if __name__ == '__main__':
    main(Connection(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
