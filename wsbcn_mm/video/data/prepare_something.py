"""Prepare Something-Something: from the downloaded parts, or their folder, to a checked dataset with a manifest."""

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
    """Distribution and contents of one version.

    Attributes:
        name: Name of its parts and of its folder.
        lists: Name of its lists, with {} for 'labels', 'train', 'validation', 'test'.
        suffix: Suffix of a video; '' for a folder of frames.
        options: Decoding options of `probe_many`.
        source: Where to get it.
        published: Published number of clips of each split.
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
"""Counts: Goyal et al., The "something something" video database, ICCV 2017 (v1), and the dataset's site (v2)."""

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
    """Unpack the archives, probe every clip of every list, and write `root/manifest.csv`. A second run is quick.

    The clips are the downloaded parts (`20bn-something-something-v2-00` and so on, or `.zip` files that contain them)
    or the unpacked folder. The lists have their full names, or are named `labels/train.json` and so on, as in the label
    package of v2; then they are copied to where recipes read them.

    Args:
        root: Folder of the downloads.
        console: Shows the progress and the report.
        version: 'v1' or 'v2'.
        published: Published number of clips of each split.
        num_classes: Number of classes in the class list.
        suffix: Suffix of the videos of v2 if they were converted, e.g. '.mp4'.
        processes: Number of clips decoded at the same time.
        deadline: Seconds per clip.

    Returns:
        Problems, one line each; empty for a complete dataset.

    Raises:
        FileNotFoundError: If clips or lists are missing. The error says where they belong.
        ValueError: For an unknown version, a damaged archive, or malformed lists. The error names file and line.
    """
    if version not in VERSIONS:
        raise ValueError(f'version={version!r}: {" or ".join(VERSIONS)} is expected')
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
    reasons = {NO_FILE: 'is listed but has no file'}
    return [f'{row.split}: {row.path} {reasons.get(row.status, row.status)}' for row in rows if row.status != OK]
