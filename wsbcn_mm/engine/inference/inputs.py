"""Files from paths, folders and globs, with an error that names the nearest thing where there is none."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from ..files import nearest, some

IMAGES = frozenset(('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'))
VIDEOS = frozenset(('.avi', '.flv', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ts', '.webm', '.wmv'))
KINDS = {'images': IMAGES, 'videos': VIDEOS}


def is_many(path: str | Path) -> bool:
    """Whether a path is a glob or a folder, which may stand for several files."""
    return not Path(path).is_file() and (Path(path).is_dir() or is_glob(path))


def is_glob(path: str | Path) -> bool:
    """Whether a path has the characters of a glob and is not itself the name of something."""
    return glob.has_magic(str(path)) and not Path(path).exists()


def expand(paths: Iterable[str | Path], kind: str) -> list[Path]:
    """Return the files that paths, folders and globs stand for, each once, in the order given.

    Folders are searched to any depth for files with the suffixes of `kind`; hidden files are left out. A folder of
    numbered images is one video. A file that is named itself is taken whatever its suffix, unless that is one of the
    other kind.

    Args:
        paths: Files, folders and globs (`*`, `?`, `[...]`, and `**` for any depth).
        kind: 'images' or 'videos', the kind that the model takes.

    Raises:
        FileNotFoundError: If a path does not exist or a glob matches nothing; the message names the nearest thing.
        ValueError: If a folder has no file of the kind, or a file is of the other kind.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if is_glob(path):
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            if not matches:
                raise FileNotFoundError(f'input={str(path)!r}: no file matches; {nearest(Path(path))}')
            wanted = [one for match in matches if match.is_dir() for one in files_below(match, kind)]
            wanted += [match for match in matches if match.is_file() and match.suffix.lower() in KINDS[kind]]
            if not wanted:
                raise ValueError(f'input={str(path)!r}: it matches {some(map(str, matches))}, but no {kind}')
            found |= dict.fromkeys(sorted(wanted))
        elif Path(path).is_dir():
            found |= dict.fromkeys(files_below(Path(path), kind) or [refuse_folder(Path(path), kind)])
        elif Path(path).exists():
            refuse_other_kind(Path(path), kind)
            found[Path(path)] = None
        else:
            raise FileNotFoundError(f'input={str(path)!r} does not exist; {nearest(Path(path))}')
    return list(found)


def files_below(folder: Path, kind: str) -> list[Path]:
    """Return the files of a kind below a folder, sorted; for videos, also the folders of numbered images."""
    found = []
    for at, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith('.')]
        here = [Path(at, name) for name in names if not name.startswith('.')]
        found += [path for path in here if path.suffix.lower() in KINDS[kind]]
        if kind == 'videos' and is_frames(here):
            found.append(Path(at))
    return sorted(found)


def is_frames(files: list[Path]) -> bool:
    """Whether files are the frames of a video: two or more images, and each name ends in digits."""
    images = [path for path in files if path.suffix.lower() in IMAGES]
    return len(images) > 1 and len(images) == len(files) and all(path.stem[-1:].isdigit() for path in images)


def refuse_folder(folder: Path, kind: str) -> Path:
    """Raise ValueError for a folder without a file of the kind."""
    names = sorted(entry.name for entry in folder.iterdir())
    has = f'it has {some(names)}' if names else 'it is empty'
    raise ValueError(f'input={str(folder)!r}: the folder has no {kind} ({", ".join(sorted(KINDS[kind]))}); {has}')


def refuse_other_kind(file: Path, kind: str) -> None:
    """Raise ValueError for a file whose suffix is that of the other kind."""
    other = next(name for name in KINDS if name != kind)
    if file.suffix.lower() in KINDS[other] - {'.gif'}:
        raise ValueError(f'input={str(file)!r}: {file.suffix} files are {other}, this model takes {kind}')
