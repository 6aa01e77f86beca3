"""Write predictions as label files for a test server, as only the server has the ground truth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS
from PIL import Image

from ..data.label_map import LABEL_LOADERS, map_labels
from .metrics import require_finite


@METRICS.register_module()
class SavePredictions(BaseMetric):
    """Write each prediction as `<image name>.png`, (H, W) uint8, in the raw values of the dataset's label files.

    These are the `label_ids` of the dataset's metainfo, one per class: Cityscapes' server accepts only them. Without
    `label_ids`, class indices are written. The result is the number of files.

    Args:
        out_dir: Folder, created if missing.
        **kwargs: Arguments of mmengine's metric.

    Raises:
        ValueError: While processing: for a predicted value that is not a class, or scores that are not finite. At the
            end: if two images of the same name overwrote each other.
    """

    default_prefix = None

    def __init__(self, out_dir: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.out_dir = Path(out_dir)
        self.out_dir.mkdir(parents=True, exist_ok=True)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        raw = self.dataset_meta.get('label_ids') or range(len(self.dataset_meta['classes']))
        for sample in data_samples:
            if 'seg_logits' in sample:
                require_finite(sample['seg_logits']['data'], sample['img_path'])
            classes = sample['pred_sem_seg']['data'].squeeze(0).cpu().numpy().astype(np.uint8)
            image = sample['img_path']
            file = self.out_dir / f'{Path(image).stem}.png'
            Image.fromarray(map_labels(classes, dict(enumerate(raw)), file)).save(file)
            self.results.append((file.name, image))

    def compute_metrics(self, results: list) -> dict[str, float]:
        by_name = dict(results)
        for name, image in results:
            if by_name[name] != image:
                raise ValueError(
                    f'{image} and {by_name[name]} were both written to {self.out_dir / name}: give them different names'
                )
        return dict(saved=len(by_name))


def save_predictions_only(cfg: Config, folder: str) -> None:
    """Make a segmentation recipe's test write predictions to `folder`, without loading labels or evaluating."""
    dataset = cfg.test_dataloader.dataset
    for part in dataset.get('datasets', [dataset]):
        part.pipeline = [step for step in part.pipeline if step['type'] not in LABEL_LOADERS]
    cfg.test_evaluator = dict(type='SavePredictions', out_dir=folder)
