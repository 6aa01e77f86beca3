"""How far a run is, and how long the rest will take."""

import sys
import time
from typing import TextIO

SECONDS_BETWEEN_LINES = 15.0
"""Between lines where the output is a file; a terminal has one line that changes."""


class Progress:
    """A line `[3/12 images] 25 %, 1.5 images/s, 6 s left` on standard error.

    Args:
        total: Number of inputs.
        unit: Their plural, such as 'images'.
        stream: Where the line goes; by default standard error.
    """

    def __init__(self, total: int, unit: str, stream: TextIO | None = None) -> None:
        self.total = total
        self.unit = unit
        self.done = 0.0
        self.stream = sys.stderr if stream is None else stream
        self._start = self._last = time.monotonic()
        self._width = 0

    def advance(self, share: float = 1.0) -> None:
        """Count a share of one input, and print the line if the last one is old enough."""
        self.done += share
        now = time.monotonic()
        every = 0.2 if self.stream.isatty() else SECONDS_BETWEEN_LINES
        if now - self._last >= every:
            self._last = now
            self._print(self.line(now - self._start))

    def line(self, seconds: float) -> str:
        """Return the line after so many seconds."""
        done = min(self.done, self.total)
        left = seconds * (self.total - done) / done if done else 0.0
        rate = f', {done / seconds:.2g} {self.unit}/s' if seconds and done >= 1 else ''
        counted = f'[{int(done + 1e-6)}/{self.total} {self.unit}] {100 * done / self.total:.0f} %'
        return f'{counted}{rate}, {duration(left)} left'

    def clear(self) -> None:
        """Remove the line from a terminal, so that another one can be printed."""
        if self._width:
            self.stream.write('\r' + ' ' * self._width + '\r')
            self._width = 0

    def _print(self, line: str) -> None:
        if self.stream.isatty():
            self.stream.write('\r' + line.ljust(self._width))
            self._width = max(self._width, len(line))
        else:
            self.stream.write(line + '\n')
        self.stream.flush()


def duration(seconds: float) -> str:
    """Return '45 s', '3 min 5 s' or '2 h 10 min'."""
    whole = round(seconds)
    if whole < 60:
        return f'{whole} s'
    if whole < 3600:
        return f'{whole // 60} min {whole % 60} s'
    return f'{whole // 3600} h {whole % 3600 // 60} min'
