"""Annotation files and class lists as their authors distribute them: file in, plain values out.

Every error names the file and, for files of lines, the line (``file:line``); label ids come from class names wherever
the files have names.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple


class Annotation(NamedTuple):
    """One clip: the name of its file or folder as listed, and its class id."""

    name: str
    label: int


def load_classes(path: str) -> list[str]:
    """Class names in label order.

    Accepts JSON, a list of names or ``{name: id}`` as in ``something-something-v2-labels.json`` (ids may be strings),
    and text, one name per line as in ``something-something-v1-labels.csv`` or ``label_map_k400.txt``.

    Raises:
        ValueError: for an empty list, a repeated name, or ids that are not 0 to C-1 once each.
        FileNotFoundError: naming the file.
    """
    if path.endswith('.json'):
        content = _load_json(path)
        if isinstance(content, dict):
            names = _names_by_id(path, content)
        elif isinstance(content, list) and all(isinstance(name, str) for name in content):
            names = content
        else:
            raise ValueError(f'{path}: a list of class names or {{name: id}} is needed')
    else:
        names = [line for _, line in _read_lines(path)]
    if not names:
        raise ValueError(f'{path}: no class names')
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f'{path}: class name {repeated[0]!r} occurs more than once')
    return names


def load_path_label_lines(path: str, num_classes: int) -> list[Annotation]:
    """Lines ``path label``; the last token is the label, so that paths may contain spaces.

    Raises:
        ValueError: for a line without a path or an integer label, a label outside ``[0, num_classes)``, labels that
            count from 1, or no lines at all.
    """
    entries = []
    for number, line in _read_lines(path):
        *head, label = line.rsplit(maxsplit=1)
        name = ''.join(head)
        if not name or not label.lstrip('-').isdecimal():
            raise ValueError(f"{path}:{number}: {line!r} is not 'path label' with an integer label at the end")
        entries.append((number, Annotation(name, int(label))))
    if not entries:
        raise ValueError(f'{path}: no clips')
    labels = [annotation.label for _, annotation in entries]
    for number, annotation in entries:
        if 0 <= annotation.label < num_classes:
            continue
        if min(labels) == 1 and max(labels) == num_classes:
            raise ValueError(
                f'{path}:{number}: labels run from 1 to {num_classes}; labels count from 0, subtract 1 from each'
            )
        raise ValueError(
            f'{path}:{number}: label {annotation.label} is outside 0 to {num_classes - 1} ({num_classes} classes)'
        )
    return [annotation for _, annotation in entries]


def load_something_csv(path: str, classes: Sequence[str]) -> list[Annotation]:
    """Lines ``id;class name`` of Something-Something v1.

    Raises:
        ValueError: for a line without a class name, as in the test list, or with one that is not in ``classes``.
    """
    ids = {name: label for label, name in enumerate(classes)}
    annotations = []
    for number, line in _read_lines(path):
        clip, separator, name = (part.strip() for part in line.partition(';'))
        if not separator or not clip or not name:
            raise ValueError(f"{path}:{number}: {line!r} is not 'id;class name' (the test list has no classes)")
        if name not in ids:
            raise ValueError(f'{path}:{number}: class {name!r} is not in the class list')
        annotations.append(Annotation(clip, ids[name]))
    if not annotations:
        raise ValueError(f'{path}: no clips')
    return annotations


def load_something_json(path: str, classes: Sequence[str]) -> list[Annotation]:
    """The downloaded list of ``{id, label, template, placeholders}`` of Something-Something v2.

    The class is the ``template`` without its brackets ("Holding [something]" -> "Holding something"); ``label``, in v2
    the sentence with the objects filled in, counts only where there is no template.

    Raises:
        ValueError: for an entry without id or class, as in the test list, or with a class that is not in ``classes``.
    """
    ids = {name: label for label, name in enumerate(classes)}
    content = _load_json(path)
    if not isinstance(content, list) or not content:
        raise ValueError(f'{path}: a list of entries with id and template is needed')
    annotations = []
    for number, entry in enumerate(content):
        name = isinstance(entry, dict) and (entry.get('template') or entry.get('label'))
        if not name or 'id' not in entry:
            raise ValueError(
                f"{path}: entry {number}: {entry!r} lacks 'id' or 'template' (the test list has no classes)"
            )
        name = name.replace('[', '').replace(']', '')
        if name not in ids:
            raise ValueError(f'{path}: entry {number} (id {entry["id"]}): class {name!r} is not in the class list')
        annotations.append(Annotation(str(entry['id']), ids[name]))
    return annotations


def _names_by_id(path: str, ids: dict[str, Any]) -> list[str]:
    for name, label in ids.items():
        if not str(label).isdecimal():
            raise ValueError(f'{path}: class {name!r} has the id {label!r}, not a number')
    by_id = {int(label): name for name, label in ids.items()}
    if sorted(by_id) != list(range(len(ids))):
        raise ValueError(f'{path}: class ids must be 0 to {len(ids) - 1}, once each')
    return [by_id[label] for label in range(len(ids))]


def _load_json(path: str) -> Any:
    with open(path, encoding='utf-8-sig') as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f'{path}:{error.lineno}: not JSON: {error.msg}') from error


def _read_lines(path: str) -> list[tuple[int, str]]:
    """(line number from 1, stripped line) of the lines that are not blank."""
    with open(path, encoding='utf-8-sig') as file:
        return [(number, line.strip()) for number, line in enumerate(file, 1) if line.strip()]
