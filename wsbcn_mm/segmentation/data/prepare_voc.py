"""Prepare Pascal VOC 2012 with SBD: from the archives, or their folders, to a checked dataset with a manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from mmseg.datasets import PascalVOCDataset
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from ...engine.data.archives import unpack
from ...engine.data.preparation import progress_bar
from ...engine.files import missing, nearest, require, update_atomically
from .inventory import report, write_manifest
from .label_map import IGNORED
from .pairs import pair_by_list
from .voc import LABEL_MAP

PUBLISHED = {'train': 1464, 'val': 1449, 'aug': 9118}
"""Images of each split.

VOC 2012 has 1464 + 1449 = 2913 (Everingham et al., The PASCAL VOC Challenge 2012 Development Kit, segmentation). SBD
adds 9118; with VOC's 1464 they are the 10582 of train_aug (Chen et al., Rethinking Atrous Convolution for Semantic
Image Segmentation, section 4).
"""

LABEL_FOLDERS = {'train': 'SegmentationClass', 'val': 'SegmentationClass', 'aug': 'SegmentationClassAug'}
VOC_PARTS = tuple(
    f'VOCdevkit/VOC2012/{part}' for part in ('JPEGImages/', 'SegmentationClass/', 'ImageSets/Segmentation/')
)
SBD_PARTS = tuple(f'benchmark_RELEASE/dataset/{part}' for part in ('cls/', 'train.txt', 'val.txt'))
VOC_ARCHIVE = 'VOCtrainval_11-May-2012.tar'
SBD_ARCHIVE = 'benchmark.tgz'
SBD_FOLDERS = ('benchmark_RELEASE/dataset', 'VOCdevkit/VOCaug/dataset')
"""The folder in SBD's archive, and the one that mmsegmentation's guide names."""
BORDER_COLOUR = (224, 224, 192)


def prepare_voc(root: Path, console: Console, published: Mapping[str, int] = PUBLISHED) -> list[str]:
    """Unpack the archives, convert SBD's labels, count the images, and write `manifest.json`.

    `SegmentationClassAug/` and `ImageSets/Segmentation/aug.txt` receive the images of SBD that are in neither VOC's
    train nor its val. Once both exist, SBD itself is no longer needed. A second run is quick.

    Args:
        root: Folder of the downloads; the dataset is `VOCdevkit/VOC2012` in it.
        console: Shows the progress and the report.
        published: Published number of images of each split.

    Returns:
        Problems, one line each; empty for a complete dataset.

    Raises:
        FileNotFoundError: If VOC, SBD or some of their files are missing. The error says where they belong.
        ValueError: For a damaged list, `.mat` file or archive.
    """
    voc = root / 'VOCdevkit' / 'VOC2012'
    sbd = next((root / folder for folder in SBD_FOLDERS if (root / folder).is_dir()), root / SBD_FOLDERS[0])
    aug_list, aug_labels = voc / 'ImageSets' / 'Segmentation' / 'aug.txt', voc / 'SegmentationClassAug'
    converted = aug_list.is_file() and aug_labels.is_dir()
    absent = {}
    if not voc.is_dir() and not (root / VOC_ARCHIVE).is_file():
        absent[voc] = f'{voc}/ or {root / VOC_ARCHIVE}, from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/'
    if not converted and not sbd.is_dir() and not (root / SBD_ARCHIVE).is_file():
        lacking = [str(made) for made in (aug_list, aug_labels) if not made.exists()]
        absent[sbd] = (
            f'{sbd}/ or {root / SBD_ARCHIVE}, from http://home.bharathh.info/pubs/codes/SBD/download.html, '
            f'or the files made from it: {" and ".join(lacking)}'
        )
    if absent:
        raise FileNotFoundError(f'missing: {"; ".join(absent.values())}; {nearest(next(iter(absent)))}')
    with progress_bar(console) as progress:
        if (root / VOC_ARCHIVE).is_file():
            unpack(root / VOC_ARCHIVE, root, VOC_PARTS, progress)
        if (root / SBD_ARCHIVE).is_file():
            unpack(root / SBD_ARCHIVE, root, SBD_PARTS, progress)
        lists = voc / 'ImageSets' / 'Segmentation'
        if sbd.is_dir():
            own = {name for split in ('train', 'val') for name in read_names(lists / f'{split}.txt')}
            names = sorted({name for split in ('train', 'val') for name in read_names(sbd / f'{split}.txt')} - own)
            convert_sbd_labels(sbd / 'cls', names, aug_labels, progress)
            update_atomically(aug_list, ''.join(f'{name}\n' for name in names).encode())
    pairs = {
        split: pair_by_list(lists / f'{split}.txt', voc / 'JPEGImages', '.jpg', voc / folder, '.png')
        for split, folder in LABEL_FOLDERS.items()
    }
    problems = write_manifest(voc, pairs, dict.fromkeys(pairs, LABEL_MAP), published, console)
    report(console, voc, problems)
    counts = {split: len(samples) for split, samples in pairs.items()}
    console.print(
        f'trainval {counts["train"] + counts["val"]}, train_aug {counts["train"] + counts["aug"]}', highlight=False
    )
    return problems


def read_names(file: Path) -> list[str]:
    """Return the names in a list of VOC or SBD, one per line.

    Raises:
        FileNotFoundError: If the list does not exist. The error names the nearest existing path.
    """
    require(file)
    return file.read_text().split()


def read_sbd_labels(file: Path) -> np.ndarray:
    """Return the classes in a `.mat` file of SBD's `cls/`, (H, W) uint8.

    Raises:
        ValueError: If the file is damaged or not a label file of SBD.
    """
    from scipy.io import loadmat

    try:
        labels = loadmat(file, squeeze_me=True, struct_as_record=False)['GTcls'].Segmentation
    except Exception as error:  # scipy has no error class for a damaged file
        raise ValueError(f'{file} is not an SBD label file with GTcls.Segmentation ({error!r})') from error
    return np.asarray(labels, np.uint8)


def convert_sbd_labels(folder: Path, names: Sequence[str], out_dir: Path, progress: Progress) -> None:
    """Convert `<name>.mat` files of a folder to palette PNGs, unless the PNG exists and is not older.

    Raises:
        FileNotFoundError: If `.mat` files are missing.
        ValueError: If one is damaged.
    """
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    gone = [folder / f'{name}.mat' for name in names if f'{name}.mat' not in there]
    if gone:
        raise FileNotFoundError(f"SBD's lists name {len(names)} label files; {missing(gone)}")
    out_dir.mkdir(parents=True, exist_ok=True)
    colours = dict(enumerate(PascalVOCDataset.METAINFO['palette'])) | {IGNORED: BORDER_COLOUR}
    palette = [channel for index in range(256) for channel in colours.get(index, (0, 0, 0))]
    for name in progress.track(names, description='converting labels of SBD'):
        source, target = folder / f'{name}.mat', out_dir / f'{name}.png'
        if target.is_file() and target.stat().st_mtime_ns >= source.stat().st_mtime_ns:
            continue
        picture = Image.fromarray(read_sbd_labels(source)).convert('P')
        picture.putpalette(palette)
        partial = out_dir / f'{name}.partial'
        picture.save(partial, format='PNG')
        partial.replace(target)
