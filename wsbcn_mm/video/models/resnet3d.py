"""3D ResNets: R3D, inflated (I3D style), SlowOnly and R(2+1)D, all as arguments of one class.

`ResNet3d` comes first, then its blocks, its stages and their convolutions.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule, build_activation_layer
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ...layers import zero_init_last_norm_
from ...microbatch.activation_memory import recomputed
from .conv2plus1d import Conv2Plus1d, factorized_mid_channels, nearest_multiple

Config = dict[str, Any]
Triple = tuple[int, int, int]

INFLATE_STYLES = ('3x3x3', '3x1x1')


@MODELS.register_module()
class ResNet3d(BaseModule):
    """ResNet for clips.

    The defaults are R3D as in torchvision's `r3d_18` (Tran et al., "A Closer Look at Spatiotemporal Convolutions"): a
    3 x 7 x 7 stem of stride (1, 2, 2), no pooling, and 3 x 3 x 3 blocks that halve time from the second stage on. The
    other networks are arguments, listed in `configs/_base_/models`: `factorize=True` is R(2+1)D; the I3D style has a
    5 x 7 x 7 stem, both pools and `inflate_style='3x1x1'`; SlowOnly has `inflate=(0, 0, 1, 1)` and no temporal stride.

    Parameter names follow mmaction2's `ResNet3d` (`conv1.conv`, `layer1.0.conv1.bn`, `layer2.0.downsample.conv`). A
    norm is named after its kind (`gn` for GN); `BCN` is named `bn`. Convolutions are initialised from Kaiming's normal
    distribution over the fan-out.

    Args:
        depth: 18 and 34 (basic blocks), 50, 101 and 152 (bottlenecks).
        in_channels: Channels of a frame.
        base_channels: Channels of the stem; stage i has `base_channels * 2**i` times the block's expansion.
        num_stages: 1 to 4.
        out_indices: Stages whose outputs are returned, by default the last. One index returns a tensor, several return
            a tuple.
        spatial_strides, temporal_strides, dilations: One value per stage. Dilation is spatial.
        conv1_kernel: (T, H, W) of the stem, odd.
        conv1_stride_t, conv1_stride_s: Strides of the stem in time and in space.
        with_pool1: Whether a 1 x 3 x 3 max pool with strides `pool1_stride_t` and `pool1_stride_s` follows the stem.
        with_pool2: Whether a max pool over two frames follows the first stage (Wang et al., "Non-local Neural
            Networks", table 1).
        inflate: Which blocks convolve over time: one value per stage, or instead of it a sequence of one value per
            block.
        inflate_style: Temporal kernels of a bottleneck, '3x3x3' or '3x1x1'. Basic blocks always have 3 x 3 x 3.
        factorize: Whether every convolution over time and space is split into 1 x k x k and k x 1 x 1, with norm and
            ReLU between them.
        mid_channels_divisor: Widths between factorised halves are multiples of this; 1 is the published network. GN and
            BCN need a multiple of their number of groups.
        conv_cfg, norm_cfg, act_cfg: mmcv configs; they apply to every convolution, norm and activation.
        norm_eval: Whether to freeze the statistics of every norm that keeps running ones (BN, SyncBN, BCN); parameters
            still learn.
        frozen_stages: The stem (0) and the stages up to this one neither learn nor move statistics; -1 freezes nothing.
        with_cp: Whether to checkpoint the activations of every block: less memory, one more forward pass. Running
            statistics still move once.
        zero_init_residual: Whether every residual branch starts at zero, whatever the kind of its last norm.

    Shape:
        (N, in_channels, T, H, W) -> (N, out_channels, T', H', W')

    Raises:
        ValueError: For an unknown depth or style, and for values that do not fit the stages or the layers' rank.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        base_channels: int = 64,
        num_stages: int = 4,
        out_indices: Sequence[int] | None = None,
        spatial_strides: Sequence[int] = (1, 2, 2, 2),
        temporal_strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        conv1_kernel: Sequence[int] = (3, 7, 7),
        conv1_stride_t: int = 1,
        conv1_stride_s: int = 2,
        with_pool1: bool = False,
        pool1_stride_t: int = 1,
        pool1_stride_s: int = 2,
        with_pool2: bool = False,
        inflate: Sequence[int | Sequence[int]] = (1, 1, 1, 1),
        inflate_style: str = '3x3x3',
        factorize: bool = False,
        mid_channels_divisor: int = 1,
        conv_cfg: Config | None = None,
        norm_cfg: Config | None = None,
        act_cfg: Config | None = None,
        norm_eval: bool = False,
        frozen_stages: int = -1,
        with_cp: bool = False,
        zero_init_residual: bool = False,
        init_cfg: Config | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if depth not in ARCHITECTURES:
            raise ValueError(f'depth={depth}: one of {", ".join(map(str, sorted(ARCHITECTURES)))} is expected')
        if num_stages not in range(1, 5):
            raise ValueError(f'num_stages={num_stages}: 1 to 4 is expected')
        if inflate_style not in INFLATE_STYLES:
            raise ValueError(f'inflate_style={inflate_style!r}: one of {", ".join(INFLATE_STYLES)} is expected')
        if frozen_stages not in range(-1, num_stages + 1):
            raise ValueError(f'frozen_stages={frozen_stages}: -1 (nothing) to {num_stages} (every stage) is expected')
        kernel = _triple_of_odd('conv1_kernel', conv1_kernel)
        per_stage = {
            'spatial_strides': spatial_strides,
            'temporal_strides': temporal_strides,
            'dilations': dilations,
            'inflate': inflate,
        }
        for name, values in per_stage.items():
            if len(values) < num_stages:
                raise ValueError(f'{name}={tuple(values)}: a value for each of the {num_stages} stages is expected')
        out_indices = (num_stages - 1,) if out_indices is None else tuple(out_indices)
        if not out_indices or any(i not in range(num_stages) for i in out_indices):
            raise ValueError(f'out_indices={out_indices}: stages from 0 to {num_stages - 1} are expected')

        conv_cfg = {'type': 'Conv3d'} if conv_cfg is None else conv_cfg
        norm_cfg = {'type': 'BN3d'} if norm_cfg is None else norm_cfg
        act_cfg = {'type': 'ReLU', 'inplace': True} if act_cfg is None else act_cfg
        cfg: Config = {'conv_cfg': conv_cfg, 'norm_cfg': norm_cfg, 'act_cfg': act_cfg}

        self.depth = depth
        self.num_stages = num_stages
        self.out_indices = out_indices
        self.norm_eval = norm_eval
        self.frozen_stages = frozen_stages

        stem_mid = nearest_multiple(45 * base_channels // 64, mid_channels_divisor) if factorize else None
        self.conv1 = conv_norm_act(
            in_channels,
            base_channels,
            kernel,
            stride=(conv1_stride_t, conv1_stride_s, conv1_stride_s),
            mid_channels=stem_mid,
            **cfg,
        )
        self._check_rank(conv_cfg, norm_cfg)
        self.maxpool = (
            nn.MaxPool3d((1, 3, 3), (pool1_stride_t, pool1_stride_s, pool1_stride_s), (0, 1, 1)) if with_pool1 else None
        )
        self.pool2 = nn.MaxPool3d((2, 1, 1), (2, 1, 1)) if with_pool2 else None

        block, num_blocks = ARCHITECTURES[depth]
        width = base_channels
        self.feature_channels: list[int] = []
        for i in range(num_stages):
            layer = make_stage(
                block,
                width,
                base_channels * 2**i,
                num_blocks[i],
                stride=(temporal_strides[i], spatial_strides[i], spatial_strides[i]),
                dilation=dilations[i],
                inflate=_inflation_of_blocks(inflate[i], num_blocks[i], stage=i),
                inflate_style=inflate_style,
                mid_channels_divisor=mid_channels_divisor if factorize else None,
                with_cp=with_cp,
                **cfg,
            )
            self.add_module(f'layer{i + 1}', layer)
            width = base_channels * 2**i * block.expansion
            self.feature_channels.append(width)
        self.out_channels = self.feature_channels[out_indices[-1]]

        for module in self.modules():
            if isinstance(module, _ConvNd):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock3d | Bottleneck3d):
                    zero_init_last_norm_(module.last_norm)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        # Otherwise mmengine's init_weights would initialise the stem again, after init_cfg loaded it.
        self.conv1.is_init = True

    def _check_rank(self, conv_cfg: Config, norm_cfg: Config) -> None:
        """Reject layers of another rank: they can be built, but fail in the first forward without naming the config."""
        conv = self.conv1.conv.conv_s if isinstance(self.conv1.conv, Conv2Plus1d) else self.conv1.conv
        if isinstance(conv, nn.Conv1d | nn.Conv2d):
            raise ValueError(
                f'conv_cfg={conv_cfg} builds {type(conv).__name__}: '
                'a 3D convolution such as Conv3d or WSConv3d is expected'
            )
        if isinstance(self.conv1.norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm1d | nn.InstanceNorm2d):
            raise ValueError(
                f'norm_cfg={norm_cfg} builds {type(self.conv1.norm).__name__}: '
                'a norm of 5D inputs such as BN3d, SyncBN, GN or BCN is expected'
            )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the features of the stages in `out_indices`."""
        x = self.conv1(x)
        if self.maxpool is not None:
            x = self.maxpool(x)
        features = []
        for i in range(max(self.out_indices) + 1):
            x = getattr(self, f'layer{i + 1}')(x)
            if i in self.out_indices:
                features.append(x)
            if i == 0 and self.pool2 is not None:
                x = self.pool2(x)
        return features[0] if len(features) == 1 else tuple(features)

    def train(self, mode: bool = True) -> 'ResNet3d':
        """Set the mode, except that modules frozen by `frozen_stages` and `norm_eval` stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        if self.norm_eval:
            for norm in norms_with_running_statistics(self):
                norm.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        return [
            getattr(self, name) for name in ('conv1', *(f'layer{i}' for i in range(1, 5)))[: self.frozen_stages + 1]
        ]


def norms_with_running_statistics(module: nn.Module) -> Iterator[nn.Module]:
    """Return every norm below `module` that keeps running statistics: BN, SyncBN, tracking IN and BatchChannelNorm."""
    return (m for m in module.modules() if getattr(m, 'running_mean', None) is not None)


class _ResidualBlock3d(nn.Module):
    """Common part of both blocks: relu(body(x) + shortcut(x)), with optional checkpointing."""

    expansion: int
    downsample: nn.Module | None

    def __init__(self, act_cfg: Config, with_cp: bool) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.relu = build_activation_layer(act_cfg)

    def _body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(self._body(x) + identity)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C', T', H', W')."""
        if self.with_cp and torch.is_grad_enabled():
            return recomputed(self, self._forward, x)
        return self._forward(x)


class BasicBlock3d(_ResidualBlock3d):
    """Two 3 x 3 x 3 convolutions (1 x 3 x 3 if not inflated). See `ResNet3d` for the arguments."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: Triple,
        dilation: int,
        inflate: bool,
        inflate_style: str,
        downsample: nn.Module | None,
        mid_channels: int | None,
        act_cfg: Config,
        with_cp: bool,
        **cfg: Any,
    ) -> None:
        super().__init__(act_cfg, with_cp)
        cfg['mid_channels'] = mid_channels
        kernel = (3 if inflate else 1, 3, 3)
        self.conv1 = conv_norm_act(
            in_channels, channels, kernel, stride=stride, dilation=dilation, act_cfg=act_cfg, **cfg
        )
        self.conv2 = conv_norm_act(channels, channels, kernel, act_cfg=act_cfg, activate=False, **cfg)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.Module:
        return self.conv2.norm

    def _body(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class Bottleneck3d(_ResidualBlock3d):
    """1x1x1, 3x3x3, 1x1x1 ('3x3x3') or 3x1x1, 1x3x3, 1x1x1 ('3x1x1'); the second convolution strides."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: Triple,
        dilation: int,
        inflate: bool,
        inflate_style: str,
        downsample: nn.Module | None,
        mid_channels: int | None,
        act_cfg: Config,
        with_cp: bool,
        **cfg: Any,
    ) -> None:
        super().__init__(act_cfg, with_cp)
        time_first = inflate and inflate_style == '3x1x1'
        kernel1 = (3 if time_first else 1, 1, 1)
        kernel2 = (3 if inflate and not time_first else 1, 3, 3)
        self.conv1 = conv_norm_act(in_channels, channels, kernel1, act_cfg=act_cfg, **cfg)
        self.conv2 = conv_norm_act(
            channels,
            channels,
            kernel2,
            stride=stride,
            dilation=dilation,
            mid_channels=mid_channels,
            act_cfg=act_cfg,
            **cfg,
        )
        self.conv3 = conv_norm_act(
            channels, channels * self.expansion, (1, 1, 1), act_cfg=act_cfg, activate=False, **cfg
        )
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.Module:
        return self.conv3.norm

    def _body(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


ARCHITECTURES: dict[int, tuple[type[BasicBlock3d] | type[Bottleneck3d], tuple[int, ...]]] = {
    18: (BasicBlock3d, (2, 2, 2, 2)),
    34: (BasicBlock3d, (3, 4, 6, 3)),
    50: (Bottleneck3d, (3, 4, 6, 3)),
    101: (Bottleneck3d, (3, 4, 23, 3)),
    152: (Bottleneck3d, (3, 8, 36, 3)),
}


def make_stage(
    block: type[BasicBlock3d] | type[Bottleneck3d],
    in_channels: int,
    channels: int,
    num_blocks: int,
    *,
    stride: Triple,
    inflate: Sequence[bool],
    mid_channels_divisor: int | None,
    conv_cfg: Config,
    norm_cfg: Config,
    act_cfg: Config,
    **kwargs: Any,
) -> nn.Sequential:
    """Build one stage; its first block strides, and projects the shortcut if the shape changes."""
    out_channels = channels * block.expansion
    cfg: Config = {'conv_cfg': conv_cfg, 'norm_cfg': norm_cfg, 'act_cfg': act_cfg}
    blocks = []
    for i in range(num_blocks):
        downsample = None
        if i == 0 and (max(stride) > 1 or in_channels != out_channels):
            downsample = conv_norm_act(in_channels, out_channels, (1, 1, 1), stride=stride, activate=False, **cfg)
        blocks.append(
            block(
                in_channels,
                channels,
                stride=stride if i == 0 else (1, 1, 1),
                inflate=inflate[i],
                downsample=downsample,
                mid_channels=mid_channels_divisor
                and factorized_mid_channels(in_channels, channels, mid_channels_divisor),
                **cfg,
                **kwargs,
            )
        )
        in_channels = out_channels
    return nn.Sequential(*blocks)


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel: Triple,
    *,
    stride: Triple = (1, 1, 1),
    dilation: int = 1,
    mid_channels: int | None = None,
    activate: bool = True,
    conv_cfg: Config,
    norm_cfg: Config,
    act_cfg: Config,
) -> ConvModule:
    """Build mmcv's `ConvModule` with the padding that keeps the size at stride 1.

    Args:
        kernel: (T, H, W), odd.
        dilation: Dilation of height and width; time is never dilated.
        mid_channels: Width between the halves of a kernel over time and space (`Conv2Plus1d`); None does not factorise.
    """
    if mid_channels is not None and kernel[0] > 1 and kernel[1] > 1:
        conv_cfg = {
            'type': Conv2Plus1d,
            'mid_channels': mid_channels,
            'conv_cfg': conv_cfg,
            'norm_cfg': norm_cfg,
            'act_cfg': act_cfg,
        }
    return ConvModule(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=(kernel[0] // 2, dilation * (kernel[1] // 2), dilation * (kernel[2] // 2)),
        dilation=(1, dilation, dilation),
        conv_cfg=conv_cfg,
        norm_cfg=norm_cfg,
        act_cfg=act_cfg if activate else None,
    )


def _inflation_of_blocks(inflate: int | Sequence[int], num_blocks: int, *, stage: int) -> list[bool]:
    values = [inflate] * num_blocks if isinstance(inflate, int) else list(inflate)
    if len(values) != num_blocks:
        raise ValueError(
            f'inflate[{stage}]={tuple(values)}: one value, or one for each of the {num_blocks} blocks, is expected'
        )
    return [bool(v) for v in values]


def _triple_of_odd(name: str, values: Sequence[int]) -> Triple:
    if len(values) != 3 or any(v % 2 == 0 for v in values):
        raise ValueError(f'{name}={tuple(values)}: three odd sizes (T, H, W) are expected')
    return values[0], values[1], values[2]
