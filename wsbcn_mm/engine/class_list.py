"""What the label ids of a checkpoint and of a data set mean: class names in label order, and their hash."""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple


class ClassList(NamedTuple):
    """Class names in label order."""

    names: tuple[str, ...]
    sha256: str

    def __str__(self) -> str:
        return f'{len(self.names)} classes, sha256 {self.sha256[:12]}'


def class_list(names: Sequence[str]) -> ClassList:
    """The list of these names, in Unicode's composed form (NFC); the hash is that of one line for each of them."""
    composed = tuple(unicodedata.normalize('NFC', name) for name in names)
    return ClassList(composed, hashlib.sha256('\n'.join(composed).encode()).hexdigest())


def class_list_in(meta: Mapping[str, Any] | None) -> ClassList | None:
    """The class list that a data set's ``metainfo`` has, or a checkpoint's ``dataset_meta``, if any.

    OpenMMLab's older checkpoints have it as ``CLASSES``.
    """
    meta = meta or {}
    names = meta.get('classes') or meta.get('CLASSES')
    return class_list(names) if names else None


def difference(theirs: ClassList, ours: ClassList) -> str | None:
    """Where two lists differ first, in words; None if they are the same."""
    for label, (one, other) in enumerate(zip_longest(theirs.names, ours.names)):
        if one != other:
            named = [repr(name) if name is not None else 'missing' for name in (one, other)]
            return f'class {label} is {named[0]} in the checkpoint and {named[1]} in the data'
    return None
