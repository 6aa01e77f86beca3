"""Kinds of files by suffix, and what a folder has of each."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

IMAGES = (
    *('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.dib', '.tif', '.tiff', '.webp', '.jp2'),
    *('.pbm', '.pgm', '.ppm', '.pnm', '.avif'),
)
"""Formats that OpenCV reads."""

VIDEOS = (
    *('.mp4', '.m4v', '.mov', '.qt', '.mkv', '.webm', '.avi', '.divx', '.flv', '.f4v', '.wmv', '.asf', '.mpg', '.mpeg'),
    *('.mpe', '.m1v', '.m2v', '.mpv', '.vob', '.ts', '.mts', '.m2ts', '.m2t', '.3gp', '.3g2', '.ogv', '.ogm', '.gif'),
    *('.mxf', '.rm', '.rmvb', '.dv', '.y4m', '.mjpeg', '.mjpg', '.h264', '.264', '.h265', '.265', '.hevc', '.ivf'),
    *('.nut', '.wtv', '.amv', '.insv', '.lrv', '.mk3d', '.mj2'),
)
"""Suffixes that always mean a video: a file that cannot be decoded is damaged, not of another kind."""

NO_VIDEOS = (
    *IMAGES,
    *('.heic', '.heif', '.mpo', '.jxl', '.ico', '.svg', '.psd', '.raw', '.dng', '.cr2', '.nef', '.arw', '.thm', '.xcf'),
    *('.mp3', '.wav', '.flac', '.m4a', '.aac', '.oga', '.opus', '.wma', '.aif', '.aiff', '.mid', '.ac3', '.mka'),
    *('.txt', '.csv', '.tsv', '.json', '.jsonl', '.xml', '.yaml', '.yml', '.toml', '.ini', '.cfg', '.log', '.md'),
    *('.html', '.htm', '.pdf', '.doc', '.docx', '.xls', '.xlsx', '.odt', '.ods', '.rtf', '.tex', '.nfo', '.url'),
    *('.srt', '.vtt', '.ass', '.ssa', '.sub', '.idx', '.sup', '.smi', '.lrc', '.xmp', '.exif', '.gpx', '.bib'),
    *('.py', '.ipynb', '.sh', '.bat', '.m', '.mat', '.npy', '.npz', '.pkl', '.pickle', '.pt', '.pth', '.h5', '.hdf5'),
    *('.zip', '.tar', '.gz', '.tgz', '.bz2', '.xz', '.7z', '.rar', '.part', '.partial', '.crdownload', '.tmp', '.db'),
)
"""Suffixes that never mean a video. FFmpeg opens some of them anyway: a text becomes a film of its letters."""


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder, also where links lead, but hidden ones: macOS has a `._` file beside each."""
    return sorted(_walk(folder))


def suffix_of(file: Path) -> str:
    """Return the suffix in lower case, or the name of a file that has none."""
    return file.suffix.lower() or file.name


def may_be_video(file: Path) -> bool:
    """Return whether FFmpeg is to try the file."""
    return suffix_of(file) not in NO_VIDEOS


def counted(suffixes: Counter[str]) -> str:
    """Return '12 .txt, 3 .json', the most frequent first."""
    return ', '.join(f'{number} {suffix}' for suffix, number in suffixes.most_common())


def _walk(folder: Path) -> Iterator[Path]:
    for at, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith('.')]
        yield from (Path(at, name) for name in names if not name.startswith('.'))
