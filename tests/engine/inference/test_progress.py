"""The line that says how far a run is."""

from io import StringIO

import pytest

from wsbcn_mm.engine.inference import progress
from wsbcn_mm.engine.inference.progress import Progress, duration


class Terminal(StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    times = [0.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: times[0])
    return times


def test_the_rest_takes_as_long_as_what_is_done(clock):
    done = Progress(8, 'images', Terminal())
    clock[0] = 100.0
    done.advance(0.25)
    assert done.line(100.0) == '[0/8 images] 3 %, 51 min 40 s left'
    done.advance(0.75)
    done.advance()
    assert done.line(100.0) == '[2/8 images] 25 %, 0.02 images/s, 5 min 0 s left'
    assert done.stream.getvalue().startswith('\r[0/8 images] 3 %, 51 min 40 s left')
    done.clear()
    assert done.stream.getvalue().endswith(' \r')


def test_a_file_gets_a_line_from_time_to_time(clock):
    done = Progress(100, 'videos', StringIO())
    for number in range(100):
        clock[0] = float(number)
        done.advance()
    done.clear()
    lines = done.stream.getvalue().splitlines()
    assert lines[0] == '[16/100 videos] 16 %, 1.1 videos/s, 1 min 19 s left'
    assert len(lines) == 6


@pytest.mark.parametrize(('seconds', 'text'), [(0.2, '0 s'), (59, '59 s'), (125, '2 min 5 s'), (7830, '2 h 10 min')])
def test_durations(seconds, text):
    assert duration(seconds) == text
