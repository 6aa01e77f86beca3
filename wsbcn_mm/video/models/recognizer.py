"""The video recognizer: clips in, a loss in training, one score vector per video in testing."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor

from ..data.samples import ClipDataSample

AVERAGES = ('prob', 'score')


@MODELS.register_module()
class Recognizer3d(BaseModel):
    """Backbone and head for clips; the score of a video is the mean over its views.

    Testing uses many views of a video (usually 10 clips x 3 crops), training one. So testing runs `max_test_views`
    views at a time, and the others wait as bytes. The default of 1 never needs more activation memory than training
    with the same number of videos per batch. The result does not depend on `max_test_views`.

    Args:
        backbone: Config of a module (N, C, T, H, W) -> (N, C', T', H', W').
        head: Config of a module with `loss`, features -> (N, K) logits.
        data_preprocessor: Config of the preprocessor.
        average_views: 'prob' averages probabilities over views; 'score' averages logits and applies softmax.
        max_test_views: Number of views per video in one forward pass when testing; None runs all of them at once.

    Raises:
        ValueError: For invalid arguments, and for inputs that are not (N, V, C, T, H, W).
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        head: dict[str, Any],
        data_preprocessor: dict[str, Any] | None = None,
        average_views: str = 'prob',
        max_test_views: int | None = 1,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if average_views not in AVERAGES:
            raise ValueError(f'average_views={average_views!r}: one of {", ".join(AVERAGES)} is expected')
        if max_test_views is not None and max_test_views < 1:
            raise ValueError(f'max_test_views={max_test_views}: at least 1, or None for all views, is expected')
        self.backbone = MODELS.build(backbone)
        self.head = MODELS.build(head)
        widths = getattr(self.backbone, 'out_channels', None), getattr(self.head, 'in_channels', None)
        if None not in widths and widths[0] != widths[1]:
            raise ValueError(f'head.in_channels={widths[1]}: {widths[0]}, the channels of the backbone, is expected')
        self.average_views = average_views
        self.max_test_views = max_test_views

    def forward(
        self, inputs: Tensor, data_samples: Sequence[ClipDataSample] | None = None, mode: str = 'tensor'
    ) -> dict[str, Tensor] | list[ClipDataSample] | Tensor:
        """Run one of three modes.

        Args:
            inputs: (N, V, C, T, H, W), V views of each video; normalised, or uint8, which is normalised here.
            data_samples: N samples; 'loss' reads `gt_label`, 'predict' writes `pred_score` (K,) and `pred_label` ().
            mode: 'loss' returns losses (every view is a training clip), 'predict' returns the samples, 'tensor' returns
                logits (N, V, K).
        """
        if inputs.ndim != 6:
            raise ValueError(f'inputs of shape {tuple(inputs.shape)}: (N, V, C, T, H, W) is expected')
        if mode == 'tensor':
            return self._logits(inputs)
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        raise ValueError(f'mode={mode!r}: one of loss, predict, tensor is expected')

    def loss(self, inputs: Tensor, data_samples: Sequence[ClipDataSample] | None) -> dict[str, Tensor]:
        """Return the losses over N * V clips; each clip has its video's label."""
        if not data_samples or len(data_samples) != len(inputs) or any('gt_label' not in s for s in data_samples):
            raise ValueError(f"mode='loss' needs {len(inputs)} data_samples with a gt_label, got {data_samples}")
        labels = torch.stack([sample.gt_label.reshape(()) for sample in data_samples]).to(inputs.device)
        num_views = inputs.shape[1]
        return self.head.loss(self._logits(inputs).flatten(0, 1), labels.repeat_interleave(num_views))

    def predict(self, inputs: Tensor, data_samples: Sequence[ClipDataSample] | None = None) -> list[ClipDataSample]:
        """Return the samples with scores averaged over views."""
        samples = [ClipDataSample() for _ in inputs] if data_samples is None else list(data_samples)
        num_views = inputs.shape[1]
        chunks = inputs.split(self.max_test_views or num_views, dim=1)
        logits = torch.cat([self._logits(chunk) for chunk in chunks], dim=1).float()
        if self.average_views == 'prob':
            scores = logits.softmax(dim=2).mean(dim=1)
        else:
            scores = logits.mean(dim=1).softmax(dim=1)
        for sample, score in zip(samples, scores, strict=True):
            sample.pred_score = score
            sample.pred_label = score.argmax(dim=0)
        return samples

    def _logits(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, V, K) of inputs (N, V, C, T, H, W), running all views at once."""
        if inputs.dtype == torch.uint8:
            inputs = self.data_preprocessor.normalise(inputs)
        return self.head(self.backbone(inputs.flatten(0, 1))).unflatten(0, inputs.shape[:2])
