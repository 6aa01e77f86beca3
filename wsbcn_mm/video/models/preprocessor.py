"""Convert a batch of the loader to the recognizer's input."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class ClipDataPreprocessor(BaseDataPreprocessor):
    """Stack clips and normalise them, both on the model's device.

    `inputs` are N uint8 tensors (V, C, T, H, W), or one (N, V, C, T, H, W). The result is (N, V, C, T, H, W). In
    training it is float32, `(x - mean) / std` per channel. In evaluation it is uint8, because many views wait for their
    turn; `Recognizer3d` normalises the views that it runs. `data_samples` are only moved to the device. Bytes are
    copied to the device, not floats, which is a quarter of the transfer.

    Args:
        mean: Mean per channel (R, G, B), from 0 to 255; by default ImageNet's.
        std: Standard deviation per channel, likewise.
        non_blocking: Whether to copy without waiting (useful with pinned memory).

    Raises:
        ValueError: For a std that is not positive, mean and std of different lengths, clips of different shapes in one
            batch, a wrong number of channels, or inputs that are not uint8.
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
            raise ValueError(f'mean={tuple(mean)}, std={tuple(std)}: equal lengths and each std above 0 are expected')
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(-1, 1, 1, 1), persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        data = self.cast_data(data)
        inputs = data['inputs']
        clips = inputs if isinstance(inputs, Tensor) else _stack(inputs)
        if clips.ndim != 6 or clips.shape[2] != len(self.mean) or clips.dtype != torch.uint8:
            raise ValueError(
                f'inputs of shape {tuple(clips.shape)}, {clips.dtype}: '
                f'uint8 (N, V, C, T, H, W) with C={len(self.mean)} is expected'
            )
        return {**data, 'inputs': self.normalise(clips) if training else clips}

    def normalise(self, clips: Tensor) -> Tensor:
        """Return `(x - mean) / std` in float32 for clips (..., C, T, H, W) with values from 0 to 255."""
        return clips.float().sub_(self.mean).div_(self.std)


def _stack(clips: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(clip.shape) for clip in clips}
    if len(shapes) > 1:
        raise ValueError(
            f'clips of different shapes (V, C, T, H, W) in one batch: {sorted(shapes)}; '
            'end the pipeline with a crop or resize to one size'
        )
    return torch.stack(list(clips))
