"""Where the predictions of a run go: names of files, a table that grows with them, and one JSON."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..files import write_atomically

TABLE, SUMMARY = 'predictions.csv', 'predictions.json'


class Report:
    """`predictions.csv`, written row by row, and `predictions.json`, written when it is closed.

    Args:
        folder: Where they go, made if missing; files of these names are overwritten.
        columns: Columns of the table.
        facts: What the JSON says before the results.
    """

    def __init__(self, folder: Path, columns: Sequence[str], **facts: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = (folder / TABLE).open('w', newline='', encoding='utf-8', errors='surrogateescape')
        self._table = csv.writer(self._file, lineterminator='\n')
        self._table.writerow(columns)
        self._summary: dict[str, Any] = facts | dict(results=[], failed={})

    def add(self, rows: Sequence[Sequence[Any]], entry: dict[str, Any]) -> None:
        """Append rows to the table and an entry to the results of the JSON."""
        self._table.writerows(rows)
        self._file.flush()
        self._summary['results'].append(entry)

    def fail(self, source: str, error: Exception) -> None:
        """Note that an input could not be read."""
        self._summary['failed'][source] = str(error)

    def close(self) -> None:
        """Write the JSON."""
        self._file.close()
        write_atomically(self._folder / SUMMARY, (json.dumps(self._summary, indent=1) + '\n').encode())


def output_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return a name without suffix for the output of each input, each name once.

    It is the input's own name where that is enough, or else with its folders and its suffix.
    """
    below = common_folder(paths)
    ways: list[Callable[[Path], str]] = [
        lambda path: path.stem,
        lambda path: '_'.join(path.absolute().relative_to(below).with_suffix('').parts),
        lambda path: '_'.join(path.absolute().relative_to(below).parts),
    ]
    for way in ways:
        names = [way(path) for path in paths]
        if len({name.lower() for name in names}) == len(names):
            return dict(zip(paths, names, strict=True))
    return {path: f'{number:05d}_{path.stem}' for number, path in enumerate(paths)}


def common_folder(paths: Sequence[Path]) -> Path:
    """Return the deepest folder that has all files."""
    first, *others = [path.absolute().parent for path in paths]
    return next(folder for folder in (first, *first.parents) if all(one.is_relative_to(folder) for one in others))
