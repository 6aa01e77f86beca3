import os
import re
import signal
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.video.clip_files import read_numbers, write_clip
from wsbcn_mm.video.data.probe import probe, probe_many
from wsbcn_mm.video.decoding import process as module
from wsbcn_mm.video.decoding.process import DecoderProcess, DecoderStartError, decoder_process
from wsbcn_mm.video.decoding.reader import DecodeError, open_video

REAL = module.PROGRAM


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    return str(write_clip(tmp_path_factory.mktemp('clips') / 'fine.mp4', 30))


@pytest.fixture
def misbehaving(tmp_path, monkeypatch):
    """The real program with a decord that hangs or crashes for files of such names; returns the files' folder."""
    program = tmp_path / 'program'
    program.mkdir()
    (program / '__main__.py').write_text(
        textwrap.dedent(f"""
        import ctypes, re, runpy, sys
        sys.path.insert(0, {str(REAL)!r})
        import readers

        def odd(real):
            def call(path):
                if 'hang' in path:
                    re.match('(a+)+b', 'a' * 99)  # never returns, and holds the interpreter's lock
                if 'crash' in path:
                    ctypes.string_at(0)
                return real(path)

            return call

        readers.READERS['decord'] = odd(readers.READERS['decord'])
        readers.verify = odd(readers.verify)
        runpy.run_path({str(REAL / '__main__.py')!r}, run_name='__main__')
        """)
    )
    monkeypatch.setattr(module, 'PROGRAM', program)
    decoder_process().stop()
    yield tmp_path
    decoder_process().stop()


def is_alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(') ', 1)[1][0] != 'Z'
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_file_that_never_returns_is_given_up_and_the_next_one_is_read(misbehaving, clip):
    assert len(open_video(clip, deadline=20)) == 30
    before = decoder_process().pid
    path = str(write_clip(misbehaving / 'hang.mp4', 3))
    start = time.monotonic()
    with pytest.raises(DecodeError) as caught:
        open_video(path, deadline=0.5)
    assert time.monotonic() - start < 10
    reason = 'not decoded within 0.5 s, the decoding process was killed'
    assert str(caught.value) == f'cannot decode {path!r} with decord: {reason}'
    assert not is_alive(before)
    assert read_numbers(open_video(clip, deadline=20).get_frames([3, 29])) == [3, 29]


def test_a_file_that_crashes_the_decoder_is_an_error_of_this_file(misbehaving, clip):
    path = str(write_clip(misbehaving / 'crash.mp4', 3))
    with pytest.raises(DecodeError) as caught:
        open_video(path, deadline=20)
    assert str(caught.value) == f'cannot decode {path!r} with decord: the decoding process died of SIGSEGV'
    assert len(open_video(clip, deadline=20)) == 30


def test_a_decoder_dies_with_its_parent_in_the_middle_of_a_file(misbehaving):
    path = str(write_clip(misbehaving / 'hang.mp4', 3))
    pids, tell = os.pipe()
    parent = os.fork()
    if not parent:
        process = DecoderProcess()
        threading.Timer(1.0, lambda: os.write(tell, str(process.pid).encode())).start()
        process.open('decord', path, 60)
        os._exit(0)
    pid = int(os.read(pids, 100))
    assert is_alive(pid)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    wait_until(lambda: not is_alive(pid))


@pytest.fixture
def interruptible():
    """Ctrl-C raises, even in a process started in the background, where SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('interruptible')
def test_an_interrupted_request_leaves_no_answer_for_the_next_one(misbehaving, clip):
    process = decoder_process()
    process.open('decord', clip, 20)
    path = str(write_clip(misbehaving / 'hang.mp4', 3))
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        process.open('decord', path, 60)
    assert process.pid is None
    assert process.open('decord', clip, 20) == (30, 12.0)


def test_a_process_killed_from_outside_is_restarted(clip):
    process = DecoderProcess()
    process.open('decord', clip, 20)
    os.kill(process.pid, signal.SIGKILL)
    process._process.wait()
    assert process.open('decord', clip, 20) == (30, 12.0)
    process.stop()


def test_a_fork_gets_its_own_decoder_and_does_not_touch_its_parents(clip):
    mine = decoder_process()
    mine.open('decord', clip, 20)
    pids, tell = os.pipe()
    fork = os.fork()
    if not fork:
        process = decoder_process()
        process.open('decord', clip, 20)
        os.write(tell, str(process.pid).encode())
        process.stop()
        os._exit(0)
    assert os.waitpid(fork, 0)[1] == 0
    assert int(os.read(pids, 100)) != mine.pid
    assert decoder_process() is mine
    assert mine.read('decord', clip, [7], 20).shape == (1, 48, 72, 3)


def test_it_is_restarted_and_its_memory_is_bounded(clip, monkeypatch):
    monkeypatch.setattr(module, 'FILES_PER_PROCESS', 1500)
    process = DecoderProcess()
    pids, memory = set(), []
    for number in range(1501):
        process.open('decord', clip, 20)
        if number % 10 == 0:
            process.read('decord', clip, [0, 29], 20)
        pids.add(process.pid)
        if number in (299, 1499):
            status = Path(f'/proc/{process.pid}/status').read_text()
            memory.append(int(re.search(r'VmRSS:\s+(\d+) kB', status)[1]))
    assert len(pids) == 2
    assert memory[1] - memory[0] < 10_000
    process.stop()


def test_frames_stay_when_others_are_read(clip):
    process = DecoderProcess()
    first = process.read('decord', clip, [5], 20)
    copy = first.clone()
    process.read('decord', clip, range(30), 20)
    process.read('decord', clip, [6], 20)
    assert torch.equal(first, copy)
    assert read_numbers(first) == [5]
    process.stop()


def test_a_decoder_that_does_not_start_is_not_a_decode_error(tmp_path, clip, monkeypatch):
    (tmp_path / '__main__.py').write_text("raise ImportError('no numpy here')")
    monkeypatch.setattr(module, 'PROGRAM', tmp_path)
    decoder_process().stop()
    for call in (lambda: open_video(clip, deadline=20), lambda: probe(clip)):
        with pytest.raises(DecoderStartError, match=r'does not start: ImportError: no numpy here$'):
            call()


def test_a_deadline_must_be_positive():
    with pytest.raises(ValueError, match=r'^deadline=0: seconds above 0, or None for no deadline, are expected$'):
        open_video('a.mp4', deadline=0)
    with pytest.raises(ValueError, match=r'^processes=0: at least 1 is expected$'):
        list(probe_many(['a.mp4'], processes=0))


def test_many_files_are_probed_in_order_and_one_that_hangs_does_not_stop_the_others(misbehaving, clip):
    paths = [clip, str(write_clip(misbehaving / 'hang.mp4', 3)), str(misbehaving / 'none.mp4'), clip]
    found = list(probe_many(paths, processes=2, deadline=2))
    assert [path for path, _ in found] == paths
    reason = 'not decoded within 2 s, the decoding process was killed'
    assert [facts.status for _, facts in found] == ['ok', reason, 'no such file or folder', 'ok']
    assert [facts.frames for _, facts in found] == [30, 0, 0, 30]
