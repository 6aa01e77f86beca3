"""Cityscapes as it is downloaded: `labelIds` files are read directly, 34 values for 19 classes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from mmseg.datasets import CityscapesDataset
from mmseg.registry import DATASETS

from ...engine.data.watchdog import WatchedItems
from .label_map import IGNORED, LABEL_LOADERS, read_label_file, with_ignored
from .pairs import Pair, pair_by_stem

SPLITS = ('train', 'val', 'test')
IMAGE_SUFFIX = '_leftImg8bit.png'
LABEL_SUFFIX = '_gtFine_labelIds.png'

LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""`labelId` of each class, 'road' to 'bicycle'. Source: `cityscapesscripts/helpers/labels.py`."""

LABEL_MAPS = {
    'labelIds': with_ignored(
        {label_id: index for index, label_id in enumerate(LABEL_IDS)}, set(range(34)) - set(LABEL_IDS)
    ),
    'labelTrainIds': with_ignored({index: index for index in range(len(LABEL_IDS))}, [IGNORED]),
}
"""Label maps of the two encodings that Cityscapes' tools write."""

SCANNED = 200
"""Label files that a dataset looks at to tell the encoding; all others are checked as they are loaded."""


def encoding_of(values: Mapping[str, set[int]]) -> str:
    """'labelIds' or 'labelTrainIds', from the raw values of some label files of one folder.

    Only `labelIds` have 19 to 33, only `labelTrainIds` have 255; a file with neither fits both.

    Args:
        values: The raw values of each file, by its name.

    Raises:
        ValueError: For files of both encodings, a value of neither, or files that all fit both.
    """
    telling: dict[str, tuple[str, int]] = {}
    for file, present in values.items():
        for value in sorted(present):
            if not 0 <= value < 34 and value != IGNORED:
                raise ValueError(
                    f'label file {file} has the value {value}, which is in neither Cityscapes encoding: '
                    'labelIds are 0 to 33, labelTrainIds 0 to 18 and 255'
                )
            if value >= len(LABEL_IDS):
                telling.setdefault('labelTrainIds' if value == IGNORED else 'labelIds', (file, value))
    if len(telling) == 2:
        (first, one), (second, other) = telling['labelIds'], telling['labelTrainIds']
        raise ValueError(
            f'mixed label files: {first} has {one}, as labelIds do, and {second} has {other}, as labelTrainIds do. '
            'All label files of a folder must have one encoding'
        )
    if not telling:
        raise ValueError(
            f'no value of the {len(values)} label files looked at tells labelIds (with 19 to 33) from labelTrainIds '
            "(with 255); say encoding='labelIds' or encoding='labelTrainIds'"
        )
    return next(iter(telling))


@DATASETS.register_module()
class StrictCityscapesDataset(WatchedItems, CityscapesDataset):
    """Cityscapes' fine annotations, with every label value spoken for; its pipeline reads them by `LoadStrictLabels`.

    Its metainfo has `label_ids`, the raw value of each class, which predictions are written in.

    Args:
        split: 'train', 'val' or 'test'. The last one has no public ground truth (its label files are dummies).
        data_root: Folder that has `leftImg8bit/` and `gtFine/`.
        encoding: 'labelIds', 'labelTrainIds', or 'auto' to tell by the values of up to 200 files.
        seg_map_suffix: `_gtFine_labelTrainIds.png` for those who have only these.
        **kwargs: Those of mmseg's dataset.

    Raises:
        FileNotFoundError: For folders, images or labels that are missing, naming the nearest that exist.
        ValueError: For an unknown split or encoding, a folder of both encodings or neither, labels without images,
            images of one name, or a test split whose pipeline loads labels.
    """

    def __init__(
        self,
        split: str,
        data_root: str = 'data/cityscapes',
        encoding: str = 'auto',
        seg_map_suffix: str = LABEL_SUFFIX,
        pipeline: Sequence[Any] = (),
        **kwargs: Any,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f'split={split!r} is unknown: Cityscapes has {", ".join(SPLITS)}')
        if encoding not in ('auto', *LABEL_MAPS):
            raise ValueError(f'encoding={encoding!r} is unknown: choose auto, {", ".join(LABEL_MAPS)}')
        if split == 'test' and any(_loads_labels(step) for step in pipeline):
            raise ValueError(
                "split='test' has no public ground truth, so it cannot be evaluated: take split='val', or write its "
                'predictions for the Cityscapes server with tools/test.py --format-only'
            )
        self.split = split
        self.encoding = encoding
        super().__init__(
            data_root=data_root,
            data_prefix=dict(img_path=f'leftImg8bit/{split}', seg_map_path=f'gtFine/{split}'),
            seg_map_suffix=seg_map_suffix,
            pipeline=pipeline,
            **kwargs,
        )
        names = self.METAINFO['classes']
        self._metainfo['label_ids'] = tuple(LABEL_IDS[names.index(name)] for name in self._metainfo['classes'])

    def load_data_list(self) -> list[dict]:
        labels = None if self.split == 'test' else Path(self.data_prefix['seg_map_path'])
        pairs = pair_by_stem(Path(self.data_prefix['img_path']), self.img_suffix, labels, self.seg_map_suffix)
        label_map = None if labels is None else self._label_map(pairs)
        return [self._sample(pair, label_map) for pair in pairs]

    def _sample(self, pair: Pair, label_map: dict[int, int] | None) -> dict:
        sample = dict(img_path=str(pair.image), reduce_zero_label=self.reduce_zero_label, seg_fields=[])
        if pair.label is not None:
            sample |= dict(seg_map_path=str(pair.label), label_map=label_map)
        return sample

    def _label_map(self, pairs: Sequence[Pair]) -> dict[int, int]:
        """{raw value: class}, with the classes that `metainfo` chose."""
        encoding = self.encoding
        if encoding == 'auto':
            step = -(-len(pairs) // SCANNED)
            looked_at = [os.fspath(pair.label) for pair in pairs[::step] if pair.label]
            encoding = encoding_of({file: set(np.unique(read_label_file(file)).tolist()) for file in looked_at})
            print_log(
                f'{self.data_prefix["seg_map_path"]}: {len(pairs)} label files, {encoding} by the values of '
                f'{len(looked_at)} of them',
                logger='current',
            )
        chosen = self.label_map or {}
        return {raw: chosen.get(index, index) for raw, index in LABEL_MAPS[encoding].items()}


def _loads_labels(step: Any) -> bool:
    if isinstance(step, Mapping):
        return step.get('type') in LABEL_LOADERS
    return type(step).__name__ in LABEL_LOADERS
