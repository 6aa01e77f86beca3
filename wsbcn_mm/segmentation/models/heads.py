"""DeepLabV3 and V3+ heads: mmsegmentation's heads with three options that they lack.

* mmseg's V3+ head passes `conv_cfg` to 4 of its 14 normalised convolutions; here the separable ones receive it too.
* The 3x3 bottleneck of mmseg's V3 head can be the 1x1 of the DeepLabV3 paper and of the BCN authors' `deeplab.py`.
* The image pooling branch can omit its norm; otherwise a BatchNorm model cannot train at one image per device.

The classifier `conv_seg` is always a plain convolution, because no norm follows it.
"""

from typing import Any

from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmseg.models.decode_heads import ASPPHead, DepthwiseSeparableASPPHead
from mmseg.registry import MODELS
from torch import nn


@MODELS.register_module()
class DeepLabV3Head(ASPPHead):
    """ASPP head of DeepLabV3 (arXiv 1706.05587): (N, C, h, w) features to (N, num_classes, h, w) logits.

    Departure from the authors' `deeplab.py`: mmseg concatenates the image pooling branch first, the authors last.

    Args:
        bottleneck_kernel_size: Kernel of the convolution after the concatenation: 3 in mmseg, 1 in the paper and in
            the BCN authors' code.
        image_pool_norm: Whether a norm follows the convolution of the image pooling branch. If False, this convolution
            is a plain one with a bias.
        **kwargs: Arguments of mmseg's `ASPPHead`.

    Raises:
        ValueError: For an even kernel size.
    """

    def __init__(self, *, bottleneck_kernel_size: int = 3, image_pool_norm: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if bottleneck_kernel_size < 1 or bottleneck_kernel_size % 2 == 0:
            raise ValueError(f'bottleneck_kernel_size={bottleneck_kernel_size!r}: a positive odd number is expected')
        if bottleneck_kernel_size != 3:
            self.bottleneck = ConvModule(
                (len(self.dilations) + 1) * self.channels,
                self.channels,
                bottleneck_kernel_size,
                padding=bottleneck_kernel_size // 2,
                conv_cfg=self.conv_cfg,
                norm_cfg=self.norm_cfg,
                act_cfg=self.act_cfg,
            )
        if not image_pool_norm:
            self.image_pool[1] = conv_without_norm(self)


@MODELS.register_module()
class DeepLabV3PlusHead(DepthwiseSeparableASPPHead):
    """ASPP head and decoder of DeepLabV3+ (arXiv 1802.02611); `conv_cfg` reaches every normalised convolution.

    Args:
        c1_channels: Channels of the low-level features in the decoder. mmseg's recipes use 48. Norms with 32 groups
            need 64 or another number for which 32 divides both `c1_channels` and `channels + c1_channels`.
        image_pool_norm: Whether a norm follows the convolution of the image pooling branch. If False, this convolution
            is a plain one with a bias.
        **kwargs: Arguments of mmseg's `DepthwiseSeparableASPPHead`.
    """

    def __init__(self, *, c1_channels: int, image_pool_norm: bool = True, **kwargs: Any) -> None:
        super().__init__(c1_channels=c1_channels, **kwargs)
        for i, dilation in enumerate(self.dilations):
            if dilation > 1:
                self.aspp_modules[i] = self._separable_conv(self.in_channels, dilation)
        self.sep_bottleneck = nn.Sequential(
            self._separable_conv(self.channels + c1_channels), self._separable_conv(self.channels)
        )
        if not image_pool_norm:
            self.image_pool[1] = conv_without_norm(self)

    def _separable_conv(self, in_channels: int, dilation: int = 1) -> DepthwiseSeparableConvModule:
        return DepthwiseSeparableConvModule(
            in_channels,
            self.channels,
            3,
            padding=dilation,
            dilation=dilation,
            conv_cfg=self.conv_cfg,
            norm_cfg=self.norm_cfg,
            act_cfg=self.act_cfg,
        )


def conv_without_norm(head: ASPPHead) -> ConvModule:
    """Build a plain 1x1 convolution for the image pooling branch of `head`; standardised filters would need a norm."""
    return ConvModule(head.in_channels, head.channels, 1, act_cfg=head.act_cfg)
