"""Pascal VOC 2012 and the labels of SBD, with a label map that covers every raw value."""

from pathlib import Path

from mmseg.datasets import PascalVOCDataset
from mmseg.registry import DATASETS

from ...engine.data.watchdog import WatchedItems
from .label_map import IGNORED, with_ignored
from .pairs import pair_by_list

LABEL_MAP = with_ignored({index: index for index in range(21)}, [IGNORED])
"""VOC's label files hold the class indices; 0 is 'background', and 255 marks borders and difficult objects."""


@DATASETS.register_module()
class StrictVOCDataset(WatchedItems, PascalVOCDataset):
    """The images that a list names, with their palette label files. The pipeline needs `LoadStrictLabels`.

    It takes the arguments of mmseg's dataset.

    Raises:
        FileNotFoundError: If the list, images or labels are missing. The error names the nearest existing path.
        ValueError: For an empty list or a duplicate name.
    """

    def load_data_list(self) -> list[dict]:
        folders = (Path(self.data_prefix[kind]) for kind in ('img_path', 'seg_map_path'))
        image_dir, label_dir = folders
        pairs = pair_by_list(Path(self.ann_file), image_dir, self.img_suffix, label_dir, self.seg_map_suffix)
        chosen = self.label_map or {}
        label_map = {raw: chosen.get(index, index) for raw, index in LABEL_MAP.items()}
        return [
            dict(
                img_path=str(image),
                seg_map_path=str(label),
                label_map=label_map,
                reduce_zero_label=self.reduce_zero_label,
                seg_fields=[],
            )
            for image, label in pairs
        ]
