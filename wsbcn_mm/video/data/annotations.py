"""Read annotation files and class lists, as their authors distribute them, into plain values.

Every error names the file and the line (`file:line`). Label ids come from class names wherever the files have names.
Names are compared in Unicode's composed form (NFC), without surrounding blanks and quotes.
"""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Annotation(NamedTuple):
    """One clip: the name of its file or folder as listed, and its class id."""

    name: str
    label: int


class KineticsClip(NamedTuple):
    """One line of a Kinetics annotation file."""

    line: int
    youtube_id: str
    start: int
    """Seconds into the video."""
    end: int
    """Seconds into the video."""
    class_name: str | None
    """None in a list without labels."""

    @property
    def stem(self) -> str:
        """Name of the clip's file, without the suffix."""
        return f'{self.youtube_id}_{self.start:06}_{self.end:06}'


def load_classes(path: str) -> list[str]:
    """Return the class names in label order.

    The file is JSON (a list of names, or `{name: id}` as in `something-something-v2-labels.json`, where ids may be
    strings) or text with one name per line, as in `something-something-v1-labels.csv` or `label_map_k400.txt`.

    Raises:
        ValueError: For an empty list, an empty or repeated name, or ids that are not 0 to C-1, once each.
        FileNotFoundError: If the file does not exist.
    """
    named = _names_in_json(path) if path.endswith('.json') else [(n, _name(line)) for n, line in _read_lines(path)]
    if not named:
        raise ValueError(f'{path}: no class names')
    lines: dict[str, int] = {}
    for number, name in named:
        if not name:
            raise ValueError(f'{path}:{number}: an empty class name')
        if name in lines:
            raise ValueError(f'{path}:{number}: class name {name!r} occurs more than once, first in line {lines[name]}')
        lines[name] = number
    return [name for _, name in named]


def load_path_label_lines(path: str, num_classes: int) -> list[Annotation]:
    """Read lines `path label`. The last token is the label, so paths may contain spaces.

    Raises:
        ValueError: For a line without a path or an integer label, a label outside `[0, num_classes)`, labels that
            count from 1, a path with two labels, or a file without lines.
    """
    entries = []
    for number, line in _read_lines(path):
        *head, label = line.rsplit(maxsplit=1)
        name = ''.join(head)
        if not name or not re.fullmatch(r'-?[0-9]+', label):
            raise ValueError(f"{path}:{number}: {line!r} is not 'path label' with an integer label at the end")
        entries.append((number, Annotation(name, int(label))))
    labels = [annotation.label for _, annotation in entries]
    for number, annotation in entries:
        if 0 <= annotation.label < num_classes:
            continue
        if min(labels) == 1 and max(labels) == num_classes:
            raise ValueError(
                f'{path}:{number}: labels run from 1 to {num_classes}; labels must count from 0, subtract 1 from each'
            )
        raise ValueError(
            f'{path}:{number}: label {annotation.label}: 0 to {num_classes - 1} ({num_classes} classes) is expected'
        )
    return _without_contradictions(path, entries)


def load_something_csv(path: str, classes: Sequence[str]) -> list[Annotation]:
    """Read lines `id;class name` of Something-Something v1.

    Raises:
        ValueError: For a line without a class name, as in the test list, a class that is not in `classes`, or a clip
            that has another class in an earlier line.
    """
    ids = {name: label for label, name in enumerate(classes)}
    entries = []
    for number, line in _read_lines(path):
        clip, name = (_name(part) for part in line.partition(';')[::2])
        if not clip or not name:
            raise ValueError(f"{path}:{number}: {line!r} is not 'id;class name' (the test list has no classes)")
        if name not in ids:
            raise ValueError(f'{path}:{number}: class {name!r} is not in the class list')
        entries.append((number, Annotation(clip, ids[name])))
    return _without_contradictions(path, entries)


def load_something_json(path: str, classes: Sequence[str]) -> list[Annotation]:
    """Read the downloaded list of `{id, label, template, placeholders}` of Something-Something v2.

    The class is the `template` without its brackets ("Holding [something]" -> "Holding something"). `label`, which in
    v2 is the sentence with the objects filled in, is used only if there is no template.

    Raises:
        ValueError: For an entry without id or class, as in the test list, a class that is not in `classes`, or a clip
            that has another class in an earlier entry.
    """
    ids = {name: label for label, name in enumerate(classes)}
    entries = []
    for number, entry in _json_entries(path):
        name = isinstance(entry, dict) and (entry.get('template') or entry.get('label'))
        if not name or 'id' not in entry:
            raise ValueError(f"{path}:{number}: {entry!r} lacks 'id' or 'template' (the test list has no classes)")
        name = _name(str(name).replace('[', '').replace(']', ''))
        if name not in ids:
            raise ValueError(f'{path}:{number}: class {name!r} of clip {entry["id"]} is not in the class list')
        entries.append((number, Annotation(str(entry['id']), ids[name])))
    return _without_contradictions(path, entries)


def load_something_test(path: str) -> list[str]:
    """Return the clip ids in a test list of Something-Something, which has no classes: lines, or JSON of `{id}`.

    Raises:
        ValueError: For an entry without id, or a file without entries.
    """
    if not path.endswith('.json'):
        clips = [_name(line.partition(';')[0]) for _, line in _read_lines(path)]
    else:
        clips = []
        for number, entry in _json_entries(path):
            if not isinstance(entry, dict) or 'id' not in entry:
                raise ValueError(f"{path}:{number}: {entry!r} lacks 'id'")
            clips.append(str(entry['id']))
    if not clips:
        raise ValueError(f'{path}: no clips')
    return clips


def load_kinetics_csv(path: str) -> list[KineticsClip]:
    """Read lines `label,youtube_id,time_start,time_end,split` of Kinetics, as its authors and CVDF distribute them.

    Raises:
        ValueError: For missing columns, a line of another length, an empty label or id, or times that are not numbers.
    """
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=''), strict=True)
    clips = []
    try:
        columns = reader.fieldnames or []
        absent = [name for name in ('youtube_id', 'time_start', 'time_end') if name not in columns]
        if absent:
            raise ValueError(f'no column {", ".join(absent)}; the columns are {", ".join(columns) or "none"}')
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f'{len(columns)} columns are expected, as in the first line')
            clips.append(_kinetics_clip(row, reader.line_num, 'label' in columns))
    except (ValueError, csv.Error) as error:
        raise ValueError(f'{path}:{max(reader.line_num, 1)}: {error}') from error
    if not clips:
        raise ValueError(f'{path}: no clips')
    return clips


def _kinetics_clip(row: Mapping[Any, Any], line: int, labelled: bool) -> KineticsClip:
    for name in ('youtube_id', 'time_start', 'time_end', *(['label'] if labelled else [])):
        if not row[name].strip():
            raise ValueError(f'{name} is empty')
    try:
        start, end = int(float(row['time_start'])), int(float(row['time_end']))
    except ValueError:
        raise ValueError(
            f'time_start={row["time_start"]!r}, time_end={row["time_end"]!r}: seconds are expected'
        ) from None
    return KineticsClip(line, row['youtube_id'].strip(), start, end, _name(row['label']) if labelled else None)


def _without_contradictions(path: str, entries: Iterable[tuple[int, Annotation]]) -> list[Annotation]:
    """Return the clips; raise ValueError if a clip has two classes or there are no clips."""
    seen: dict[str, tuple[int, int]] = {}
    annotations = []
    for number, annotation in entries:
        line, label = seen.setdefault(annotation.name, (number, annotation.label))
        if label != annotation.label:
            raise ValueError(
                f'{path}:{number}: {annotation.name!r} has label {annotation.label}, but label {label} in line {line}'
            )
        annotations.append(annotation)
    if not annotations:
        raise ValueError(f'{path}: no clips')
    return annotations


def _name(text: str) -> str:
    """Normalise a name for comparison: composed, without the quotes of a CSV field and surrounding blanks."""
    text = unicodedata.normalize('NFC', text).strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('""', '"').strip()
    return text


def _names_in_json(path: str) -> list[tuple[int, str]]:
    """Return (line, name) in label order."""
    if _read_text(path).lstrip().startswith('['):
        entries = _json_entries(path)
        for number, name in entries:
            if not isinstance(name, str):
                raise ValueError(f'{path}:{number}: {name!r} is not a class name; {CLASS_LISTS}')
        return [(number, _name(name)) for number, name in entries]
    ids = _flat_json(path)
    by_id: dict[int, tuple[int, str]] = {}
    for number, name, label in ids:
        if not re.fullmatch('[0-9]+', str(label)):
            raise ValueError(f'{path}:{number}: class {name!r} has the id {label!r}: a number is expected')
        if int(label) in by_id:
            raise ValueError(f'{path}:{number}: class {name!r} has the id {label}, as has {by_id[int(label)][1]!r}')
        by_id[int(label)] = number, _name(name)
    if sorted(by_id) != list(range(len(ids))):
        raise ValueError(
            f'{path}: class ids {min(by_id)} to {max(by_id)}: 0 to {len(ids) - 1}, once each, are expected'
        )
    return [by_id[label] for label in range(len(ids))]


CLASS_LISTS = 'a list of class names or {name: id} is expected'


def _flat_json(path: str) -> list[tuple[int, str, Any]]:
    """Return (line, key, value) of an object, including repeated keys, of which json would keep only the last."""
    text = _read_text(path)
    pairs = _parse_json(path, text, object_pairs_hook=list)
    keys = list(re.finditer(r'"(?:[^"\\]|\\.)*"(?=\s*:)', text))
    if not isinstance(pairs, list) or len(keys) != len(pairs):
        raise ValueError(f'{path}: {CLASS_LISTS}')
    return [(text.count('\n', 0, key.start()) + 1, name, value) for key, (name, value) in zip(keys, pairs, strict=True)]


def _json_entries(path: str) -> list[tuple[int, Any]]:
    """Return (line, entry) of a list in JSON; json itself does not report positions."""
    text = _read_text(path)
    content = _parse_json(path, text)
    if not isinstance(content, list) or not content:
        raise ValueError(f'{path}: a list of entries is expected')
    decoder = json.JSONDecoder()
    entries = []
    line, at = 1, text.index('[') + 1
    for _ in content:
        start = at
        while text[start] in ' \t\n\r,':
            start += 1
        line += text.count('\n', at, start)
        entry, at = decoder.raw_decode(text, start)
        entries.append((line, entry))
        line += text.count('\n', start, at)
    return entries


def _parse_json(path: str, text: str, **options: Any) -> Any:
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        raise ValueError(f'{path}:{error.lineno}: not JSON: {error.msg}') from error


def _read_lines(path: str) -> list[tuple[int, str]]:
    """Return (line number from 1, stripped line) of all lines that are not blank."""
    return [(number, line.strip()) for number, line in enumerate(_read_text(path).split('\n'), 1) if line.strip()]


def _read_text(path: str) -> str:
    """Return the text of a UTF-8 file, with or without a byte-order mark, with the line ends of any system."""
    with open(path, 'rb') as file:
        data = file.read()
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = data.count(b'\n', 0, error.start) + 1
        raise ValueError(f'{path}:{line}: not UTF-8: {error.reason}') from error
    return text.replace('\r\n', '\n').replace('\r', '\n')
