"""Find the videos and annotations of Kinetics-400 in the common folder layouts."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

from ...engine.data.file_kinds import VIDEOS, files_below, suffix_of
from ...engine.files import some
from .annotations import load_kinetics_csv

CVDF = 'https://github.com/cvdfoundation/kinetics-dataset'

DOWNLOADED = 'k400_targz'
UNPACKED = 'k400'
"""Folders that CVDF's scripts create side by side; the second one has the annotations too."""

SPLITS = {'train': ('train',), 'val': ('val', 'validate', 'validation'), 'test': ('test',)}
"""Names of the folders and annotation files of each split."""

PACKED = ('.tar', '.tar.gz', '.tgz')
REPLACEMENTS = 'replacement_for_corrupted_k400'
"""CVDF's name for about 1400 training videos that replace the damaged ones in its parts."""

YOUTUBE_ID = 11
"""Number of characters in a YouTube id."""


class NamedClip(NamedTuple):
    """A clip with the name of its class.

    Attributes:
        path: Path below the folder of its split.
        class_name: Name of the class; None in a test split without public labels.
        place: File and line, or folder, that names the class; for messages.
    """

    path: str
    class_name: str | None
    place: str


def video_folder(root: Path, split: str) -> Path:
    """Return the folder where recipes look for the videos of a split."""
    return root / f'videos_{split}'


def find_videos(root: Path, split: str) -> None:
    """Link `videos_train` to `train`, `k400/train` or `videos/train`, whichever has the videos."""
    wanted = video_folder(root, split)
    if wanted.exists():
        return
    places = [place / name for name in SPLITS[split] for place in (root, root / UNPACKED, root / 'videos')]
    there = next((place for place in places if any(_walk(place))), None)
    if there:
        wanted.symlink_to(there.relative_to(root), target_is_directory=True)


def find_replacements(root: Path) -> None:
    """Link CVDF's replacements into the folder of the training videos, if they were unpacked beside it."""
    link = video_folder(root, 'train') / REPLACEMENTS
    folders = [root / at / REPLACEMENTS for at in ('', 'replacement', f'{UNPACKED}/replacement')]
    there = next((folder for folder in folders if folder.is_dir()), None)
    if there and link.parent.is_dir() and not link.exists():
        link.symlink_to(there.resolve(), target_is_directory=True)


def packed_videos(root: Path, split: str) -> list[Path]:
    """Return the archives of a split: `train/part_0.tar.gz` and so on, as CVDF's scripts download them."""
    places = [base / name for base in (root, root / DOWNLOADED) for name in SPLITS[split]]
    files = [file for place in places if place.is_dir() for file in sorted(place.iterdir())]
    if split == 'train':
        files += [root / at / f'{REPLACEMENTS}.tgz' for at in ('', 'replacement', f'{DOWNLOADED}/replacement')]
    return [file for file in files if file.name.endswith(PACKED) and file.is_file()]


def videos_below(folder: Path) -> set[str]:
    """Return the videos below a folder, as relative paths, following links, without hidden files like macOS's `._`."""
    return set(_walk(folder))


def skipped_below(folder: Path) -> Counter[str]:
    """Files below a folder that are no videos, by suffix."""
    return Counter(suffix_of(file) for file in files_below(folder) if suffix_of(file) not in VIDEOS)


def annotation_file(root: Path, split: str) -> Path | None:
    """Return `train.csv` or `kinetics_train.csv` in the folder, in `annotations/` or in `k400/annotations/`."""
    places = [
        root / at / f'{prefix}{name}.csv'
        for at in ('', 'annotations', f'{UNPACKED}/annotations')
        for prefix in ('', 'kinetics_')
        for name in SPLITS[split]
    ]
    return next((file for file in places if file.is_file()), None)


def clips_by_annotations(file: Path, videos: Set[str]) -> list[NamedClip]:
    """Return all clips of an annotation file with their videos: `<id>_<start>_<end>.mp4` or `<id>.mp4`.

    A clip without a video gets the first of these names. If a YouTube id has several clips, only videos with the first
    form of name can be assigned.

    Raises:
        ValueError: For a clip that is annotated twice, or two videos of one clip. The error names file and line.
    """
    annotated = load_kinetics_csv(str(file))
    clips_of_id = Counter(clip.youtube_id for clip in annotated)
    by_stem: dict[str, list[str]] = defaultdict(list)
    by_id: dict[str, list[str]] = defaultdict(list)
    for path in sorted(videos):
        stem = Path(path).stem
        by_stem[stem].append(path)
        by_id[stem[:YOUTUBE_ID]].append(path)
    clips: list[NamedClip] = []
    lines: dict[str, int] = {}
    for clip in annotated:
        if clip.stem in lines:
            raise ValueError(f'{file}:{clip.line}: {clip.stem} is already in line {lines[clip.stem]}')
        lines[clip.stem] = clip.line
        candidates = by_stem[clip.stem] if clips_of_id[clip.youtube_id] > 1 else by_id[clip.youtube_id]
        better = [path for path in candidates if REPLACEMENTS in path] or by_stem[clip.stem] or candidates
        if len(better) > 1:
            raise ValueError(f'{file}:{clip.line}: {len(better)} videos match {clip.stem}: {some(better)}')
        path = better[0] if better else f'{clip.stem}.mp4'
        clips.append(NamedClip(path, clip.class_name, f'{file}:{clip.line}'))
    return clips


def clips_by_folders(folder: Path, videos: Set[str]) -> list[NamedClip]:
    """Return the videos in class folders, whose names may have underscores for blanks; skip other videos."""
    clips = []
    for path in sorted(videos):
        name, below, _ = path.partition('/')
        if below and name != REPLACEMENTS:
            clips.append(NamedClip(path, name.replace('_', ' '), str(folder / name)))
    return clips


def _walk(folder: Path) -> Iterator[str]:
    for at, _, names in os.walk(folder, followlinks=True):
        below = Path(at).relative_to(folder)
        videos = (name for name in names if name.lower().endswith(VIDEOS) and not name.startswith('.'))
        yield from (str(below / name) for name in videos)
