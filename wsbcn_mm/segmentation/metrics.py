"""Mean IoU that refuses labels which mmseg's metric would drop without a word."""

from collections.abc import Sequence

import numpy as np
from mmengine.logging import print_log
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module()
class StrictIoUMetric(IoUMetric):
    """mmseg's `IoUMetric`, with an error for a label outside the classes and a count of the classes averaged.

    mmseg counts labels with a histogram from 0 to the number of classes, so pixels of any other value count nowhere: a
    perfect prediction scored against Cityscapes `labelIds` comes out as 0. Arguments and results are those of mmseg.

    Raises:
        ValueError: While processing, for a label that is neither a class nor `ignore_index`, naming the file, such
            values and their pixels.
    """

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        if not self.format_only:
            for sample in data_samples:
                self._check_labels(sample)
        super().process(data_batch, data_samples)

    def _check_labels(self, sample: dict) -> None:
        num_classes = len(self.dataset_meta['classes'])
        labels = sample['gt_sem_seg']['data']
        strange = labels[((labels < 0) | (labels >= num_classes)) & (labels != self.ignore_index)]
        if strange.numel():
            values, counts = strange.unique(return_counts=True)
            listed = ', '.join(f'{value} ({pixels} pixels)' for value, pixels in zip(values, counts, strict=True))
            raise ValueError(
                f'labels of {sample.get("seg_map_path", "an unnamed sample")} have the values {listed}: '
                f'0 to {num_classes - 1} ({num_classes} classes) and {self.ignore_index} (ignored) are accepted. '
                'Load them with LoadStrictLabels and a label map'
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        metrics = super().compute_metrics(results)
        if not self.format_only:
            union = np.sum([result[1].numpy() for result in results], axis=0)
            absent = [name for name, area in zip(self.dataset_meta['classes'], union, strict=True) if area == 0]
            note = f'; in neither labels nor predictions: {", ".join(absent)}' if absent else ''
            print_log(f'averaged over {len(union) - len(absent)}/{len(union)} classes{note}', logger='current')
        return metrics
