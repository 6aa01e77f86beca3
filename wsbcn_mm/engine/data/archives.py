"""Unpack downloaded archives once: complete files are skipped."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from rich.progress import Progress

from ..files import write_atomically

NOTES = '.unpacked'
"""Folder with the list of files of each archive: it saves reading many gigabytes again to find nothing missing."""

END_OF_TAR = 1024
"""Number of zero bytes that end a tar."""

COMPRESSED: dict[bytes, Callable[..., Any]] = {b'\x1f\x8b': gzip.open, b'BZh': bz2.open, b'\xfd7zXZ\x00': lzma.open}


class Member(NamedTuple):
    """A file in an archive: its path there, its unpacked size in bytes, and a function that opens it for reading."""

    name: str
    size: int
    open: Callable[[], Any]


class Joined(io.RawIOBase):
    """The concatenated bytes of several files."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._parts = iter(parts)
        self._file: IO[bytes] = io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            data = self._file.read(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            self._file.close()
            part = next(self._parts, None)
            if part is None:
                self._file = io.BytesIO()
                return 0
            self._file = part.open('rb')

    def close(self) -> None:
        self._file.close()
        super().close()


def unpack(archive: Path | Sequence[Path], folder: Path, prefixes: tuple[str, ...], progress: Progress) -> int:
    """Unpack selected files of a `.zip` or `.tar`, compressed or not, into a folder.

    A file of the right size is skipped, so that an interrupted run continues where it stopped. An archive is read
    again only if it or one of its files has changed.

    Args:
        archive: The archive, or the parts of a split tar, in order.
        folder: Folder that the paths in the archive are relative to.
        prefixes: Members whose paths begin with one of these are unpacked.
        progress: Bar for the number of members.

    Returns:
        The number of files written.

    Raises:
        ValueError: For a file that is not such an archive, is damaged or has no member with these prefixes, and for a
            member outside the folder.
    """
    parts = [archive] if isinstance(archive, Path) else list(archive)
    name = str(parts[0]) if len(parts) == 1 else f'{parts[0]} to {parts[-1].name}'
    stamps = [[part.stat().st_size, part.stat().st_mtime_ns] for part in parts]
    note = folder / NOTES / f'{parts[0].name}.json'
    known = json.loads(note.read_text()) if note.is_file() else {}
    if known.get('stamps') == stamps and known['prefixes'] == list(prefixes):
        files = progress.track(known['sizes'].items(), description=f'checking {parts[0].name}')
        if all(_has_size(os.path.join(folder, member), size) for member, size in files):
            return 0
    sizes: dict[str, int] = {}
    written = 0
    try:
        with ExitStack() as stack:
            task = progress.add_task(f'unpacking {parts[0].name}', total=None)
            for member in _members(parts, name, stack):
                progress.advance(task)
                if member.name.startswith(prefixes):
                    written += _write(member, name, folder)
                    sizes[member.name] = member.size
    except (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile) as error:
        raise ValueError(f'{name} is damaged ({error}): the download may be incomplete') from error
    if not sizes:
        below = f' below {" or ".join(prefixes)}' if any(prefixes) else ''
        raise ValueError(f'{name} has no files{below}: this is not the expected archive')
    content = dict(stamps=stamps, prefixes=list(prefixes), sizes=sizes)
    write_atomically(note, json.dumps(content).encode())
    return written


def numbered_parts(folder: Path, stem: str) -> list[Path]:
    """Return the parts `<stem>-00`, `<stem>-01`, ... of a split archive in a folder; empty if there are none.

    Raises:
        FileNotFoundError: If a part before the last one is missing.
    """
    parts = sorted(path for path in folder.glob(f'{stem}-[0-9][0-9]') if path.is_file())
    expected = [folder / f'{stem}-{number:02}' for number in range(int(parts[-1].name[-2:]) + 1)] if parts else []
    missing = [path.name for path in expected if path not in parts]
    if missing:
        raise FileNotFoundError(
            f'{folder} has {len(parts)} parts of {stem}, but lacks {", ".join(missing)}: the archive is split, and '
            'all parts are needed'
        )
    return parts


def _has_size(file: str | Path, size: int) -> bool:
    try:
        found = os.stat(file)  # One call, on a plain string: an archive may have five million files.
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _write(member: Member, archive: str, folder: Path) -> int:
    """Write one file, unless it is complete; return the number of files written."""
    if PurePosixPath(member.name).is_absolute() or '..' in PurePosixPath(member.name).parts:
        raise ValueError(f'{archive} has the member {member.name!r}, which is outside the target folder')
    file = folder / member.name
    if _has_size(file, member.size):
        return 0
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f'{file.name}.partial')
    with member.open() as content, unfinished.open('wb') as target:
        shutil.copyfileobj(content, target)
    unfinished.replace(file)
    return 1


def _members(parts: Sequence[Path], name: str, stack: ExitStack) -> Iterable[Member]:
    if len(parts) == 1 and zipfile.is_zipfile(parts[0]):
        return _zip_members(stack.enter_context(zipfile.ZipFile(parts[0])))
    joined = stack.enter_context(io.BufferedReader(Joined(parts), 1 << 20))
    start = joined.peek(16)
    opener = next((opener for magic, opener in COMPRESSED.items() if start.startswith(magic)), None)
    content = stack.enter_context(opener(joined)) if opener else joined
    try:
        archive = tarfile.open(fileobj=content, mode='r|')  # noqa: SIM115 - closed with its content
    except tarfile.ReadError as error:
        raise ValueError(f'{name} is neither a zip nor a tar archive: the download may be incomplete') from error
    if not opener and not _ends_with_zeros(parts[-1]):
        raise EOFError('the end is missing')
    return _tar_members(archive, content)


def _ends_with_zeros(file: Path) -> bool:
    with file.open('rb') as content:
        content.seek(-min(END_OF_TAR, file.stat().st_size), io.SEEK_END)
        return not any(content.read())


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        if not info.is_dir():
            yield Member(info.filename, info.file_size, partial(archive.open, info))


def _tar_members(archive: tarfile.TarFile, content: Any) -> Iterator[Member]:
    for info in archive:
        if info.isfile():
            yield Member(info.name.removeprefix('./'), info.size, partial(archive.extractfile, info))
    while content.read(1 << 20):  # The checksum of a compressed file is at its end.
        pass
