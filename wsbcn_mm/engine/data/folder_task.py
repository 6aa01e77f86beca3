"""Which task a folder of somebody's own data is for."""

import csv
import difflib
from collections import Counter
from itertools import islice
from pathlib import Path

from ..files import require
from .file_kinds import IMAGES, counted, files_below, may_be_video, suffix_of

SPLITS = {'train': ('train', 'training'), 'val': ('val', 'valid', 'validation'), 'test': ('test', 'testing')}
"""What the folder or list of each split may be called."""

WRITTEN = ('split.csv', 'manifest.csv', 'manifest.unfinished.csv')
"""CSV files that the preparation writes itself."""


def task_of_folder(root: Path) -> str:
    """Return 'segmentation' for a folder with `images/`, and 'video' for one with class folders or a CSV of videos.

    Raises:
        FileNotFoundError: If the folder does not exist, naming the nearest thing that does.
        ValueError: For a folder of neither kind, naming what it has.
    """
    require(root)
    if not root.is_dir():
        raise ValueError(f'{root} is a file: the folder of a data set is accepted')
    splits = [name for names in SPLITS.values() for name in names]
    if any((root / at / 'images').is_dir() for at in ('', *splits)):
        return 'segmentation'
    if clip_lists(root):
        return 'video'
    files = files_below(root)
    if any(may_be_video(file) and file.parent != root for file in files):
        return 'video'
    suffixes = Counter(suffix_of(file) for file in files)
    near = ''
    if any(suffix in IMAGES for suffix in suffixes):
        names = [entry.name for entry in root.iterdir() if entry.is_dir()]
        like = difflib.get_close_matches('images', names, n=1, cutoff=0.3)
        near = f'; nearest to images/: {root / like[0]}' if like else ''
    raise ValueError(
        f'{root} has neither images/ and masks/, for segmentation, nor class folders of videos or a CSV with the '
        f'columns path,label, for video. It has {counted(suffixes) or "no files"}{near}'
    )


def clip_lists(root: Path) -> list[Path]:
    """Return the CSV files of a folder that list clips: those with columns `path` and `label`."""
    return [file for file in sorted(root.glob('*.csv')) if file.name not in WRITTEN and _lists_clips(file)]


def _lists_clips(file: Path) -> bool:
    with file.open(encoding='utf-8-sig', errors='replace', newline='') as content:
        first = next(islice(content, 1), '')
    return any(
        {'path', 'label'} <= {column.strip().lower() for column in next(csv.reader([first], delimiter=mark), [])}
        for mark in ',;\t'
    )
