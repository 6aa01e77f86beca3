"""The factorised convolution of R(2+1)D: space, norm, ReLU, time."""

from typing import Any

from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from torch import Tensor, nn

Triple = tuple[int, int, int]


def factorized_mid_channels(in_channels: int, out_channels: int, divisor: int = 1) -> int:
    """Return the width between the two halves of a factorised 3x3x3 convolution.

    It is the largest width for which 1x3x3 + 3x1x1 has no more weights than 3x3x3 (Tran et al., "A Closer Look at
    Spatiotemporal Convolutions", section 3.5; torchvision's `VideoResNet`), rounded to a multiple of `divisor`.

    Args:
        divisor: 1 keeps the published width. Norms over groups of channels need their number of groups here.
    """
    width = (in_channels * out_channels * 3 * 3 * 3) // (in_channels * 3 * 3 + 3 * out_channels)
    return nearest_multiple(width, divisor)


def nearest_multiple(width: int, divisor: int) -> int:
    """Return the multiple of `divisor` nearest to `width`, at least `divisor`; ties round up."""
    return max(divisor, (width + divisor // 2) // divisor * divisor)


class Conv2Plus1d(nn.Module):
    """1 x k x k convolution, norm, activation, k x 1 x 1 convolution; a convolution layer for mmcv's `ConvModule`.

    Parameter names follow mmaction2's `Conv2plus1d` (`conv_s`, `bn_s`, `conv_t`). Departures: both halves are built
    from `conv_cfg`, the norm between them is named after its type (`gn_s` for GN), and `mid_channels` is an argument.

    Args:
        kernel_size, stride, padding, dilation: (T, H, W) of the factorised convolution.
        mid_channels: Channels between the halves.

    Shape:
        (N, in_channels, T, H, W) -> (N, out_channels, T', H', W')
    """

    transposed = False
    output_padding = (0, 0, 0)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        stride: Triple = (1, 1, 1),
        padding: Triple = (0, 0, 0),
        dilation: Triple = (1, 1, 1),
        groups: int = 1,
        bias: bool = False,
        *,
        mid_channels: int,
        conv_cfg: dict[str, Any],
        norm_cfg: dict[str, Any],
        act_cfg: dict[str, Any],
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = dilation
        self.groups = groups
        self.conv_s = build_conv_layer(
            conv_cfg,
            in_channels,
            mid_channels,
            (1, *kernel_size[1:]),
            stride=(1, *stride[1:]),
            padding=(0, *padding[1:]),
            dilation=(1, *dilation[1:]),
            groups=groups,
            bias=bias,
        )
        self.norm_name, norm = build_norm_layer(norm_cfg, mid_channels, postfix='_s')
        self.add_module(self.norm_name, norm)
        self.relu = build_activation_layer(act_cfg)
        self.conv_t = build_conv_layer(
            conv_cfg,
            mid_channels,
            out_channels,
            (kernel_size[0], 1, 1),
            stride=(stride[0], 1, 1),
            padding=(padding[0], 0, 0),
            dilation=(dilation[0], 1, 1),
            groups=groups,
            bias=bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, self.norm_name)(self.conv_s(x))
        return self.conv_t(self.relu(x))
