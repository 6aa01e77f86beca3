"""Manifest of a video dataset: one line per listed clip, written once and read by training.

It is a CSV file with the fields of `ManifestRow` as header. Paths are relative to the folder of the manifest, with
forward slashes. Unknown numbers are empty.
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

from ...engine.files import update_atomically

Number = TypeVar('Number', int, float)

MANIFEST = 'manifest.csv'
OK = 'ok'
NO_FILE = 'no file'


class ManifestRow(NamedTuple):
    """One clip of one split.

    Attributes:
        path: File, or folder of frames, below the folder of the manifest.
        frames: Number of decodable frames; 0 for a clip that cannot be used.
        fps: Frames per second; None if unknown, as for folders of frames.
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.
        bytes: Size of the file, or of the files in the folder.
        label: Class id from 0; None if the split has no public labels.
        class_name: Name of the class; '' without a label or a class list.
        split: 'train', 'val' or 'test', as in the dataset.
        status: 'ok', 'no file', or why the clip cannot be used.
        mtime_ns: Modification time of the file or folder in nanoseconds. If it and the size are unchanged, the clip is
            not probed again.
    """

    path: str
    frames: int
    fps: float | None
    width: int
    height: int
    bytes: int
    label: int | None
    class_name: str
    split: str
    status: str
    mtime_ns: int = 0


def load_manifest(file: str | Path) -> list[ManifestRow]:
    """Return all rows of a manifest, including those of unusable clips.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: For another header, a missing field, a field that is not a number, a path that is listed twice, a
            usable clip without frames, or a label with two names. The error names file and line.
    """
    rows: list[ManifestRow] = []
    lines: dict[str, int] = {}
    names: dict[int, str] = {}
    with Path(file).open(encoding='utf-8-sig', errors='surrogateescape', newline='') as content:
        reader = csv.reader(content, strict=True)
        try:
            header = next(reader, [])
            if tuple(header) != ManifestRow._fields:
                raise ValueError(f'header {",".join(header)!r}: {",".join(ManifestRow._fields)!r} is expected')
            for fields in reader:
                if not fields:
                    continue
                row = _row(fields)
                first = lines.setdefault(row.path, reader.line_num)
                if first != reader.line_num:
                    raise ValueError(f'{row.path!r} is already in line {first}')
                if row.label is not None and names.setdefault(row.label, row.class_name) != row.class_name:
                    raise ValueError(
                        f'label {row.label} is {row.class_name!r}, but {names[row.label]!r} in an earlier line'
                    )
                rows.append(row)
        except (ValueError, csv.Error) as error:
            raise ValueError(f'{file}:{max(reader.line_num, 1)}: {error}') from error
    return rows


def save_manifest(file: str | Path, rows: Iterable[ManifestRow]) -> None:
    """Write a manifest atomically, unless the file already has these rows.

    Raises:
        OSError: If it cannot be written; an existing manifest is kept.
    """
    text = io.StringIO(newline='')
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(ManifestRow._fields)
    writer.writerows(rows)
    update_atomically(file, text.getvalue().encode('utf-8', 'surrogateescape'))


def _row(fields: list[str]) -> ManifestRow:
    if len(fields) != len(ManifestRow._fields):
        raise ValueError(f'{len(fields)} fields: {len(ManifestRow._fields)} are expected')
    text = dict(zip(ManifestRow._fields, fields, strict=True))
    row = ManifestRow(
        path=text['path'],
        frames=_number(text, 'frames', int),
        fps=_number(text, 'fps', float) if text['fps'] else None,
        width=_number(text, 'width', int),
        height=_number(text, 'height', int),
        bytes=_number(text, 'bytes', int),
        label=_number(text, 'label', int) if text['label'] else None,
        class_name=text['class_name'],
        split=text['split'],
        status=text['status'],
        mtime_ns=_number(text, 'mtime_ns', int),
    )
    for name in ('path', 'split', 'status'):
        if not text[name]:
            raise ValueError(f'{name} is empty')
    if row.status == OK and row.frames < 1:
        raise ValueError(f'frames={row.frames} with status {OK!r}: at least 1 is expected')
    return row


def _number(text: dict[str, str], name: str, kind: type[Number]) -> Number:
    try:
        number = kind(text[name])
    except ValueError:
        number = kind(-1)
    if not 0 <= number < float('inf'):
        raise ValueError(f'{name}={text[name]!r}: a number >= 0 is expected')
    return number
