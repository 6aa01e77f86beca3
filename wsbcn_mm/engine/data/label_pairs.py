"""Images and masks of a recipe's data sets, checked before the Runner is built: files, sizes and label values.

The data sets of this project check themselves; these checks are for all others, such as mmsegmentation's own.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS, TRANSFORMS, Registry
from PIL import Image

from ..files import nearest, require, some
from ..recipe.tree import dicts_in
from .file_kinds import counted, files_below, suffix_of
from .watchdog import WatchedItems

SIZES_READ = 20_000
"""Pairs whose sizes are compared; of more, so many spread over all."""

MASKS_READ = 200
"""Masks whose values are looked at, spread over all of a data set."""

IGNORED = 255

SWITCH = 'check_pairs = False in the recipe switches this check off'


def check_label_pairs(cfg: Config, loaders: Sequence[str] = ('train_dataloader', 'val_dataloader')) -> None:
    """Check that all images and masks of a segmentation recipe exist and fit each other, and that labels are classes.

    Masks are compared with the classes of their data set where mmseg's `LoadAnnotations` reads them, which lets any
    value pass. Data sets that are read from elsewhere than the file system are left out.

    Args:
        cfg: A recipe. With `check_pairs=False` nothing is checked.
        loaders: Keys of the loaders to look at.

    Raises:
        FileNotFoundError: For folders, lists, images or masks that do not exist, naming the nearest that do.
        ValueError: For images and masks of different sizes, masks of colours, and label values that are no class.
    """
    if cfg.get('default_scope') != 'mmseg' or not cfg.get('check_pairs', True):
        return
    accepted = {node['ignore_index'] for node in dicts_in(cfg.get('model')) if 'ignore_index' in node} | {IGNORED}
    for loader in loaders:
        with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
            for node in _datasets(cfg.get(loader), registry):
                _check_dataset(f'{loader}.dataset', node, accepted)


def _datasets(loader: Any, registry: Registry) -> Iterator[dict]:
    """Yield the configs of data sets of files in a loader's config."""
    for node in dicts_in((loader or {}).get('dataset')):
        kind = node.get('type')
        found = registry.get(kind) if isinstance(kind, str) else kind
        if isinstance(found, type) and issubclass(found, BaseDataset) and not issubclass(found, WatchedItems):
            yield node


def _check_dataset(name: str, node: Mapping[str, Any], ignored: set[int]) -> None:
    dataset = DATASETS.build(dict(node, pipeline=[], lazy_init=True))
    if not hasattr(dataset, 'seg_map_suffix') or dataset.backend_args:
        return
    images, masks = (Path(dataset.data_prefix.get(kind) or '') for kind in ('img_path', 'seg_map_path'))
    loads_masks = [step for step in dicts_in(node.get('pipeline')) if 'Annotation' in str(step.get('type'))]
    require(images)
    if dataset.ann_file:
        require(Path(dataset.ann_file))
    samples = dataset.load_data_list()
    if not samples:
        raise FileNotFoundError(
            f'{name}.img_suffix={dataset.img_suffix!r}: {images} has no such file, but '
            f'{counted(Counter(map(suffix_of, files_below(images)))) or "none at all"}'
        )
    if not all('img_path' in sample for sample in samples):
        return
    _check_files(f'{name}.img_suffix={dataset.img_suffix!r}', [sample['img_path'] for sample in samples])
    if not loads_masks or not all('seg_map_path' in sample for sample in samples):
        return
    require(masks)
    _check_files(f'{name}.seg_map_suffix={dataset.seg_map_suffix!r}', [sample['seg_map_path'] for sample in samples])
    _check_sizes(name, samples)
    steps = [step for step in loads_masks if step['type'] == 'LoadAnnotations']
    classes = dataset.metainfo.get('classes')
    if steps and classes:
        _check_values(name, samples, steps[0], classes, ignored)


def _check_files(argument: str, paths: Sequence[str]) -> None:
    """Raise FileNotFoundError for paths that do not exist, by listing each folder once."""
    there: dict[str, set[str]] = {}
    for folder in {os.path.dirname(path) for path in paths}:
        there[folder] = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
    gone = [path for path in paths if os.path.basename(path) not in there[os.path.dirname(path)]]
    if gone:
        raise FileNotFoundError(
            f'{argument}: {len(gone)} of {len(paths)} files do not exist: {some(gone)}; {nearest(Path(gone[0]))}. '
            f'{SWITCH}'
        )


def _spread(samples: Sequence[Any], number: int) -> Sequence[Any]:
    return samples[:: -(-len(samples) // number)]


def _check_sizes(name: str, samples: Sequence[Mapping[str, Any]]) -> None:
    chosen = _spread(samples, SIZES_READ)
    with ThreadPoolExecutor(8) as pool:
        sizes = pool.map(lambda sample: (_size(sample['img_path'], True), _size(sample['seg_map_path'])), chosen)
    wrong = [
        f'{sample["img_path"]} is {image[0]} x {image[1]} pixels, {sample["seg_map_path"]} {mask[0]} x {mask[1]}'
        for sample, (image, mask) in zip(chosen, sizes, strict=True)
        if image and mask and image != mask
    ]
    if wrong:
        raise ValueError(f'{name}: {len(wrong)} masks have another size than their images: {some(wrong)}. {SWITCH}')


def _size(path: str, turned: bool = False) -> tuple[int, int] | None:
    """Return width and height, of an image as it is loaded; None for a format that Pillow does not know."""
    try:
        with Image.open(path) as image:
            exif = image.getexif() if turned and image.format == 'JPEG' else {}
            return image.size[::-1] if exif.get(0x0112, 1) > 4 else image.size
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return None


def _check_values(
    name: str, samples: Sequence[Mapping[str, Any]], step: Mapping[str, Any], classes: Sequence[str], ignored: set[int]
) -> None:
    """Read masks as the pipeline does, and raise ValueError for values that are no class."""
    load = TRANSFORMS.build(dict(step))
    chosen = _spread(samples, MASKS_READ)
    pixels: dict[int, int] = defaultdict(int)
    example: dict[int, str] = {}
    for sample in chosen:
        path = sample['seg_map_path']
        try:
            labels = load(dict(sample, seg_fields=[]))['gt_seg_map']
        except Exception as error:
            raise ValueError(f'{name}: mask {path} cannot be read: {type(error).__name__} {error}') from error
        if labels.ndim != 2:
            raise ValueError(
                f'{name}: mask {path} has the shape {labels.shape}: (height, width) is accepted, one label per pixel. '
                'tools/data/convert_masks.py makes such masks of colours'
            )
        for value, count in zip(*np.unique(labels, return_counts=True), strict=True):
            pixels[int(value)] += int(count)
            example.setdefault(int(value), path)
    strange = {value: count for value, count in sorted(pixels.items()) if value >= len(classes)}
    unknown = {value: count for value, count in strange.items() if value not in ignored}
    remedy = 'LoadStrictLabels in place of LoadAnnotations maps values to classes: docs/own_images.md'
    if unknown:
        listed = ', '.join(f'{value} ({count} pixels, as in {example[value]})' for value, count in unknown.items())
        raise ValueError(
            f'{name}: masks have the values {listed}: 0 to {len(classes) - 1} ({len(classes)} classes) and '
            f'{", ".join(map(str, sorted(ignored)))} (ignored) are accepted. {remedy}'
        )
    if set(pixels) == {0, 255} and len(classes) == 2:
        raise ValueError(
            f'{name}: all {len(chosen)} masks looked at have the values 0 and 255 only, and 255 is ignored, so '
            f'{classes[1]!r} has no pixel. {remedy}, with label_map={{0: 0, 255: 1}}'
        )
    found = ', '.join(map(str, sorted(pixels)))
    print_log(f'{name}: {len(samples)} pairs; the labels of {len(chosen)} masks are {found}', 'current')
