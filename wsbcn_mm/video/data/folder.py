"""A folder of videos as a data set: a folder for each class, or a CSV of paths and labels.

    <class>/<name>.mp4                    a split is made, by class and with a seed
    {train,val,test}/<class>/<name>.mp4
    clips.csv                             columns path,label and, if you like, split and source
    train.csv  val.csv  test.csv          columns path,label

`tools/data/prepare_folder.py` writes `split.csv`, `classes.txt` and `manifest.csv` beside them, which
`FolderClipDataset` reads. Class names stay as they are, and so do paths: two files of one name are two videos.
"""

import csv
import io
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.registry import DATASETS

from ...engine.data.file_kinds import files_below, may_be_video, suffix_of
from ...engine.data.folder_task import SPLITS, clip_lists
from ...engine.files import nearest, some
from .annotations import Annotation
from .datasets import ClipDataset
from .manifest import MANIFEST

SPLIT_FILE = 'split.csv'
CLASS_FILE = 'classes.txt'
COLUMNS = ('path', 'label', 'split')
"""Columns of `SPLIT_FILE`."""


class FolderClip(NamedTuple):
    """A video of a folder.

    Attributes:
        path: File below the folder of the data set, with forward slashes.
        class_name: As its folder or the CSV has it.
        split: 'train', 'val' or 'test'; '' where nothing says.
        source: What the video was cut from; '' where nothing says.
        name: What a pattern for sources is searched in: the path below the class folder, or as the CSV has it.
        place: Where the class is from, for messages.
    """

    path: str
    class_name: str
    split: str
    source: str
    name: str
    place: str


class Listing(NamedTuple):
    """What a folder holds.

    Attributes:
        clips: Videos, sorted by path, or in the order of the CSV.
        skipped: Files that are no videos, by suffix.
        problems: What does not fit, one line each.
        notes: What is worth knowing, one line each.
        lists: CSV files that the videos are from; empty for class folders.
    """

    clips: list[FolderClip]
    skipped: Counter[str]
    problems: list[str]
    notes: list[str]
    lists: list[Path]


def list_folder(root: Path) -> Listing:
    """Return the videos of a folder with their classes.

    Raises:
        ValueError: For CSV files of which it is not clear which one counts, or malformed ones, with file and line.
    """
    lists = clip_lists(root)
    return _by_lists(root, lists) if lists else _by_folders(root)


def read_split(file: Path) -> dict[str, FolderClip]:
    """Return the clips of a `split.csv` by path.

    Raises:
        ValueError: For other columns, an empty field, an unknown split or a path that is listed twice, with file and
            line.
    """
    clips: dict[str, FolderClip] = {}
    for line, row in _rows(file, COLUMNS):
        path, label, split = (row[column] for column in COLUMNS)
        if split not in SPLITS:
            raise ValueError(f'{file}:{line}: split={split!r}: {", ".join(map(repr, SPLITS))} are accepted')
        if path in clips:
            raise ValueError(f'{file}:{line}: {path!r} is listed already')
        clips[path] = FolderClip(path, label, split, '', path, f'{file}:{line}')
    return clips


def format_split(clips: Sequence[FolderClip]) -> str:
    """Return the text of a `split.csv`."""
    text = io.StringIO(newline='')
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(COLUMNS)
    writer.writerows((clip.path, clip.class_name, clip.split) for clip in clips)
    return text.getvalue()


@DATASETS.register_module()
class FolderClipDataset(ClipDataset):
    """Videos of a folder that `tools/data/prepare_folder.py` has prepared: one split of its `split.csv`.

    Args:
        split: 'train', 'val' or 'test'.
        data_root: The folder.
        ann_file: List of `path,label,split`, in the folder.
        class_file: Class names in label order, in the folder.
        manifest: What the preparation has found, in the folder.
        kwargs: Those of `ClipDataset`.

    Raises:
        FileNotFoundError: If the folder is not prepared.
        ValueError: For a split without clips, or a class that is not in the list of classes.
    """

    def __init__(
        self,
        split: str,
        data_root: str,
        ann_file: str = SPLIT_FILE,
        class_file: str = CLASS_FILE,
        manifest: str = MANIFEST,
        **kwargs: Any,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f'split={split!r}: {", ".join(map(repr, SPLITS))} are accepted')
        root = Path(data_root)
        for name in (ann_file, class_file):
            if not (root / name).is_file():
                raise FileNotFoundError(
                    f'{root / name} does not exist; {nearest(root / name)}. Run python tools/data/prepare_folder.py '
                    f'{root}, which writes it'
                )
        self.split = split
        super().__init__(
            ann_file=ann_file, class_file=class_file, manifest=manifest, data_root=str(data_root), **kwargs
        )

    def load_annotations(self) -> list[Annotation]:
        clips = read_split(Path(self.ann_file)).values()
        labels = {name: label for label, name in enumerate(self.classes or ())}
        chosen = [clip for clip in clips if clip.split == self.split]
        if not chosen:
            counts = Counter(clip.split for clip in clips)
            there = ', '.join(f'{split} ({counts[split]} clips)' for split in SPLITS if counts[split])
            raise ValueError(f'split={self.split!r}: {self.ann_file} has {there or "no clips"}')
        for clip in chosen:
            if clip.class_name not in labels:
                raise ValueError(
                    f'{clip.place}: class {clip.class_name!r} is not in {self.class_file}: prepare the data again'
                )
        return [Annotation(clip.path, labels[clip.class_name]) for clip in chosen]


def _by_folders(root: Path) -> Listing:
    skipped: Counter[str] = Counter()
    problems: list[str] = []
    notes: list[str] = []
    files = [file for file in files_below(root) if file.parent != root]
    videos = [file for file in files if may_be_video(file)]
    skipped.update(suffix_of(file) for file in files if not may_be_video(file))
    folder_of = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
    tops: dict[str, list[Path]] = defaultdict(list)
    for video in videos:
        tops[video.relative_to(root).parts[0]].append(video)
    # A class may be called "train": only a folder of folders is a split.
    deep = {top for top, own in tops.items() if any(len(video.relative_to(root).parts) > 2 for video in own)}
    is_split = any(top in folder_of for top in deep)
    loose = [video.name for video in files_below(root) if video.parent == root and may_be_video(video)]
    clips = []
    for top, own in tops.items():
        split = folder_of.get(top, '') if is_split else ''
        if is_split and not split:
            problems.append(
                f'{len(own)} videos in {top}/ are in no split, beside {", ".join(sorted(set(tops) & set(folder_of)))}'
            )
            continue
        for video in own:
            parts = video.relative_to(root).parts[1:] if split else video.relative_to(root).parts
            if len(parts) < 2:
                loose.append(video.relative_to(root).as_posix())
                continue
            folder = root / top / parts[0] if split else root / top
            path, name = video.relative_to(root).as_posix(), Path(*parts[1:]).as_posix()
            clips.append(FolderClip(path, _composed(parts[0]), split, '', name, str(folder)))
    if loose:
        problems.append(f'{len(loose)} videos are in no class folder: {some(loose)}')
    used = {Path(clip.place) for clip in clips}
    empty = _folders_without(root, is_split, used, folder_of)
    if empty:
        notes.append(f'{len(empty)} folders have no videos and are no classes: {some(empty)}')
    return Listing(sorted(clips), skipped, problems + _one_name(clips), notes, [])


def _folders_without(root: Path, is_split: bool, used: set[Path], folder_of: dict[str, str]) -> list[str]:
    """Return class folders without videos."""
    bases = [root / alias for alias in folder_of if (root / alias).is_dir()] if is_split else [root]
    folders = [entry for base in bases for entry in sorted(base.iterdir()) if entry.is_dir()]
    return [f'{folder.relative_to(root)}/' for folder in folders if folder not in used and folder.name[0] != '.']


def _by_lists(root: Path, lists: Sequence[Path]) -> Listing:
    names = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
    split_of = {file: names.get(file.stem.lower(), '') for file in lists}
    if len(lists) > 1 and not all(split_of.values()):
        raise ValueError(
            f'{root} has {len(lists)} lists of clips, {", ".join(file.name for file in lists)}: one is accepted, or '
            'train.csv, val.csv and test.csv'
        )
    clips: list[FolderClip] = []
    seen: dict[str, str] = {}
    for file in lists:
        for line, row in _rows(file, ('path', 'label')):
            place = f'{file}:{line}'
            split = _split_of(row, split_of[file], place)
            path = _path_of(root, row['path'])
            if path in seen:
                raise ValueError(f'{place}: {path!r} is in {seen[path]} already')
            seen[path] = place
            clips.append(FolderClip(path, _composed(row['label']), split, row.get('source') or '', row['path'], place))
    splits = {clip.split for clip in clips}
    if '' in splits and len(splits) > 1:
        without = next(clip for clip in clips if not clip.split)
        raise ValueError(f'{without.place}: the split is empty, and other lines have one')
    missing = [clip for clip in clips if not (root / clip.path).exists()]
    problems = []
    if missing:
        problems.append(
            f'{len(missing)} of {len(clips)} videos do not exist: {some(clip.path for clip in missing)}; '
            f'{nearest(root / missing[0].path)}'
        )
    others = [file for file in files_below(root) if file.relative_to(root).as_posix() not in seen]
    unlisted = [file.relative_to(root).as_posix() for file in others if may_be_video(file)]
    notes = [f'the videos and their labels are from {" and ".join(file.name for file in lists)}']
    if unlisted:
        notes.append(f'{len(unlisted)} videos are not in any list and not used: {some(unlisted)}')
    return Listing(clips, Counter(), problems + _one_name(clips), notes, list(lists))


def _split_of(row: dict[str, str], of_file: str, place: str) -> str:
    said = row.get('split') or ''
    split = {alias: split for split, aliases in SPLITS.items() for alias in aliases}.get(said.lower(), '')
    if said and not split:
        raise ValueError(f'{place}: split={said!r}: {", ".join(map(repr, SPLITS))} are accepted')
    if split and of_file and split != of_file:
        raise ValueError(f'{place}: split={said!r}: {of_file!r} is accepted in this file')
    return split or of_file


def _path_of(root: Path, written: str) -> str:
    """Return a path of a CSV as one below the folder: as written, with forward slashes, or below `videos/`."""
    for path in (written, written.replace('\\', '/'), f'videos/{written}'):
        if (root / path).exists():
            return path
    return written


def _one_name(clips: Sequence[FolderClip]) -> list[str]:
    """Return a problem for class names that look like two spellings of one."""
    spelled: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        spelled[''.join(clip.class_name.casefold().replace('-', ' ').replace('_', ' ').split())].add(clip.class_name)
    return [
        f'the classes {", ".join(map(repr, sorted(names)))} differ by capitals or separators only. They are '
        f'{len(names)} classes; rename them if they are one'
        for names in spelled.values()
        if len(names) > 1
    ]


def _composed(name: str) -> str:
    """Return a name in Unicode's composed form, as class lists are read; macOS decomposes the names of its folders."""
    return unicodedata.normalize('NFC', name).strip()


def _rows(file: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and fields of a CSV with a header; commas, semicolons and tabs separate.

    Raises:
        ValueError: For columns that are missing, an empty field of theirs, or lines of another length, with file and
            line.
    """
    try:
        text = file.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{file}: not UTF-8: {error.reason}') from None
    first = text.partition('\n')[0]
    mark = max(',;\t', key=first.count)
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=mark, strict=True)
    try:
        columns = [column.strip().lower() for column in next(reader, [])]
        absent = [name for name in needed if name not in columns]
        if absent:
            raise ValueError(f'no column {", ".join(absent)}; the columns are {", ".join(columns) or "none"}')
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(columns):
                raise ValueError(f'{len(fields)} fields, {len(columns)} are accepted, as in the first line')
            row = {column: field.strip() for column, field in zip(columns, fields, strict=True)}
            for name in needed:
                if not row[name]:
                    raise ValueError(f'{name} is empty')
            yield reader.line_num, row
    except (ValueError, csv.Error) as error:
        raise ValueError(f'{file}:{max(reader.line_num, 1)}: {error}') from None
