"""Kinetics and Something-Something as downloaded, with a few small clips."""

import functools
import io
import json
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.video.clip_files import write_clip, write_frames


@functools.cache
def clip_bytes(suffix: str = '.mp4', num_frames: int = 6) -> bytes:
    """A video whose k-th frame shows k."""
    codec = {'.mp4': 'libx264', '.webm': 'libvpx-vp9'}[suffix]
    with tempfile.TemporaryDirectory() as folder:
        return write_clip(Path(folder, f'clip{suffix}'), num_frames, 36, 64, codec).read_bytes()


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    """A `.tar.gz` or `.tgz`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, 'w:gz') as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f'./{name}')
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


KINETICS = {
    'train': {'AAAAAAAAAAA': 'zumba', 'BBBBBBBBBBB': 'air drumming', 'CCCCCCCCCCC': 'zumba', 'DDDDDDDDDDD': 'tai chi'},
    'val': {'EEEEEEEEEEE': 'air drumming', '-_FFFFFFFF_': 'tai chi'},
}
"""Class of each YouTube id."""


def kinetics_name(youtube_id: str) -> str:
    return f'{youtube_id}_000007_000017.mp4'


def write_kinetics_annotations(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, clips in KINETICS.items():
        lines = [f'"{name}",{youtube_id},7,17,{split},0\n' for youtube_id, name in clips.items()]
        (folder / f'{split}.csv').write_text('label,youtube_id,time_start,time_end,split,is_cc\n' + ''.join(lines))


def kinetics_archives(root: Path) -> None:
    """CVDF's download: D was removed from YouTube, C is damaged in its part and replaced, X is not annotated."""
    write_kinetics_annotations(root / 'annotations')
    clip = clip_bytes()
    train = {kinetics_name(name): clip for name in ('AAAAAAAAAAA', 'BBBBBBBBBBB', 'XXXXXXXXXXX')}
    damaged = {kinetics_name('CCCCCCCCCCC'): clip[:100]}
    write_tar(root / 'train' / 'part_0.tar.gz', train)
    write_tar(root / 'train' / 'part_1.tar.gz', damaged)
    write_tar(root / 'val' / 'part_0.tar.gz', {kinetics_name(name): clip for name in KINETICS['val']})
    replaced = {f'replacement_for_corrupted_k400/{name}': clip_bytes(num_frames=9) for name in damaged}
    write_tar(root / 'replacement_for_corrupted_k400.tgz', replaced)


CLASSES = ['Opening something', 'Pulling something from left to right', 'Pulling something from right to left']
SOMETHING = {'train': ('11', '12', '13'), 'validation': ('14', '15'), 'test': ('16',)}
"""Clips of each list; the class of a clip is its id modulo 3."""
COUNTS = {'train': 3, 'val': 2, 'test': 1}


def write_something_lists(root: Path, version: str, names: str) -> None:
    """The four lists under names such as 'labels/{}.json'."""
    for name, clips in SOMETHING.items():
        entries = [{'id': clip, 'label': 'x', 'template': CLASSES[int(clip) % 3]} for clip in clips]
        if version == 'v1':
            lines = [f'{entry["id"]};{entry["template"]}' if name != 'test' else entry['id'] for entry in entries]
            content = '\n'.join(lines) + '\n'
        else:
            content = json.dumps(entries if name != 'test' else [{'id': clip} for clip in clips], indent=1)
        write_files(root, {names.format(name): content.encode()})
    labels = '\n'.join(CLASSES) if version == 'v1' else json.dumps({name: str(i) for i, name in enumerate(CLASSES)})
    write_files(root, {names.format('labels'): labels.encode()})


def something_parts(root: Path, version: str, zipped: bool = False) -> None:
    """The download: an archive split into three parts, with lists as in the label package of v2, or v1's lists."""
    name = f'20bn-something-something-{version}'
    clips = [clip for listed in SOMETHING.values() for clip in listed]
    if version == 'v2':
        members = {f'{name}/{clip}.webm': clip_bytes('.webm') for clip in clips}
        with tempfile.TemporaryDirectory() as folder:
            write_something_lists(Path(folder), 'v2', 'labels/{}.json')
            with zipfile.ZipFile(root / '20bn-something-something-download-package-labels.zip', 'w') as archive:
                for file in sorted(Path(folder, 'labels').iterdir()):
                    archive.write(file, f'labels/{file.name}')
    else:
        write_something_lists(root, 'v1', 'something-something-v1-{}.csv')
        with tempfile.TemporaryDirectory() as folder:
            frames = sorted(write_frames(Path(folder, 'frames'), num_frames=5).iterdir())
            members = {f'{name}/{clip}/{file.name}': file.read_bytes() for clip in clips for file in frames}
    write_tar(root / 'whole.tgz', members)
    content = (root / 'whole.tgz').read_bytes()
    (root / 'whole.tgz').unlink()
    step = -(-len(content) // 3)
    parts = {f'{name}-{part:02}': content[part * step : (part + 1) * step] for part in range(3)}
    if not zipped:
        write_files(root, parts)
    for number, part in enumerate(parts if zipped else ()):
        with zipfile.ZipFile(root / f'20bn-something-something-download-package-{number:02}.zip', 'w') as archive:
            archive.writestr(part, parts[part])
