"""Look at every clip that a data set lists, once, and write down what is there."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from ...engine.data.preparation import progress_bar
from .manifest import MANIFEST, NO_FILE, OK, ManifestRow, load_manifest, save_manifest
from .probe import probe_many

UNFINISHED = 'manifest.unfinished.csv'
"""What an interrupted run has found; the next one goes on from it."""

UNSEEN = 'not looked at yet'

SAVE_EVERY = 60.0
"""Seconds."""


class Clip(NamedTuple):
    """One clip as the lists have it.

    Attributes:
        path: file or folder of frames, below the folder of the data set.
        label: class id; None where there are no public labels.
        class_name: '' where there is no label.
        split: 'train', 'val' or 'test'.
    """

    path: str
    label: int | None
    class_name: str
    split: str


def take_inventory(
    root: Path, clips: Sequence[Clip], console: Console, *, processes: int = 1, deadline: float = 20.0, **options: Any
) -> list[ManifestRow]:
    """Probe what is new or has changed, and write `manifest.csv` with a row for each clip, in their order.

    A file of the same bytes and time of change as in the manifest that is there, and a folder of the same time, is not
    probed again, unless it could not be used then. What an interrupted run has found is kept.

    Args:
        root: folder of the data set; gets the manifest.
        clips: as the lists have them; their paths are below `root`.
        console: where progress goes.
        processes: how many clips are decoded at the same time.
        deadline: seconds for each.
        options: for `probe_many`: the backend and its options.

    Returns:
        The rows.

    Raises:
        ValueError: for a clip that is listed twice, or a manifest that is none.
    """
    twice = [path for path, times in Counter(clip.path for clip in clips).items() if times > 1]
    if twice:
        splits = ' and '.join(clip.split for clip in clips if clip.path == twice[0])
        raise ValueError(f'{len(twice)} clips are listed more than once; the first is {twice[0]!r} ({splits})')
    known = {row.path: row for file in (MANIFEST, UNFINISHED) for row in _rows_in(root / file)}
    rows: dict[str, ManifestRow] = {}
    changed: dict[str, str] = {}
    with progress_bar(console) as progress:
        for clip in progress.track(clips, description='looking for files'):
            row = _unprobed(root, clip)
            before = known.get(clip.path)
            if row.status == NO_FILE:
                rows[clip.path] = row
            elif before and before.status == OK and _same_file(root, before, row):
                rows[clip.path] = before._replace(label=clip.label, class_name=clip.class_name, split=clip.split)
            else:
                rows[clip.path] = row
                changed[str(root / clip.path)] = clip.path
        facts = probe_many(changed, processes=processes, deadline=deadline, **options)
        saved = time.monotonic()
        try:
            for path, fact in progress.track(facts, total=len(changed), description='decoding'):
                row = rows[changed[path]]._replace(**fact._asdict())
                rows[row.path] = row._replace(status=' '.join(row.status.split()))
                if time.monotonic() - saved > SAVE_EVERY:
                    save_manifest(root / UNFINISHED, _looked_at(rows))
                    saved = time.monotonic()
        except BaseException:
            save_manifest(root / UNFINISHED, _looked_at(rows))
            raise
    listed = list(rows.values())
    save_manifest(root / MANIFEST, listed)
    if (root / UNFINISHED).exists():  # a folder that is prepared may be read-only
        (root / UNFINISHED).unlink()
    return listed


def describe(rows: Iterable[ManifestRow], published: Mapping[str, int]) -> list[str]:
    """What each split has beside what is published, in words, and why clips cannot be used."""
    by_split: dict[str, list[ManifestRow]] = {}
    for row in rows:
        by_split.setdefault(row.split, []).append(row)
    lines = []
    for split, listed in by_split.items():
        absent = [row for row in listed if row.status == NO_FILE]
        usable = [row for row in listed if row.status == OK]
        unusable = [row for row in listed if row.status not in (OK, NO_FILE)]
        of_published = f', {published[split]} are published' if split in published else ''
        share = f' ({100 * len(usable) / published[split]:.2f} % of the published)' if split in published else ''
        lines.append(
            f'{split}: {len(listed)} clips are listed{of_published}; {len(listed) - len(absent)} have a file, '
            f'{len(usable)} can be used{share}'
        )
        lines.append(f'  {sum(row.bytes for row in listed) / 1e9:.2f} GB, {sum(row.frames for row in usable)} frames')
        if absent:
            lines.append(f'  {len(absent)} without a file, the first: {absent[0].path}')
        if unusable:
            lines.append(f'  {len(unusable)} that cannot be used, the first: {unusable[0].path}: {unusable[0].status}')
    return lines


def _looked_at(rows: Mapping[str, ManifestRow]) -> list[ManifestRow]:
    return [row for row in rows.values() if row.status != UNSEEN]


def _rows_in(file: Path) -> list[ManifestRow]:
    return load_manifest(file) if file.is_file() else []


def _unprobed(root: Path, clip: Clip) -> ManifestRow:
    """A row with what is known without opening the clip."""
    row = ManifestRow(clip.path, 0, None, 0, 0, 0, clip.label, clip.class_name, clip.split, UNSEEN)
    try:
        found = (root / clip.path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return row._replace(status=NO_FILE)
    return row._replace(bytes=found.st_size, mtime_ns=found.st_mtime_ns)


def _same_file(root: Path, before: ManifestRow, now: ManifestRow) -> bool:
    """Whether nothing has changed; the bytes of a folder are those of its files, which are not asked one by one."""
    return before.mtime_ns == now.mtime_ns and (before.bytes == now.bytes or (root / now.path).is_dir())
