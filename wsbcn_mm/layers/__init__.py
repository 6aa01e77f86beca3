"""Layers: Weight Standardization convolutions and Batch-Channel Normalization. They need only torch."""

from .batch_channel_norm import BatchChannelNorm, zero_init_last_norm_
from .ws_conv import (
    WSConv1d,
    WSConv2d,
    WSConv3d,
    WSConvTranspose1d,
    WSConvTranspose2d,
    WSConvTranspose3d,
    standardize_once,
)

__all__ = [
    'BatchChannelNorm',
    'WSConv1d',
    'WSConv2d',
    'WSConv3d',
    'WSConvTranspose1d',
    'WSConvTranspose2d',
    'WSConvTranspose3d',
    'standardize_once',
    'zero_init_last_norm_',
]
