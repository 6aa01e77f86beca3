"""From what the loader returns to what the recognizer takes."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class ClipDataPreprocessor(BaseDataPreprocessor):
    """Stack clips and normalise them, both on the model's device.

    ``inputs``: N uint8 tensors (V, C, T, H, W), or one (N, V, C, T, H, W) -> (N, V, C, T, H, W): float32,
    ``(x - mean) / std`` per channel, in training; uint8 in evaluation, where many views wait for their turn and
    ``Recognizer3d`` normalises those that it runs. ``data_samples`` stay as they are, on the device. Bytes travel to
    the device, not floats: a quarter of the transfer.

    Args:
        mean: per channel (R, G, B), in units of 0 to 255; by default ImageNet's.
        std: likewise.
        non_blocking: copy without waiting (useful with pinned memory).

    Raises:
        ValueError: for a std that is not positive, mean and std of different lengths, clips of different shapes in one
            batch, a channel count that does not match, or inputs that are not uint8.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking)
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f'mean={tuple(mean)}, std={tuple(std)}: equally many, and each std above 0, are needed')
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(-1, 1, 1, 1), persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        data = self.cast_data(data)
        inputs = data['inputs']
        clips = inputs if isinstance(inputs, Tensor) else _stack(inputs)
        if clips.ndim != 6 or clips.shape[2] != len(self.mean) or clips.dtype != torch.uint8:
            raise ValueError(
                f'inputs of shape {tuple(clips.shape)}, {clips.dtype}: '
                f'uint8 (N, V, C, T, H, W) with C={len(self.mean)} is needed'
            )
        return {**data, 'inputs': self.normalise(clips) if training else clips}

    def normalise(self, clips: Tensor) -> Tensor:
        """(..., C, T, H, W) in units of 0 to 255 -> the same in float32, ``(x - mean) / std``."""
        return clips.float().sub_(self.mean).div_(self.std)


def _stack(clips: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(clip.shape) for clip in clips}
    if len(shapes) > 1:
        raise ValueError(
            f'clips of different shapes (V, C, T, H, W) in one batch: {sorted(shapes)}; '
            'end the pipeline with a crop or resize to one size'
        )
    return torch.stack(list(clips))
