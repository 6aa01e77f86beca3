"""Cityscapes as downloaded: its `labelIds` files are read directly and their 34 values mapped to 19 classes."""

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
"""`labelId` of each class, from 'road' to 'bicycle'. Source: `cityscapesscripts/helpers/labels.py`."""

LABEL_MAPS = {
    'labelIds': with_ignored(
        {label_id: index for index, label_id in enumerate(LABEL_IDS)}, set(range(34)) - set(LABEL_IDS)
    ),
    'labelTrainIds': with_ignored({index: index for index in range(len(LABEL_IDS))}, [IGNORED]),
}
"""Label maps of the two encodings that Cityscapes' tools write."""

SCANNED = 200
"""Largest number of label files that a dataset reads to detect the encoding. Each file is checked when it is loaded."""


def encoding_of(values: Mapping[str, set[int]]) -> str:
    """Return 'labelIds' or 'labelTrainIds', detected from the raw values of some label files of one folder.

    Only `labelIds` use 19 to 33, and only `labelTrainIds` use 255. A file with none of these values fits both.

    Args:
        values: Raw values of each file, by file name.

    Raises:
        ValueError: If the files mix both encodings, a value belongs to neither, or every file fits both.
    """
    telling: dict[str, tuple[str, int]] = {}
    for file, present in values.items():
        for value in sorted(present):
            if not 0 <= value < 34 and value != IGNORED:
                raise ValueError(
                    f'label file {file} has the value {value}, which belongs to neither Cityscapes encoding: '
                    'labelIds are 0 to 33, labelTrainIds are 0 to 18 and 255'
                )
            if value >= len(LABEL_IDS):
                telling.setdefault('labelTrainIds' if value == IGNORED else 'labelIds', (file, value))
    if len(telling) == 2:
        (first, one), (second, other) = telling['labelIds'], telling['labelTrainIds']
        raise ValueError(
            f'label files of both encodings in one folder: {first} has {one}, which only labelIds have, and {second} '
            f'has {other}, which only labelTrainIds have. Keep one encoding per folder'
        )
    if not telling:
        raise ValueError(
            f"encoding='auto': the {len(values)} label files read fit both labelIds and labelTrainIds, as none has a "
            "value from 19 to 33 or 255. Set encoding='labelIds' or encoding='labelTrainIds'"
        )
    return next(iter(telling))


@DATASETS.register_module()
class StrictCityscapesDataset(WatchedItems, CityscapesDataset):
    """Cityscapes' fine annotations with a label map that covers every raw value. The pipeline needs `LoadStrictLabels`.

    Its metainfo has `label_ids`, the raw value of each class; predictions are written in these values.

    Args:
        split: 'train', 'val' or 'test'. 'test' has no public ground truth: its label files are dummies.
        data_root: Folder with `leftImg8bit/` and `gtFine/`.
        encoding: 'labelIds', 'labelTrainIds', or 'auto' to detect it from the values of up to 200 files.
        seg_map_suffix: `_gtFine_labelTrainIds.png` where only these files exist.
        **kwargs: Arguments of mmseg's dataset.

    Raises:
        FileNotFoundError: If folders, images or labels are missing. The error names the nearest existing path.
        ValueError: For an unknown split or encoding, a folder with both encodings or neither, labels without images,
            two images of the same name, or a test split whose pipeline loads labels.
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
            raise ValueError(f'split={split!r}: one of {", ".join(SPLITS)} is expected')
        if encoding not in ('auto', *LABEL_MAPS):
            raise ValueError(f'encoding={encoding!r}: one of auto, {", ".join(LABEL_MAPS)} is expected')
        if split == 'test' and any(_loads_labels(step) for step in pipeline):
            raise ValueError(
                "split='test' has no public ground truth, so it cannot be evaluated. Use split='val', or write "
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
        """Return {raw value: class} for the classes selected by `metainfo`."""
        encoding = self.encoding
        if encoding == 'auto':
            step = -(-len(pairs) // SCANNED)
            looked_at = [os.fspath(pair.label) for pair in pairs[::step] if pair.label]
            encoding = encoding_of({file: set(np.unique(read_label_file(file)).tolist()) for file in looked_at})
            print_log(
                f'{self.data_prefix["seg_map_path"]}: {len(pairs)} label files, encoding {encoding} detected from '
                f'{len(looked_at)} of them',
                logger='current',
            )
        chosen = self.label_map or {}
        return {raw: chosen.get(index, index) for raw, index in LABEL_MAPS[encoding].items()}


def _loads_labels(step: Any) -> bool:
    if isinstance(step, Mapping):
        return step.get('type') in LABEL_LOADERS
    return type(step).__name__ in LABEL_LOADERS
