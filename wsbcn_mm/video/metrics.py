"""Accuracy of clip classification."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS


@METRICS.register_module()
class TopKAccuracy(BaseMetric):
    """Top-1, top-5 and mean-class accuracy, in percent.

    Keeps three integers per clip: its id, its label and how many classes score above its label (ties count against
    it, so a model that scores all classes alike is never right). Each clip id counts once, whichever ranks saw it: the
    copies that a distributed sampler adds are dropped by id. mmengine's own collection interleaves the ranks and
    cuts at the length of the dataset, which is right only for its default sampler.

    Results: ``acc/top1``, ``acc/top5``, ``acc/mean_class`` (mean over the classes that occur), ``acc/num_clips``. With
    fewer classes than some k, that top-k is left out and the log says so.

    Args:
        topk: the k of top-k.
        per_class: log the accuracy of every class.
        collect_device: unused, kept for mmengine's signature.
        prefix: before the names of the results.

    Raises:
        ValueError: if scores are missing or not finite, a label lies outside the scores, or nothing was scored.
    """

    default_prefix = 'acc'

    def __init__(
        self,
        topk: Sequence[int] = (1, 5),
        per_class: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not topk or min(topk) < 1:
            raise ValueError(f'topk={topk!r}: at least one k, each at least 1, is needed')
        self.topk = tuple(topk)
        self.per_class = per_class

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        for sample in data_samples:
            scores, label, clip_id = sample.get('pred_score'), int(sample['gt_label']), sample.get('sample_idx')
            name = sample.get('path', clip_id)
            if clip_id is None:
                raise ValueError(f"clip {name!r} has no 'sample_idx', by which it is counted once")
            if scores is None or not torch.isfinite(scores).all():
                raise ValueError(f'pred_score of clip {name!r} is missing or not finite')
            if not 0 <= label < len(scores):
                raise ValueError(f'gt_label={label} of clip {name!r}: the model has {len(scores)} classes')
            above = int((scores >= scores[label]).sum()) - 1
            self.results.append((int(clip_id), label, above, len(scores)))

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather all ranks and compute.

        Args:
            size: number of clips in the dataset.
        """
        gathered = [result for part in all_gather_object(self.results) for result in part]
        self.results.clear()
        metrics: list[dict[str, float]] = [{}]
        if is_main_process():
            once = {clip_id: rest for clip_id, *rest in gathered}
            self._report_coverage(len(once), size)
            values = self.compute_metrics(list(once.values()))
            metrics = [{f'{self.prefix}/{name}' if self.prefix else name: value for name, value in values.items()}]
        broadcast_object_list(metrics)
        return metrics[0]

    def compute_metrics(self, results: list[list[int]]) -> dict[str, float]:
        """Accuracies from (label, classes above the label, number of classes) of each clip."""
        if not results:
            raise ValueError('no clip was scored: the dataset or the loader is empty')
        labels, above, num_classes = torch.tensor(results).unbind(1)
        classes = int(num_classes[0])
        metrics = {}
        for k in self.topk:
            if k > 1 and k >= classes:
                print_log(f'top-{k} left out: it is always right with {classes} classes', logger='current')
            else:
                metrics[f'top{k}'] = 100 * (above < k).double().mean().item()
        counts = labels.bincount(minlength=classes)
        right = labels[above == 0].bincount(minlength=classes)
        present = counts > 0
        metrics['mean_class'] = 100 * (right[present] / counts[present]).double().mean().item()
        metrics['num_clips'] = len(results)
        if self.per_class:
            self._log_per_class(right.tolist(), counts.tolist())
        return metrics

    def _report_coverage(self, scored: int, size: int) -> None:
        annotated = (self.dataset_meta or {}).get('num_annotated', size)
        complete = scored == annotated
        rest = '' if complete else ': the accuracy is over these only'
        print_log(
            f'{scored} of {annotated} annotated clips scored{rest}',
            logger='current',
            level=logging.INFO if complete else logging.WARNING,
        )

    def _log_per_class(self, right: list[int], counts: list[int]) -> None:
        names = (self.dataset_meta or {}).get('classes') or [f'class {label}' for label in range(len(counts))]
        lines = [
            f'{hits}/{count} {100 * hits / count:6.2f} %  {name}' if count else f'absent  {name}'
            for hits, count, name in zip(right, counts, names, strict=True)
        ]
        print_log('accuracy of each class\n' + '\n'.join(lines), logger='current')
