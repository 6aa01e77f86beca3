"""The part of a segmentor that is deployed, and its evaluation after export."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models import EncoderDecoder
from torch import Tensor, nn

AXES = {0: 'batch', 2: 'height', 3: 'width'}
"""Dynamic axes of the input of an exported file."""

CHECK_SIZES = ('256x256', '257x385')


class Network(nn.Module):
    """Input normalisation, backbone and decode head of a segmentor: pixels in, logits at the same resolution out.

    It omits the auxiliary head and the losses. It also omits the padding, sliding window and resizing to the original
    image, which the recipe's test does around the network.

    Args:
        model: An EncoderDecoder without a cascade.

    Shape:
        (N, 3, H, W) float32 from 0 to 255 -> (N, num_classes, H, W)

    Raises:
        ValueError: For another kind of segmentor.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        if not isinstance(model, EncoderDecoder) or isinstance(model.decode_head, nn.ModuleList):
            raise ValueError(f'model is a {type(model).__name__}: an EncoderDecoder without a cascade is expected')
        mean, std = pixel_statistics(model.data_preprocessor)
        self.register_buffer('mean', mean)
        self.register_buffer('std', std)
        self.backbone = model.backbone
        self.neck = model.neck if model.with_neck else nn.Identity()
        self.decode_head = model.decode_head
        self.align_corners = model.align_corners

    def forward(self, images: Tensor) -> Tensor:
        logits = self.decode_head(self.neck(self.backbone((images - self.mean) / self.std)))
        return F.interpolate(logits, images.shape[2:], mode='bilinear', align_corners=self.align_corners)


def channel_order(model: EncoderDecoder) -> str:
    """Return the channel order of `Network`'s input, 'RGB' or 'BGR'; mmcv reads images as BGR."""
    return 'RGB' if model.data_preprocessor._channel_conversion else 'BGR'


def pixel_statistics(preprocessor: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the preprocessor's mean and standard deviation, (3, 1, 1) each; 0 and 1 if it does not normalise."""
    if not preprocessor._enable_normalize:
        return torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    return preprocessor.mean.clone(), preprocessor.std.clone()


class ExportedHead(nn.Module):
    """Decode head that runs an exported `Network` on the preprocessor's normalised images."""

    def __init__(self, run: Callable[[Tensor], Tensor], model: EncoderDecoder) -> None:
        super().__init__()
        self.run = run
        self.threshold = model.decode_head.threshold
        self.mean, self.std = pixel_statistics(model.data_preprocessor)

    def predict(self, images: Tensor, _metas: Any, _test_cfg: Any) -> Tensor:
        return self.run(images * self.std + self.mean)


def answer_with(run: Callable[[Tensor], Tensor], model: EncoderDecoder) -> None:
    """Replace the model's own layers by an exported `Network`, so that the recipe's test evaluates it."""
    model.decode_head = ExportedHead(run, model)
    model.backbone = model.neck = nn.Identity()
