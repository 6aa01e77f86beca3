"""How messages name files: those that are missing, and what there is instead."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

SHOWN = 3
"""How many names a message lists."""


def missing(files: Sequence[Path]) -> str:
    """'missing: a, b, c and 2 more; nearest existing name: d' for files that are not there."""
    return f'missing: {some(map(str, files))}; {nearest(files[0])}'


def require(path: Path) -> None:
    """Raise FileNotFoundError for a file or folder that does not exist, naming the nearest thing that does."""
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist; {nearest(path)}')


def nearest(path: Path) -> str:
    """'nearest existing name: ...' for a path that does not exist: what is most like it where the path breaks off."""
    folder, name = path, ''
    while not folder.is_dir():
        folder, name = folder.parent, folder.name
    names = sorted(entry.name for entry in folder.iterdir())
    like = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    if like:
        return f'nearest existing name: {folder / like[0]}'
    return f'nearest existing folder: {folder}' + (f', which has {some(names)}' if names else ', which is empty')


def some(names: Iterable[str]) -> str:
    """'a, b, c and 7 more'."""
    listed = list(names)
    more = f' and {len(listed) - SHOWN} more' if len(listed) > SHOWN else ''
    return ', '.join(listed[:SHOWN]) + more
