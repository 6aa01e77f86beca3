"""Split archives are read as one stream, and a second run reads only what changed."""

import gzip
import io
import os
import re
import tarfile
from pathlib import Path

import pytest
from rich.console import Console

from wsbcn_mm.engine.data.archives import numbered_parts, unpack
from wsbcn_mm.engine.data.preparation import progress_bar

FILES = {f'set/{number}.webm': os.urandom(1000 + 700 * number) for number in range(8)}


def tar(files: dict[str, bytes], compress: bool = True) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode='w:gz' if compress else 'w') as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def cut(folder: Path, content: bytes, parts: int = 5) -> list[Path]:
    step = -(-len(content) // parts)
    for number in range(parts):
        (folder / f'set-{number:02}').write_bytes(content[number * step : (number + 1) * step])
    return numbered_parts(folder, 'set')


def run(archive: Path | list[Path], folder: Path) -> int:
    with progress_bar(Console(file=io.StringIO())) as progress:
        return unpack(archive, folder, ('set/',), progress)


@pytest.mark.parametrize('compress', [True, False])
def test_parts_are_one_archive_that_is_read_once(tmp_path: Path, compress: bool) -> None:
    parts = cut(tmp_path, tar(FILES, compress))
    assert len(parts) == 5
    assert run(parts, tmp_path) == len(FILES)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == FILES
    times = [part.stat() for part in parts]
    for part, time in zip(parts, times, strict=True):  # same size and time, but unreadable
        part.write_bytes(b'x' * time.st_size)
        os.utime(part, ns=(time.st_atime_ns, time.st_mtime_ns))
    assert run(parts, tmp_path) == 0
    (tmp_path / 'set/3.webm').unlink()
    with pytest.raises(ValueError, match=r'set-00 to set-04 is neither a zip nor a tar archive: the download may be '):
        run(parts, tmp_path)


def test_missing_and_truncated_files_are_written_again(tmp_path: Path) -> None:
    parts = cut(tmp_path, tar(FILES))
    run(parts, tmp_path)
    (tmp_path / 'set/3.webm').unlink()
    (tmp_path / 'set/5.webm').write_bytes(b'half')
    assert run(parts, tmp_path) == 2
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == FILES


@pytest.mark.parametrize('compress', [True, False])
@pytest.mark.parametrize('unpacked_before', [False, True])
def test_a_missing_last_part_is_damage_even_if_its_files_exist(
    tmp_path: Path, compress: bool, unpacked_before: bool
) -> None:
    parts = cut(tmp_path, tar(FILES, compress))
    if unpacked_before:
        run(parts, tmp_path)
    with pytest.raises(ValueError, match=r'set-00 to set-03 is damaged \(.*\): the download may be incomplete$'):
        run(parts[:-1], tmp_path)


def test_a_damaged_checksum_is_found(tmp_path: Path) -> None:
    content = bytearray(tar(FILES))
    content[-6] ^= 1
    (tmp_path / 'set.tgz').write_bytes(content)
    with pytest.raises(ValueError, match=r'set.tgz is damaged \(CRC check failed'):
        run(tmp_path / 'set.tgz', tmp_path)


def test_a_gap_in_the_parts_is_named(tmp_path: Path) -> None:
    assert numbered_parts(tmp_path, 'set') == []
    for part in cut(tmp_path, tar(FILES))[1:4:2]:
        part.unlink()
    message = f'{tmp_path} has 3 parts of set, but lacks set-01, set-03: the archive is split, and all parts are needed'
    with pytest.raises(FileNotFoundError, match=f'^{re.escape(message)}$'):
        numbered_parts(tmp_path, 'set')


def test_members_outside_the_folder_are_rejected(tmp_path: Path) -> None:
    (tmp_path / 'set.tar').write_bytes(tar({'set/../../secret.webm': b''}, compress=False))
    with pytest.raises(
        ValueError, match=r"set.tar has the member 'set/../../secret.webm', which is outside the target folder"
    ):
        run(tmp_path / 'set.tar', tmp_path)
    (tmp_path / 'other.tar').write_bytes(tar({'other/1.webm': b''}))
    with pytest.raises(ValueError, match=r'other.tar has no files below set/: this is not the expected archive$'):
        run(tmp_path / 'other.tar', tmp_path)
    (tmp_path / 'empty.tgz').write_bytes(gzip.compress(b''))
    with pytest.raises(ValueError, match=r'empty.tgz is neither a zip nor a tar archive'):
        run(tmp_path / 'empty.tgz', tmp_path)
