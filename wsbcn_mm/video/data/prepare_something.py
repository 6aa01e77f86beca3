"""From the downloaded parts of Something-Something, or their folder, to a checked data set with a manifest."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from ...engine.data.archives import numbered_parts, unpack
from ...engine.data.preparation import print_report, progress_bar
from ...engine.files import nearest
from .annotations import load_classes, load_something_csv, load_something_json, load_something_test
from .inventory import Clip, describe, take_inventory
from .manifest import MANIFEST, NO_FILE, OK, ManifestRow

LISTS = ('labels', 'train', 'validation', 'test')
SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}


class Version(NamedTuple):
    """How one version is distributed, and what it has.

    Attributes:
        name: what its parts and its folder are called.
        lists: what its lists are called, with {} for 'labels', 'train', 'validation', 'test'.
        suffix: of a video; '' for a folder of frames.
        options: how a clip is decoded.
        source: who has it.
        published: clips of each split.
    """

    name: str
    lists: str
    suffix: str
    options: dict[str, Any]
    source: str
    published: dict[str, int]


VERSIONS = {
    'v1': Version(
        '20bn-something-something-v1',
        'something-something-v1-{}.csv',
        '',
        dict(backend='frames', template='{:05d}.jpg'),
        'TwentyBN, who no longer offer it',
        dict(train=86017, val=11522, test=10960),
    ),
    'v2': Version(
        '20bn-something-something-v2',
        'something-something-v2-{}.json',
        '.webm',
        {},
        'https://www.qualcomm.com/developer/software/something-something-v-2-dataset',
        dict(train=168913, val=24777, test=27157),
    ),
}
"""Counts: Goyal et al., The "something something" video database, ICCV 2017 (v1), and the data set's site (v2)."""

NUM_CLASSES = 174


def prepare_something(
    root: Path,
    console: Console,
    version: str = 'v2',
    *,
    published: Mapping[str, int] | None = None,
    num_classes: int = NUM_CLASSES,
    suffix: str | None = None,
    processes: int = 1,
    deadline: float = 20.0,
) -> list[str]:
    """Unpack what is packed, look at every clip of every list, and write `root/manifest.csv`; a second time is quick.

    Accepted are the parts as downloaded (`20bn-something-something-v2-00` and so on, or `.zip` files that have them) or
    the folder that they unpack to, and the lists under their full names or, as the label package of v2 has them, as
    `labels/train.json`, which are copied to where the recipes read them.

    Args:
        root: folder of the downloads.
        console: where progress and the report go.
        version: 'v1' or 'v2'.
        published: clips of each split.
        num_classes: classes of the list.
        suffix: of the videos of v2, where they were converted: '.mp4'.
        processes: how many clips are decoded at the same time.
        deadline: seconds for each.

    Returns:
        What is wrong, one line each: empty for a complete data set.

    Raises:
        FileNotFoundError: if clips or lists are missing, saying where they belong.
        ValueError: for an unknown version, a damaged archive, or lists that are malformed, with file and line.
    """
    if version not in VERSIONS:
        raise ValueError(f'version={version!r}: accepted are {" and ".join(VERSIONS)}')
    kind = VERSIONS[version]
    if suffix is not None:
        kind = kind._replace(suffix=suffix)
    published = published or kind.published
    _unpack(root, kind, console)
    lists = {name: root / kind.lists.format(name) for name in LISTS}
    _require(root, kind, lists)
    classes = load_classes(str(lists['labels']))
    problems = []
    if len(classes) != num_classes:
        problems.append(f'{lists["labels"].name}: {len(classes)} classes, {num_classes} are published')
    clips = []
    for name, split in SPLITS.items():
        listed = _clips(kind, lists[name], split, classes)
        if len(listed) != published[split]:
            problems.append(f'{lists[name].name}: {len(listed)} clips, {published[split]} are published')
        clips += listed
    rows = take_inventory(root, clips, console, processes=processes, deadline=deadline, **kind.options)
    problems += _unusable(rows)
    lines = [f'{len(classes)} classes, in the order of {lists["labels"].name}', *describe(rows, published)]
    print_report(console, lines, problems, root / MANIFEST)
    return problems


def _unpack(root: Path, kind: Version, console: Console) -> None:
    with progress_bar(console) as progress:
        for archive in sorted(root.glob('20bn-something-something*.zip')):
            unpack(archive, root, ('labels/' if 'labels' in archive.name else kind.name,), progress)
        parts = numbered_parts(root, kind.name)
        if parts:
            unpack(parts, root, (f'{kind.name}/',), progress)
    for name in LISTS:
        wanted = root / kind.lists.format(name)
        packed = root / 'labels' / f'{name}.json'
        if wanted.suffix == '.json' and packed.is_file() and not wanted.is_file():
            shutil.copyfile(packed, wanted)


def _require(root: Path, kind: Version, lists: Mapping[str, Path]) -> None:
    absent = {file: str(file) for file in lists.values() if not file.is_file()}
    folder = root / kind.name
    if not folder.is_dir():
        absent[folder] = f'{folder}/ or {folder}-00, {folder.name}-01 and so on'
    if absent:
        raise FileNotFoundError(
            f'missing: {"; ".join(absent.values())}, from {kind.source}; {nearest(next(iter(absent)))}'
        )


def _clips(kind: Version, file: Path, split: str, classes: Sequence[str]) -> list[Clip]:
    def path(name: str) -> str:
        return f'{kind.name}/{name}{kind.suffix}'

    if split == 'test':
        return [Clip(path(name), None, '', split) for name in load_something_test(str(file))]
    load = load_something_json if file.suffix == '.json' else load_something_csv
    return [Clip(path(name), label, classes[label], split) for name, label in load(str(file), classes)]


def _unusable(rows: Sequence[ManifestRow]) -> list[str]:
    reasons = {NO_FILE: 'is listed and has no file'}
    return [f'{row.split}: {row.path} {reasons.get(row.status, row.status)}' for row in rows if row.status != OK]
