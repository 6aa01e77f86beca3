"""Which clips are probed again, and the state after an interruption."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.video.small_sets import clip_bytes, write_files
from wsbcn_mm.engine import files as atomic_files
from wsbcn_mm.video.data import inventory
from wsbcn_mm.video.data.inventory import Clip, take_inventory
from wsbcn_mm.video.data.manifest import load_manifest

CLIPS = [Clip(f'videos/{name}.mp4', label, f'class {label}', 'train') for label, name in enumerate('abcd')]


@pytest.fixture
def root(tmp_path):
    write_files(tmp_path, {clip.path: clip_bytes() for clip in CLIPS})
    return tmp_path


@pytest.fixture
def probed(monkeypatch):
    """Names of the decoded files, and the name before which the run is interrupted."""
    names: list[str] = []
    until: list[str] = []
    probe_many = inventory.probe_many

    def noting(paths, **options):
        for path, facts in probe_many(paths, **options):
            name = path.removesuffix('.mp4')[-1]
            if [name] == until:
                raise KeyboardInterrupt
            names.append(name)
            yield path, facts

    monkeypatch.setattr(inventory, 'probe_many', noting)
    return names, until


def run(root, clips=CLIPS):
    return take_inventory(root, clips, Console(file=StringIO()))


def test_only_what_changed_or_could_not_be_used_is_probed_again(root, probed):
    names, _ = probed
    (root / 'videos/d.mp4').write_bytes(b'no video')
    rows = run(root)
    assert [row.status == 'ok' for row in rows] == [True, True, True, False]
    assert rows == load_manifest(root / 'manifest.csv')
    assert names == ['a', 'b', 'c', 'd']
    names.clear()
    relabelled = [clip._replace(label=clip.label + 1, class_name=f'class {clip.label + 1}') for clip in CLIPS]
    assert [row.label for row in run(root, relabelled)] == [1, 2, 3, 4]
    assert names == ['d']
    names.clear()
    (root / 'videos/a.mp4').write_bytes(clip_bytes(num_frames=9))
    (root / 'videos/b.mp4').touch()
    (root / 'videos/c.mp4').unlink()
    write_files(root, {'videos/d.mp4': clip_bytes()})
    assert [(row.frames, row.status) for row in run(root)] == [(9, 'ok'), (6, 'ok'), (0, 'no file'), (6, 'ok')]
    assert names == ['a', 'b', 'd']


def test_an_interrupted_run_continues_where_it_stopped(root, probed):
    names, until = probed
    for stop, seen in (('b', ['a']), ('d', ['b', 'c'])):
        until[:] = [stop]
        with pytest.raises(KeyboardInterrupt):
            run(root)
        assert names == seen
        assert not (root / 'manifest.csv').exists()
        names.clear()
    until.clear()
    assert [row.frames for row in run(root)] == [6, 6, 6, 6]
    assert names == ['d']
    assert sorted(path.name for path in root.iterdir()) == ['manifest.csv', 'videos']


def test_a_prepared_folder_may_be_read_only(root, monkeypatch):
    rows = run(root)

    def refuse(*_, **__):
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr(atomic_files, 'write_atomically', refuse)
    monkeypatch.setattr(Path, 'unlink', refuse)
    assert run(root) == rows
    (root / 'videos/a.mp4').write_bytes(clip_bytes(num_frames=9))
    with pytest.raises(OSError, match=r'^\[Errno 30\]'):
        run(root)


def test_a_clip_that_is_listed_twice_is_an_error(root):
    message = r"^1 clips are listed more than once; the first is 'videos/b.mp4' \(train and val\)$"
    with pytest.raises(ValueError, match=message):
        run(root, [*CLIPS, CLIPS[1]._replace(split='val')])
