"""Client of the decoding process, a separate process that can be killed.

A decoding library that loops forever holds the interpreter's lock, so neither a timer nor a thread of the same process
can stop it. The decoding process (`video.decoding.child`) imports only numpy and the decoding libraries, starts in half
a second, and passes frames through shared memory. It ends with its parent, however the parent ends.
"""

import math
import mmap
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROGRAM = Path(__file__).with_name('child')
ENVIRONMENT = {
    'OPENBLAS_NUM_THREADS': '1',
    'OMP_NUM_THREADS': '1',
    # glibc keeps freed frames, up to its limit of 32 MB, for reuse: fresh pages cost more than filling them.
    'MALLOC_MMAP_THRESHOLD_': str(1 << 25),
    'MALLOC_TRIM_THRESHOLD_': str(1 << 30),
}
FILES_PER_PROCESS = 2000
SECONDS_TO_START = 120.0
_LOCAL = threading.local()


class DecoderStartError(RuntimeError):
    """The decoding process cannot run; the file is not the cause."""


class DecoderProcess:
    """The parent's side of one decoding process, which is started on demand and restarted after a kill or a crash.

    It is restarted every `FILES_PER_PROCESS` files, which bounds memory leaks of the libraries. Not thread-safe.

    Attributes:
        pid: Id of the running process; None if there is none.
        complaints: Messages that the decoding libraries wrote during the last request.
    """

    def __init__(self) -> None:
        self.pid: int | None = None
        self.complaints: list[str] = []
        self._files = 0
        self._shared: mmap.mmap | None = None
        self._loaded: set[str] = set()

    def open(self, backend: str, path: str, deadline: float) -> tuple[int, float | None]:
        """Open a file and return its number of frames and its frames per second."""
        self._count_file()
        self._load(backend)
        num_frames, fps = self._request(('open', backend, path, None), deadline)
        return num_frames, fps

    def read(self, backend: str, path: str, indices: Sequence[int], deadline: float) -> Tensor:
        """Return frames as (T, H, W, 3) uint8."""
        self._load(backend)
        shape = self._request(('read', backend, path, list(indices)), deadline)
        size = math.prod(shape)
        if self._shared is None or len(self._shared) < size:
            self._shared = mmap.mmap(self._memory, size)
        return torch.frombuffer(self._shared, dtype=torch.uint8, count=size).clone().view(shape)

    def verify(self, path: str, deadline: float) -> tuple[Any, ...]:
        """Decode a file completely and return the fields of `child.readers.Verified`."""
        self._count_file()
        fields: tuple[Any, ...] = self._request(('verify', '', path, None), deadline)
        return fields

    def stop(self) -> None:
        """Kill the process, whatever it is doing."""
        if self.pid is not None:
            self._finalizer()
            self.pid = None

    def _load(self, backend: str) -> None:
        """Import the backend's library in the process, outside of any file's deadline."""
        if self.pid is None or self._process.poll() is not None:
            self._start()
        if backend not in self._loaded:
            self._request(('load', backend, '', None), SECONDS_TO_START)
            self._loaded.add(backend)

    def _count_file(self) -> None:
        if self._files >= FILES_PER_PROCESS:
            self.stop()
        self._files += 1

    def _request(self, request: tuple[Any, ...], deadline: float) -> Any:
        """Send a request and wait for its answer.

        Raises:
            TimeoutError: If there is no answer in time; the process has been killed.
            ChildProcessError: If the process died during the request.
            RuntimeError: If the request failed; the text is the reason.
            DecoderStartError: If the process does not start.
        """
        if self.pid is None or self._process.poll() is not None:
            self._start()
        self.complaints = []
        with self._in_step():
            self._connection.send(request)
            if not self._connection.poll(max(deadline, 0)):
                raise TimeoutError(f'not decoded within {deadline:g} s, the decoding process was killed')
            value, error, self.complaints = self._connection.recv()
        if error is not None:
            raise RuntimeError(error)
        return value

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """Kill the process if a request is interrupted: its late answer would be read as the next one's."""
        try:
            yield
        except (EOFError, ConnectionError) as broken:
            raise ChildProcessError(f'the decoding process died of {self._death()}') from broken
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self.stop()
        self._files = 1
        self._connection, other = Pipe()
        self._log, self._memory = os.memfd_create('decoder log'), os.memfd_create('frames')
        self._shared = None
        self._loaded = set()
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(other.fileno()), str(self._memory), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            pass_fds=[other.fileno(), self._memory],
            env={**os.environ, **ENVIRONMENT},
        )
        other.close()
        self.pid = self._process.pid
        self._finalizer = weakref.finalize(
            self, _end, self._connection, self._process, [self._log, self._memory], os.getpid()
        )
        try:
            if not self._connection.poll(SECONDS_TO_START):
                raise EOFError
            self._connection.recv()
        except (EOFError, ConnectionError):
            words = self._last_words()
            self.stop()
            raise DecoderStartError(f'{sys.executable} {PROGRAM} does not start: {words}') from None

    def _death(self) -> str:
        code = self._process.wait(5)
        words = self._last_words()
        self.stop()
        name = signal.Signals(-code).name if code < 0 else f'exit status {code}'
        return f'{name} ({words})' if words else name

    def _last_words(self) -> str:
        lines = os.pread(self._log, 1 << 16, 0).decode(errors='replace').split('\n')
        return next((line.strip() for line in reversed(lines) if line.strip()), '')


def decoder_process() -> DecoderProcess:
    """Return this thread's decoding process; a fork gets a new one instead of its parent's."""
    if getattr(_LOCAL, 'owner', None) != os.getpid():
        _LOCAL.process = DecoderProcess()
        _LOCAL.owner = os.getpid()
    process: DecoderProcess = _LOCAL.process
    return process


def _end(connection: Connection, process: 'subprocess.Popen[bytes]', files: list[int], owner: int) -> None:
    connection.close()
    for file in files:
        os.close(file)
    if os.getpid() != owner:  # a fork's copy
        process.returncode = 0
        return
    process.kill()
    with suppress(subprocess.TimeoutExpired):  # stuck in the kernel, e.g. on a dead network drive
        process.wait(5)
