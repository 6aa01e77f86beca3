"""Prepare Cityscapes: from the two downloaded archives, or their folders, to a checked dataset with a manifest."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from ...engine.data.archives import unpack
from ...engine.data.preparation import progress_bar
from ...engine.files import nearest
from .cityscapes import IMAGE_SUFFIX, LABEL_MAPS, LABEL_SUFFIX, SPLITS
from .inventory import report, write_manifest
from .pairs import pair_by_stem

PUBLISHED = {'train': 2975, 'val': 500, 'test': 1525}
"""Images of each split. Source: Cordts et al., The Cityscapes Dataset, CVPR 2016."""

ARCHIVES = {'leftImg8bit': 'leftImg8bit_trainvaltest.zip', 'gtFine': 'gtFine_trainvaltest.zip'}
"""Folders and the archives they come in, from https://www.cityscapes-dataset.com (needs a login)."""


def prepare_cityscapes(root: Path, console: Console, published: Mapping[str, int] = PUBLISHED) -> list[str]:
    """Unpack the archives, pair images with labels, count them, and write `root/manifest.json`.

    A second run is quick. Test images are counted; their dummy labels are not read.

    Args:
        root: Folder of the downloads.
        console: Shows the progress and the report.
        published: Published number of images of each split.

    Returns:
        Problems, one line each; empty for a complete dataset.

    Raises:
        FileNotFoundError: If neither a folder nor its archive exists, or images have no labels.
        ValueError: For labels without images, two images of the same name, or a file that is not an archive.
    """
    absent = {
        root / folder: f'{root / folder}/ or {root / archive}'
        for folder, archive in ARCHIVES.items()
        if not (root / folder).is_dir() and not (root / archive).is_file()
    }
    if absent:
        raise FileNotFoundError(
            f'missing: {"; ".join(absent.values())}; {nearest(next(iter(absent)))}. Download '
            f'{" and ".join(ARCHIVES.values())} from https://www.cityscapes-dataset.com/downloads into {root}'
        )
    with progress_bar(console) as progress:
        for folder, archive in ARCHIVES.items():
            if (root / archive).is_file():
                unpack(root / archive, root, (f'{folder}/',), progress)
    pairs = {
        split: pair_by_stem(
            root / 'leftImg8bit' / split,
            IMAGE_SUFFIX,
            None if split == 'test' else root / 'gtFine' / split,
            LABEL_SUFFIX,
        )
        for split in SPLITS
    }
    label_map = dict.fromkeys(('train', 'val'), LABEL_MAPS['labelIds'])
    problems = write_manifest(root, pairs, label_map, published, console)
    report(console, root, problems)
    return problems
