"""Unpack what was downloaded, once: members that are there in full are left alone."""

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from rich.progress import Progress


class Member(NamedTuple):
    """A file in an archive: its path there, its bytes when unpacked, and what opens it for reading."""

    name: str
    size: int
    open: Callable[[], Any]


def unpack(archive: Path, folder: Path, prefixes: tuple[str, ...], progress: Progress) -> int:
    """Write the wanted files of a `.zip` or `.tar`, compressed or not, below a folder.

    A file of the right size is left alone, so that an interrupted run goes on where it was.

    Args:
        archive: The archive.
        folder: Its paths are taken to be below this folder.
        prefixes: Members whose paths begin with one of these are unpacked.
        progress: Bar for the number of members.

    Returns:
        How many files were written.

    Raises:
        ValueError: For a file that is no such archive or is damaged, or a member that would land outside the folder.
    """
    try:
        with ExitStack() as stack:
            return _write_members(archive, _members(archive, stack), folder, prefixes, progress)
    except (EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise ValueError(f'{archive} is damaged ({error}): the download may be incomplete') from error


def _write_members(
    archive: Path, members: Iterable[Member], folder: Path, prefixes: tuple[str, ...], progress: Progress
) -> int:
    written = 0
    task = progress.add_task(f'unpacking {archive.name}', total=None)
    for member in members:
        progress.advance(task)
        if not member.name.startswith(prefixes):
            continue
        if PurePosixPath(member.name).is_absolute() or '..' in PurePosixPath(member.name).parts:
            raise ValueError(f'{archive} has the member {member.name!r}, outside the folder that it is unpacked into')
        file = folder / member.name
        if file.is_file() and file.stat().st_size == member.size:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f'{file.name}.partial')
        with member.open() as content, unfinished.open('wb') as target:
            shutil.copyfileobj(content, target)
        unfinished.replace(file)
        written += 1
    return written


def _members(archive: Path, stack: ExitStack) -> Iterator[Member]:
    if zipfile.is_zipfile(archive):
        return _zip_members(stack.enter_context(zipfile.ZipFile(archive)))
    if tarfile.is_tarfile(archive):
        return _tar_members(stack.enter_context(tarfile.open(archive)))
    raise ValueError(f'{archive} is neither a zip nor a tar archive: the download may be incomplete')


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        if not info.is_dir():
            yield Member(info.filename, info.file_size, partial(archive.open, info))


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:
        if info.isfile():
            yield Member(info.name.removeprefix('./'), info.size, partial(archive.extractfile, info))
