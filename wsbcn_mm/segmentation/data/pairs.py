"""Pair images with their label files; if one is missing, the error names the nearest existing file."""

import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from ...engine.files import missing, require, some


class Pair(NamedTuple):
    """Image and label file of one sample; the label is None where there are no labels."""

    image: Path
    label: Path | None


def pair_by_stem(
    image_dir: Path, image_suffix: str, label_dir: Path | None = None, label_suffix: str = '.png'
) -> list[Pair]:
    """Return the images below one folder with the labels at the same relative path below another, sorted by path.

    Args:
        image_dir: Folder of the images, searched recursively.
        image_suffix: End of an image's name, such as `_leftImg8bit.png`.
        label_dir: Folder of the labels; if None, the pairs have no label.
        label_suffix: End of a label's name, in place of `image_suffix`.

    Raises:
        FileNotFoundError: If a folder does not exist, there are no images, or an image has no label. The error names
            the nearest existing path.
        ValueError: For a label without an image, or two images of the same name.
    """
    images = _by_stem(image_dir, image_suffix)
    found = f'found {len(images)} images with suffix {image_suffix} under {image_dir}'
    if not images:
        raise FileNotFoundError(f'{found}; {_files_there(image_dir)}')
    _refuse_duplicates(images)
    if label_dir is None:
        return [Pair(image, None) for image in images.values()]
    labels = _by_stem(label_dir, label_suffix)
    found += f', {len(labels)} labels with suffix {label_suffix} under {label_dir}'
    without_label = [label_dir / f'{stem}{label_suffix}' for stem in images if stem not in labels]
    if without_label:
        raise FileNotFoundError(f'{found}; {missing(without_label)}')
    without_image = [str(label) for stem, label in labels.items() if stem not in images]
    if without_image:
        raise ValueError(f'{found}; labels without an image: {some(without_image)}')
    return [Pair(image, labels[stem]) for stem, image in images.items()]


def pair_by_list(list_file: Path, image_dir: Path, image_suffix: str, label_dir: Path, label_suffix: str) -> list[Pair]:
    """Return the images and labels that a file lists, one stem per line, in its order.

    Raises:
        FileNotFoundError: If a file does not exist. The error names the nearest existing path.
        ValueError: For an empty list or a duplicate name.
    """
    require(list_file)
    stems = [line.strip() for line in list_file.read_text().splitlines() if line.strip()]
    if not stems:
        raise ValueError(f'{list_file} has no names')
    twice = [stem for stem, times in Counter(stems).items() if times > 1]
    if twice:
        raise ValueError(f'{list_file} has names more than once: {some(twice)}')
    pairs = [Pair(image_dir / f'{stem}{image_suffix}', label_dir / f'{stem}{label_suffix}') for stem in stems]
    for folder, files in ((image_dir, [p.image for p in pairs]), (label_dir, [p.label for p in pairs if p.label])):
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        gone = [file for file in files if file.name not in there]
        if gone:
            raise FileNotFoundError(
                f'{list_file} has {len(stems)} names, {folder} has files for {len(stems) - len(gone)} of them; '
                f'{missing(gone)}'
            )
    return pairs


def _by_stem(folder: Path, suffix: str) -> dict[str, Path]:
    """Return files by their path below `folder`, without the suffix."""
    require(folder)
    files = [file for file in _files(folder) if file.name.endswith(suffix)]
    return {str(file.relative_to(folder))[: -len(suffix)]: file for file in files}


def _files(folder: Path) -> list[Path]:
    """Return all files below a folder, following links, except hidden ones: macOS puts a `._` file beside each."""
    found = (Path(at, name) for at, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(file for file in found if not file.name.startswith('.'))


def _refuse_duplicates(images: dict[str, Path]) -> None:
    by_name = defaultdict(list)
    for stem, image in images.items():
        by_name[Path(stem).name].append(str(image))
    for name, files in by_name.items():
        if len(files) > 1:
            raise ValueError(f'{len(files)} images are named {name!r}: {some(files)}')


def _files_there(folder: Path) -> str:
    files = _files(folder)
    return f'nearest existing name: {files[0]}' if files else 'it has no files'
