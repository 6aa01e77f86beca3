"""Initialise a 3D ResNet from a 2D one: on a still video, the inflated network gives the 2D network's output."""

from collections.abc import Mapping
from math import sqrt
from typing import NamedTuple

from mmcv.cnn import ConvModule
from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ...layers import WSConv3d
from ...ops.ws.weight_standardization import get_variant
from ...surgery.checkpoint_import import match, without_time
from ...surgery.layer_names import canonical_names, join_norm_halves
from .conv2plus1d import Conv2Plus1d


@WEIGHT_INITIALIZERS.register_module()
class Inflated2d:
    """`init_cfg=dict(type='Inflated2d', checkpoint=...)` of a `ResNet3d`; see `inflate_2d_`.

    Args:
        checkpoint: Checkpoint of a 2D ResNet of the same depth: a file, URL or model-zoo name that mmengine can load.
        prefix: Prefix of the backbone's names in the checkpoint, such as 'backbone.'.
    """

    def __init__(self, checkpoint: str, prefix: str = '') -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix

    def __call__(self, module: nn.Module) -> None:
        loaded = CheckpointLoader.load_checkpoint(self.checkpoint, map_location='cpu', logger='current')
        state = loaded.get('state_dict', loaded)
        state = {k.removeprefix('module.'): v for k, v in state.items()}
        state = {k.removeprefix(self.prefix): v for k, v in state.items() if k.startswith(self.prefix)}
        print_log(f'{self.checkpoint}: {inflate_2d_(module, state)}', logger='current')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'Inflated2d: load from {self.checkpoint}')


class Inflation(NamedTuple):
    """Report of `inflate_2d_`, by the model's names."""

    inflated: list[str]
    """Convolutions whose filters were repeated over time."""
    copied: list[str]
    """Convolutions that see one frame at a time; they have the filters of the 2D network."""
    norms: list[str]
    """Norms that were copied."""
    rescaled: list[str]
    """Norms whose running statistics were scaled to the larger response of a WS convolution."""
    left: list[str]
    """Entries of the 2D checkpoint, by its names, that the model does not use."""
    defaults: list[str]
    """Entries that the 2D checkpoint lacks and that get a neutral value."""

    def __str__(self) -> str:
        parts = [
            f'{len(self.inflated)} convolutions inflated and {len(self.copied)} copied',
            f'{len(self.norms)} norms copied, the statistics of {len(self.rescaled)} rescaled',
            f'left in the checkpoint: {", ".join(self.left) or "nothing"}',
        ]
        return '; '.join(parts + ([f'neutral values for {", ".join(self.defaults)}'] if self.defaults else []))


def inflate_2d_(model: nn.Module, state_2d: Mapping[str, Tensor]) -> Inflation:
    """Copy a 2D ResNet into a `ResNet3d` in place.

    A filter is repeated over the T frames of its kernel. For a plain convolution it is divided by T. Weight
    Standardization would undo that, so its response to a still video is K times the 2D response (`ws_response`). The
    running statistics of the norm after it are scaled to K times the values, including the norm's eps:

        mean' = K mean      var' = K^2 (var + eps) - eps      so that (K y - mean') / sqrt(var' + eps) is unchanged

    A GroupNorm has no statistics to change and divides K out itself, up to its eps: its output differs by a relative
    amount of at most eps / (2 var), where var is the variance of a group in the 2D network.

    The outputs equal those of the 2D network where every convolution sees the still frame at each of its T taps. Zeros
    before the first and after the last frame are not part of a still video. In a norm with live statistics (GN, the
    channel half of BCN) they affect the other frames too.

    Args:
        model: A `ResNet3d` that is not factorised.
        state_2d: Parameters and buffers of a 2D ResNet, in any naming scheme of `wsbcn_mm.surgery.layer_names`.

    Raises:
        ValueError: If the model is factorised, a tensor is missing or has another shape, or the checkpoint has another
            kind of norm. Then nothing is copied.
    """
    if any(isinstance(m, Conv2Plus1d) for m in model.modules()):
        raise ValueError('a factorised convolution has no 2D counterpart: R(2+1)D cannot start from a 2D network')
    found = match(state_2d, without_time(model.state_dict()))
    surplus = entries_of_another_norm(model, state_2d)
    if found.missing or found.misshapen or surplus:
        reason = f'it has another kind of norm ({", ".join(surplus)})' if surplus else 'see the entries below'
        raise ValueError(f'the 2D checkpoint does not fit, nothing was copied: {reason}\n{found.describe()}')
    report = Inflation([], [], [], [], found.left_over, found.defaults)
    state = dict(found.state)
    for name, layer in model.named_modules():
        if isinstance(layer, ConvModule):
            _inflate_layer(state, report, name, layer)
    model.load_state_dict(state)
    return report


def _inflate_layer(state: dict[str, Tensor], report: Inflation, name: str, layer: ConvModule) -> None:
    """Convert one convolution's filters and its norm's statistics from their 2D to their 3D shapes and values."""
    conv, norm = f'{name}.conv', f'{name}.{layer.norm_name}'
    frames = layer.conv.kernel_size[0]
    flat = state[f'{conv}.weight'].unsqueeze(2)
    report.norms.append(norm)
    if frames == 1:
        state[f'{conv}.weight'] = flat
        report.copied.append(conv)
        return
    report.inflated.append(conv)
    scale, response = ws_response(layer.conv) if isinstance(layer.conv, WSConv3d) else (1 / frames, 1.0)
    state[f'{conv}.weight'] = (scale * flat).expand(-1, -1, frames, -1, -1)
    if response != 1 and f'{norm}.running_var' in state:
        eps = layer.norm.eps
        state[f'{norm}.running_mean'] = response * state[f'{norm}.running_mean']
        state[f'{norm}.running_var'] = response**2 * (state[f'{norm}.running_var'] + eps) - eps
        report.rescaled.append(norm)


def ws_response(conv: WSConv3d) -> tuple[float, float]:
    """Return (s, K): with s times the repeated filter, a WS convolution responds to a still video K times as in 2D.

    Repeating the I weights of a filter T times keeps their mean and biased variance. The unbiased variance shrinks by
    r^2 = T (I - 1) / (T I - 1). With s = 1 / r the standard deviation equals that of the 2D filter, whatever the value
    and the place of eps. So the standardised filter is s times the 2D one at each of T taps, and K = T s for every
    channel. With a gain, whose fan-in is T times as large, K = sqrt(T) s.
    """
    frames, fan_in = conv.kernel_size[0], conv.weight[0].numel()
    per_frame = fan_in // frames
    scale = sqrt((fan_in - 1) / (frames * (per_frame - 1))) if get_variant(conv.variant).unbiased else 1.0
    return scale, scale * (frames if conv.gain is None else sqrt(frames))


def entries_of_another_norm(model: nn.Module, state_2d: Mapping[str, Tensor]) -> list[str]:
    """Return statistics and affines of a checkpoint, by its names, that the corresponding norms of the model lack."""
    ours = set(canonical_names(model.state_dict()).values())
    theirs = canonical_names(join_norm_halves(state_2d))
    layers = {name.rpartition('.')[0] for name in ours}
    own = ('weight', 'bias', 'running_mean', 'running_var', 'group_weight', 'group_bias')
    return [
        key
        for key, name in theirs.items()
        if name not in ours and name.rpartition('.')[0] in layers and name.rpartition('.')[2] in own
    ]
