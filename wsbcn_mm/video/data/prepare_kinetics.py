"""Prepare Kinetics-400: from the common folder layouts to the lists, class list and manifest that recipes read."""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from rich.console import Console

from ...engine.data.archives import unpack
from ...engine.data.file_kinds import counted
from ...engine.data.preparation import print_report, progress_bar
from ...engine.files import nearest, sha256, some, update_atomically, write_atomically
from .annotations import load_classes, load_path_label_lines
from .inventory import Clip, describe, take_inventory
from .kinetics_layout import (
    CVDF,
    SPLITS,
    YOUTUBE_ID,
    NamedClip,
    annotation_file,
    clips_by_annotations,
    clips_by_folders,
    find_replacements,
    find_videos,
    packed_videos,
    skipped_below,
    video_folder,
    videos_below,
)
from .manifest import MANIFEST, OK

PUBLISHED = {'train': 246534, 'val': 19906, 'test': 39805}
"""Clips of each split in CVDF's annotations. Videos were removed from YouTube since; its copy has 241258, 19881 and
38685 of them."""

NUM_CLASSES = 400
CLASS_FILE = 'label_map_k400.txt'
LIST = 'kinetics400_{}_list_videos.txt'
OWN = '.prepared.json'
"""File with the hashes of lists written by this tool, which it may overwrite."""


def prepare_kinetics(
    root: Path,
    console: Console,
    *,
    published: Mapping[str, int] = PUBLISHED,
    num_classes: int = NUM_CLASSES,
    processes: int = 1,
    deadline: float = 20.0,
) -> list[str]:
    """Unpack the archives, list the clips by class, and write `root/manifest.csv`. A second run is quick.

    These layouts are accepted:

    * CVDF's download: `train/part_*.tar.gz`, or the same below `k400_targz/`, or the unpacked videos, with the
      annotations `train.csv` beside them or in `annotations/`, and `replacement_for_corrupted_k400.tgz`;
    * a folder for each class below `videos_train/` or `train/`, with or without annotations;
    * mmaction2's lists, `kinetics400_train_list_videos.txt` and `label_map_k400.txt`, with their videos.

    Recipes read the last layout, so lists and class list are written in this form. Existing lists of other origin are
    used unchanged. Without a class list, classes are in alphabetical order.

    Args:
        root: Folder of the downloads.
        console: Shows the progress and the report.
        published: Published number of clips of each split. Fewer clips are reported, not an error, because videos
            disappear from YouTube.
        num_classes: Number of classes of the dataset.
        processes: Number of clips decoded at the same time.
        deadline: Seconds per clip.

    Returns:
        Problems, one line each; empty for a usable dataset.

    Raises:
        FileNotFoundError: If train or val has no videos, or no classes for them. The error says where they belong.
        ValueError: For a class that is not in the class list, a clip that is listed or present twice, a damaged
            archive, or malformed annotations. The error names file and line.
    """
    found = _videos(root, console)
    named = {split: _named_clips(root, split, videos) for split, videos in found.items()}
    classes = _classes(root, num_classes, named)
    clips: list[Clip] = []
    notes = []
    for split, own in named.items():
        listed = _clips_in_list(root, split, classes) if own is None else _with_labels(root, split, own, classes)
        if own is not None and split != 'test':
            _write_own(root, LIST.format(split), [f'{_below(clip)} {clip.label}' for clip in listed])
        clips += listed
        unlisted = sorted(found[split] - {_below(clip) for clip in listed})
        if unlisted:
            notes.append(f'{split}: {len(unlisted)} videos are not in any list and not used: {some(unlisted)}')
        skipped = skipped_below(video_folder(root, split))
        if skipped:
            notes.append(f'{split}: skipped, no videos by their suffix: {counted(skipped)}')
    rows = take_inventory(root, clips, console, processes=processes, deadline=deadline)
    usable = Counter(row.split for row in rows if row.status == OK)
    problems = [f'{split}: none of its clips can be used' for split in ('train', 'val') if not usable[split]]
    if len(classes) != num_classes:
        problems.append(f'{CLASS_FILE}: {len(classes)} classes, {num_classes} are published')
        notes.append(f'videos of your own, not of Kinetics-400: tools/data/prepare_folder.py {root}')
    problems += _in_two_splits(clips)
    lines = [f'{len(classes)} classes, in the order of {CLASS_FILE}', *describe(rows, published), *notes]
    print_report(console, lines, problems, root / MANIFEST)
    return problems


def _videos(root: Path, console: Console) -> dict[str, set[str]]:
    """Return the videos of each split that has any, as paths below its folder, after unpacking archives."""
    for split in SPLITS:
        find_videos(root, split)
    with progress_bar(console) as progress:
        for split in SPLITS:
            for archive in packed_videos(root, split):
                unpack(archive, video_folder(root, split), ('',), progress)
    find_replacements(root)
    found = {split: videos_below(video_folder(root, split)) for split in SPLITS}
    absent = [split for split in ('train', 'val') if not found[split]]
    if absent:
        places = '; '.join(
            f'{video_folder(root, split)}/ with videos or {root / split}/part_*.tar.gz' for split in absent
        )
        raise FileNotFoundError(f'missing: {places}, from {CVDF}; {nearest(video_folder(root, absent[0]))}')
    return {split: videos for split, videos in found.items() if videos}


def _named_clips(root: Path, split: str, videos: Set[str]) -> list[NamedClip] | None:
    """Return clips with class names, from annotations or folders; None if a list has their labels."""
    listed = root / LIST.format(split)
    if listed.is_file() and not _is_own(root, listed.name):
        return None
    annotations = annotation_file(root, split)
    if annotations:
        return clips_by_annotations(annotations, videos)
    clips = clips_by_folders(video_folder(root, split), videos)
    if clips:
        return clips
    if split == 'test':
        return [NamedClip(path, None, '') for path in sorted(videos)]
    raise FileNotFoundError(
        f'missing: {root / "annotations" / f"{split}.csv"}, from {CVDF}, or {listed}, or class folders: none of the '
        f'{len(videos)} videos in {video_folder(root, split)} has a class'
    )


def _classes(root: Path, num_classes: int, named: Mapping[str, Sequence[NamedClip] | None]) -> list[str]:
    """Return the existing class list, or all names in alphabetical order."""
    file = root / CLASS_FILE
    if not file.is_file() or _is_own(root, CLASS_FILE):
        names = {clip.class_name for clips in named.values() for clip in clips or () if clip.class_name}
        if not names or None in named.values():
            raise FileNotFoundError(
                f'missing: {file}, the {num_classes} class names in the order of the labels in the lists; '
                f'{nearest(file)}'
            )
        _write_own(root, CLASS_FILE, sorted(names))
    return load_classes(str(file))


def _clips_in_list(root: Path, split: str, classes: Sequence[str]) -> list[Clip]:
    listed = load_path_label_lines(str(root / LIST.format(split)), len(classes))
    folder = video_folder(root, split).name
    return [Clip(f'{folder}/{name}', label, classes[label], split) for name, label in listed]


def _with_labels(root: Path, split: str, named: Sequence[NamedClip], classes: Sequence[str]) -> list[Clip]:
    ids = {_key(name): label for label, name in enumerate(classes)}
    if len(ids) < len(classes):
        first = next(name for label, name in enumerate(classes) if ids[_key(name)] != label)
        raise ValueError(
            f'{root / CLASS_FILE}: the classes {first!r} and {classes[ids[_key(first)]]!r} differ by capitals or '
            'underscores only'
        )
    folder = video_folder(root, split).name
    clips = []
    for path, name, place in named:
        if name is None:
            clips.append(Clip(f'{folder}/{path}', None, '', split))
            continue
        label = ids.get(_key(name))
        if label is None:
            raise ValueError(f'{place}: class {name!r} is not in {root / CLASS_FILE}')
        clips.append(Clip(f'{folder}/{path}', label, classes[label], split))
    return clips


def _key(name: str) -> str:
    """Normalise a class name for comparison: folders may have underscores for blanks and another case."""
    return unicodedata.normalize('NFC', name).replace('_', ' ').casefold()


def _below(clip: Clip) -> str:
    """Return the path below the folder of the split, as in lists."""
    return clip.path.partition('/')[2]


def _in_two_splits(clips: Sequence[Clip]) -> list[str]:
    splits: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        splits[_video(clip.path)].add(clip.split)
    shared = [f'{video} ({" and ".join(sorted(where))})' for video, where in splits.items() if len(where) > 1]
    return [f'{len(shared)} videos are in two splits: {some(shared)}'] if shared else []


def _video(path: str) -> str:
    """The YouTube id in the path of a clip; a name without one means nothing outside its folder."""
    folders, stem = Path(path).parts[1:-1], Path(path).stem
    named = re.fullmatch(r'([\w-]{11})_[0-9]{6}_[0-9]{6}', stem)
    if named:
        return named[1]
    return stem if len(stem) == YOUTUBE_ID and not folders else '/'.join([*Path(path).parts[:-1], stem])


def _is_own(root: Path, name: str) -> bool:
    """Return whether this tool wrote a list that was not changed since."""
    return _own(root).get(name) == sha256(root / name)


def _own(root: Path) -> dict[str, str]:
    file = root / OWN
    return json.loads(file.read_text()) if file.is_file() else {}


def _write_own(root: Path, name: str, lines: Sequence[str]) -> None:
    content = ''.join(f'{line}\n' for line in lines).encode()
    if update_atomically(root / name, content):
        write_atomically(root / OWN, json.dumps(_own(root) | {name: sha256(root / name)}, indent=1).encode())
