"""Inventory of a video dataset: probe every listed clip once and write the manifest."""

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
"""Rows found by an interrupted run; the next run continues from them."""

UNSEEN = 'not probed yet'

SAVE_EVERY = 60.0
"""Seconds between saves of `UNFINISHED`."""


class Clip(NamedTuple):
    """One listed clip.

    Attributes:
        path: File or folder of frames, below the folder of the dataset.
        label: Class id; None without public labels.
        class_name: Name of the class; '' without a label.
        split: 'train', 'val' or 'test'.
    """

    path: str
    label: int | None
    class_name: str
    split: str


def take_inventory(
    root: Path, clips: Sequence[Clip], console: Console, *, processes: int = 1, deadline: float = 20.0, **options: Any
) -> list[ManifestRow]:
    """Probe new and changed clips, and write `manifest.csv` with one row per clip, in the order of `clips`.

    A usable clip of the existing manifest is not probed again if its size and modification time are unchanged; for a
    folder, if its modification time is. The results of an interrupted run are kept.

    Args:
        root: Folder of the dataset; the manifest is written there.
        clips: Listed clips, with paths below `root`.
        console: Shows the progress.
        processes: Number of clips decoded at the same time.
        deadline: Seconds per clip.
        options: For `probe_many`: the backend and its options.

    Returns:
        The rows.

    Raises:
        ValueError: For a clip that is listed twice, or a malformed manifest.
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
    if (root / UNFINISHED).exists():  # a prepared folder may be read-only
        (root / UNFINISHED).unlink()
    return listed


def describe(rows: Iterable[ManifestRow], published: Mapping[str, int]) -> list[str]:
    """Describe the clips of each split beside the published numbers, and why clips cannot be used."""
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
    """Return a row with all that is known without opening the clip."""
    row = ManifestRow(clip.path, 0, None, 0, 0, 0, clip.label, clip.class_name, clip.split, UNSEEN)
    try:
        found = (root / clip.path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return row._replace(status=NO_FILE)
    return row._replace(bytes=found.st_size, mtime_ns=found.st_mtime_ns)


def _same_file(root: Path, before: ManifestRow, now: ManifestRow) -> bool:
    """Return whether a clip is unchanged; for a folder the bytes, a sum over its files, are not compared."""
    return before.mtime_ns == now.mtime_ns and (before.bytes == now.bytes or (root / now.path).is_dir())
