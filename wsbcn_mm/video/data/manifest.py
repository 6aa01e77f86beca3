"""What a video data set on disk is: one line for every clip that its lists name, written once, read by training.

A CSV with the fields of `ManifestRow` as header. Paths are relative to the folder of the manifest, with forward
slashes; numbers that are not known are empty.
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
        path: file, or folder of frames, below the folder of the manifest.
        frames: how many can be decoded; 0 for a clip that cannot be used.
        fps: frames per second; None where nothing says so, as for folders of frames.
        width: of the frames, pixels.
        height: of the frames, pixels.
        bytes: size of the file, or of the files in the folder.
        label: class id from 0; None where the split has no public labels.
        class_name: '' where there is no label, or no list of names.
        split: 'train', 'val', 'test' as the data set has them.
        status: 'ok', 'no file', or why the clip cannot be used.
        mtime_ns: time of change of the file or folder, nanoseconds: what keeps time and bytes is not probed again.
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
    """All rows of a manifest, those of unusable clips too.

    Raises:
        FileNotFoundError: naming the file.
        ValueError: for another header, a field that is missing or no number, a path that is listed twice, a usable clip
            without frames, or a label with two names; with file and line.
    """
    rows: list[ManifestRow] = []
    lines: dict[str, int] = {}
    names: dict[int, str] = {}
    with Path(file).open(encoding='utf-8-sig', errors='surrogateescape', newline='') as content:
        reader = csv.reader(content, strict=True)
        try:
            header = next(reader, [])
            if tuple(header) != ManifestRow._fields:
                raise ValueError(f'the header is {",".join(header)!r}, not {",".join(ManifestRow._fields)!r}')
            for fields in reader:
                if not fields:
                    continue
                row = _row(fields)
                first = lines.setdefault(row.path, reader.line_num)
                if first != reader.line_num:
                    raise ValueError(f'{row.path!r} is in line {first} already')
                if row.label is not None and names.setdefault(row.label, row.class_name) != row.class_name:
                    raise ValueError(f'label {row.label} is {row.class_name!r}, and {names[row.label]!r} further up')
                rows.append(row)
        except (ValueError, csv.Error) as error:
            raise ValueError(f'{file}:{max(reader.line_num, 1)}: {error}') from error
    return rows


def save_manifest(file: str | Path, rows: Iterable[ManifestRow]) -> None:
    """Write a manifest, whole or not at all; one that is there already, with these rows, is left alone.

    Raises:
        OSError: if it cannot be written; the one that was there stays.
    """
    text = io.StringIO(newline='')
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(ManifestRow._fields)
    writer.writerows(rows)
    update_atomically(file, text.getvalue().encode('utf-8', 'surrogateescape'))


def _row(fields: list[str]) -> ManifestRow:
    if len(fields) != len(ManifestRow._fields):
        raise ValueError(f'{len(fields)} fields, {len(ManifestRow._fields)} are needed')
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
        raise ValueError(f'frames={row.frames} of a clip with status {OK!r}')
    return row


def _number(text: dict[str, str], name: str, kind: type[Number]) -> Number:
    try:
        number = kind(text[name])
    except ValueError:
        number = kind(-1)
    if not 0 <= number < float('inf'):
        raise ValueError(f'{name}={text[name]!r} is not a number from 0')
    return number
