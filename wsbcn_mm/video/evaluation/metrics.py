"""Accuracy of clip classification."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.registry import METRICS
from torch import Tensor

from ...engine.evaluation.confusion import class_names, count_pairs, draw_confusion, ratio, write_confusion, write_csv
from ...engine.evaluation.streaming_metric import StreamingMetric, mean_of_present


@METRICS.register_module()
class TopKAccuracy(StreamingMetric):
    """Top-1, top-5 and mean-class accuracy, in percent.

    It keeps a confusion matrix, and a histogram of the number of classes that score at least as high as the label. Ties
    count as errors, so a model with equal scores for all classes is never right. See `StreamingMetric` for ranks,
    memory and files.

    A clip that the dataset marks as `unreadable` is counted but not scored.

    The results are `acc/top1`, `acc/top5`, `acc/mean_class` (mean over the classes that occur) and `acc/num_clips`.
    Top-k with k not below the number of classes is left out, and the log says so.

    Args:
        topk: The k of top-k.
        per_class: Whether to log the accuracy of every class; `per_class.csv` always has it.
        prefix: Prefix of the names of the results.
        kwargs: Arguments of `StreamingMetric`.

    Raises:
        ValueError: If scores are missing or not finite, a label is outside the scores, or as in `StreamingMetric`.
    """

    default_prefix = 'acc'
    unit = 'annotated clips'

    def __init__(
        self, topk: Sequence[int] = (1, 5), per_class: bool = False, prefix: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(prefix=prefix, **kwargs)
        if not topk or min(topk) < 1:
            raise ValueError(f'topk={topk!r}: at least one k, each at least 1, is expected')
        self.topk = tuple(topk)
        self.per_class = per_class

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        for sample in data_samples:
            scores, label, clip_id = sample.get('pred_score'), int(sample['gt_label']), sample.get('sample_idx')
            name = sample.get('path', clip_id)
            if clip_id is None:
                raise ValueError(f"clip {name!r} has no 'sample_idx', which makes it count once")
            if sample.get('unreadable'):
                self.not_readable(int(clip_id))
                continue
            if scores is None or not torch.isfinite(scores).all():
                raise ValueError(f'pred_score of clip {name!r} is missing or not finite')
            if not 0 <= label < len(scores):
                raise ValueError(f'gt_label={label} of clip {name!r}: 0 to {len(scores) - 1} is expected')
            if len(class_names(self.dataset_meta, len(scores))) != len(scores):
                raise ValueError(
                    f'the model scores {len(scores)} classes, but the dataset names another number of classes'
                )
            above = (scores >= scores[label]).sum() - 1
            others = scores.clone()
            others[label] = -torch.inf
            truth = torch.tensor(label, device=scores.device)
            predicted = torch.where(above > 0, others.argmax(), truth)
            self.add('above', above.view(1).bincount(minlength=len(scores)))
            self.add('confusion', count_pairs(truth, predicted, len(scores)))
            self.scored(int(clip_id))

    def compute_metrics(self, totals: dict[str, Tensor]) -> dict[str, float]:
        above, confusion = totals['above'], totals['confusion']
        classes, clips = len(above), int(above.sum())
        metrics = {f'top{k}': 100 * int(above[:k].sum()) / clips for k in self.topk if k == 1 or k < classes}
        metrics['mean_class'] = mean_of_present(ratio(confusion.diagonal(), confusion.sum(1)))[0]
        metrics['num_clips'] = clips
        return metrics

    def report(self, totals: dict[str, Tensor], metrics: dict[str, float], folder: Path | None) -> None:
        confusion = totals['confusion']
        right, counts = confusion.diagonal(), confusion.sum(1)
        accuracies, names = ratio(right, counts), class_names(self.dataset_meta, len(confusion))
        for k in self.topk:
            if k > 1 and k >= len(names):
                print_log(f'top-{k} left out: it is always right with {len(names)} classes', logger='current')
        mean, present = mean_of_present(accuracies)
        print_log(f'mean-class accuracy {mean:.2f} ({present}/{len(names)} classes)', logger='current')
        rows = list(zip(names, accuracies.tolist(), right.tolist(), counts.tolist(), strict=True))
        if self.per_class:
            lines = [
                f'{hits}/{count} {100 * accuracy:6.2f} %  {name}' if count else f'absent  {name}'
                for name, accuracy, hits, count in rows
            ]
            print_log('accuracy of each class\n' + '\n'.join(lines), logger='current')
        if folder is not None:
            shown = [(name, f'{100 * acc:.4f}' if count else 'absent', hits, count) for name, acc, hits, count in rows]
            write_csv(folder / 'per_class.csv', ['class', 'accuracy', 'right', 'clips'], shown)
            write_confusion(folder / 'confusion.csv', confusion, names)
            draw_confusion(folder / 'confusion.png', confusion, names, 'clips')
