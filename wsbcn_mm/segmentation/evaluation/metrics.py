"""Exact segmentation metrics that reject labels which mmseg's metric silently drops."""

from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.logging import print_log
from mmseg.registry import METRICS
from prettytable import PrettyTable
from torch import Tensor

from ...engine.evaluation.confusion import class_names, count_pairs, draw_confusion, ratio, write_confusion, write_csv
from ...engine.evaluation.streaming_metric import StreamingMetric, mean_of_present
from .boundary import boundary_counts, boundary_distance

COLUMNS = {'mIoU': ('IoU', 'Acc'), 'mDice': ('Dice',), 'mFscore': ('Fscore', 'Precision', 'Recall')}
ABSENT = 'absent'


@METRICS.register_module()
class StrictIoUMetric(StreamingMetric):
    """IoU, pixel accuracy, Dice, F-score and boundary IoU from one integer confusion matrix.

    It replaces mmseg's `IoUMetric` and keeps its result names, in percent: `aAcc` (pixel accuracy), `mIoU` and `mAcc`,
    `mDice`, `mFscore` with `mPrecision` and `mRecall`. It adds `mBoundaryIoU`. mmseg counts in float32, keeps one
    histogram per image, and drops pixels of unknown labels: a perfect prediction scored against Cityscapes `labelIds`
    gets 0. Here such a label is an error, sums are exact, and a perfect prediction scores exactly 100. See
    `StreamingMetric` for ranks, memory and files.

    A class without a value (such as the IoU of a class in neither labels nor predictions) is shown as absent and left
    out of the mean; the report counts the classes present. A class that is labelled but never predicted has an F-score
    of 0; mmseg leaves it out.

    Args:
        ignore_index: Label of pixels that are not scored.
        iou_metrics: Any of 'mIoU', 'mDice' and 'mFscore'.
        beta: Weight of recall against precision in the F-score.
        boundary_ratio: Width of the boundary region as a share of the image's diagonal; None disables boundary IoU.
        **kwargs: Arguments of `StreamingMetric`.

    Raises:
        ValueError: For unknown metrics or a ratio <= 0. While processing: for a label that is neither a class nor
            `ignore_index`, or a prediction that is not a class (the error names the file, the values and their pixels),
            for scores that are not finite, and for samples without labels or path.
    """

    unit = 'images'

    def __init__(
        self,
        ignore_index: int = 255,
        iou_metrics: str | Sequence[str] = ('mIoU',),
        beta: float = 1,
        boundary_ratio: float | None = 0.02,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.metrics = [iou_metrics] if isinstance(iou_metrics, str) else list(iou_metrics)
        unknown = [name for name in self.metrics if name not in COLUMNS]
        if unknown or not self.metrics:
            raise ValueError(f'iou_metrics={self.metrics}: one or more of {", ".join(COLUMNS)} are expected')
        if boundary_ratio is not None and boundary_ratio <= 0:
            raise ValueError(f'boundary_ratio={boundary_ratio}: a share of the diagonal above 0, or None, is expected')
        self.ignore_index = ignore_index
        self.beta = beta
        self.boundary_ratio = boundary_ratio

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        num_classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            image = sample.get('img_path')
            if image is None:
                raise ValueError("a sample has no 'img_path', which makes it count once: keep it in PackSegInputs")
            if 'gt_sem_seg' not in sample:
                raise ValueError(
                    f'{image} has no labels, so it cannot be scored: tools/test.py --format-only writes predictions'
                )
            if 'seg_logits' in sample:
                require_finite(sample['seg_logits']['data'], image)
            predicted = sample['pred_sem_seg']['data'].squeeze(0)
            truth = sample['gt_sem_seg']['data'].squeeze(0).to(predicted.device)
            counted = truth != self.ignore_index
            self._check_labels(sample, truth, counted, num_classes)
            self._check_prediction(image, predicted, counted, num_classes)
            self.add('confusion', count_pairs(truth, predicted, num_classes, counted))
            if self.boundary_ratio is not None:
                distance = boundary_distance(truth.shape, self.boundary_ratio)
                self.add('boundary', boundary_counts(truth, predicted, counted, num_classes, distance))
            self.scored(image)

    def compute_metrics(self, totals: dict[str, Tensor]) -> dict[str, float]:
        confusion = totals['confusion']
        if not confusion.any():
            raise ValueError(f'no pixel has a label: all are ignore_index={self.ignore_index}')
        metrics = {'aAcc': 100 * confusion.diagonal().sum().item() / confusion.sum().item()}
        for name, values in self.class_scores(totals).items():
            metrics[f'm{name}'] = mean_of_present(values)[0]
        return metrics

    def class_scores(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return each metric per class, (K,) float64 from 0 to 1, nan where the class has no value."""
        confusion = totals['confusion']
        right, labelled, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        weight = self.beta**2
        every = {
            'IoU': ratio(right, labelled + predicted - right),
            'Acc': ratio(right, labelled),
            'Dice': ratio(2 * right, labelled + predicted),
            'Fscore': ratio((1 + weight) * right, weight * labelled + predicted),
            'Precision': ratio(right, predicted),
            'Recall': ratio(right, labelled),
        }
        scores = {column: every[column] for name in self.metrics for column in COLUMNS[name]}
        if 'boundary' in totals:
            scores['BoundaryIoU'] = ratio(*totals['boundary'])
        return scores

    def report(self, totals: dict[str, Tensor], metrics: dict[str, float], folder: Path | None) -> None:
        confusion, scores = totals['confusion'], self.class_scores(totals)
        names = class_names(self.dataset_meta, len(confusion))
        table = PrettyTable(['Class', *scores])
        for row in zip(names, *(cells(values, '.2f') for values in scores.values()), strict=True):
            table.add_row(list(row))
        means = [f'aAcc {metrics["aAcc"]:.2f}']
        for name, values in scores.items():
            mean, present = mean_of_present(values)
            means.append(f'm{name} {mean:.2f} ({present}/{len(names)} classes)')
        print_log(f'per class results:\n{table.get_string()}\n{", ".join(means)}', logger='current')
        if folder is not None:
            columns = [cells(values, '.4f') for values in scores.values()]
            pixels = confusion.sum(1).tolist(), confusion.sum(0).tolist()
            rows = list(zip(names, *columns, *pixels, strict=True))
            write_csv(folder / 'per_class.csv', ['class', *scores, 'labelled pixels', 'predicted pixels'], rows)
            write_confusion(folder / 'confusion.csv', confusion, names)
            draw_confusion(folder / 'confusion.png', confusion, names, 'pixels')

    def _check_labels(self, sample: dict, labels: Tensor, counted: Tensor, num_classes: int) -> None:
        strange = labels[((labels < 0) | (labels >= num_classes)) & counted]
        if strange.numel():
            raise ValueError(
                f'labels of {sample.get("seg_map_path", sample["img_path"])} have the values {listed(strange)}: '
                f'0 to {num_classes - 1} ({num_classes} classes) and {self.ignore_index} (ignored) are expected. '
                'Load them with LoadStrictLabels and a label map'
            )

    def _check_prediction(self, image: str, predicted: Tensor, counted: Tensor, num_classes: int) -> None:
        if predicted.shape != counted.shape:
            raise ValueError(
                f'the prediction for {image} has shape {tuple(predicted.shape)}, its labels {tuple(counted.shape)}'
            )
        strange = predicted[((predicted < 0) | (predicted >= num_classes)) & counted]
        if strange.numel():
            raise ValueError(
                f'predictions for {image} have the values {listed(strange)}: the dataset has the classes 0 to '
                f"{num_classes - 1}; set the model's num_classes to {num_classes}"
            )


def require_finite(scores: Tensor, image: str) -> None:
    """Reject non-finite scores: argmax would silently return class 0.

    Raises:
        ValueError: For scores that are infinite or nan. The error names the image.
    """
    # A sum of finite scores is finite; on a CPU it takes a thirtieth of the time of isfinite on each score.
    if not scores.sum(dtype=torch.promote_types(scores.dtype, torch.float32)).isfinite():
        raise ValueError(
            f'the scores of the prediction for {image} are not all finite: the weights diverged, or the precision is '
            'too low'
        )


def cells(values: Tensor, form: str) -> list[str]:
    """Format shares as percentages, nan as `absent`."""
    return [ABSENT if value != value else format(100 * value, form) for value in values.tolist()]


def listed(values: Tensor) -> str:
    """Format the distinct values with their numbers of pixels."""
    unique, counts = values.unique(return_counts=True)
    return ', '.join(f'{value} ({pixels} pixels)' for value, pixels in zip(unique, counts, strict=True))
