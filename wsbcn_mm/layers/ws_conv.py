"""Convolutions that standardise their filters: WSConv1d to WSConvTranspose3d.

The parameter `weight` is the raw filter. Every forward standardises it and differentiates through that step (see
`wsbcn_mm.ops.weight_standardize`); inside `standardize_once` one standardisation serves many forwards. Use these layers
only before a normalisation: a standardised filter multiplies the standard deviation of its input by about
sqrt(fan-in), unless `gain='fan_in'` removes that factor.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..ops.ws.fused import is_supported
from ..ops.ws.weight_standardization import fan_in, get_variant, weight_standardize
from .kept_weight import KeptWeight, may_be_kept

T = TypeVar('T', bound='_WSConv')


@contextmanager
def standardize_once(model: nn.Module) -> Iterator[None]:
    """A context in which every WS convolution of `model` standardises its weight once, not in every forward.

    For gradient accumulation, layers that run several times per step, and evaluation:

        with standardize_once(model):
            for micro_batch in accumulation:
                loss(model(micro_batch)).backward()

    Outputs and gradients are bit-equal to those outside. A weight is standardised again when it has changed: after an
    optimizer step, load_state_dict or any in-place operation, in another dtype, between training and evaluation. A
    write through `weight.data` cannot be noticed: leave the context before it. Each layer keeps one standardised
    weight, in the dtype of its convolution. Under torch.compile the context has no effect.

    Args:
        model: Any module. If it is inside such a context already, that context stays in effect.
    """
    layers = [module for module in model.modules() if isinstance(module, _WSConv) and module.kept_weight is None]
    for layer in layers:
        layer.kept_weight = KeptWeight()

    def drop_all(*_: Any) -> None:
        for layer in layers:
            if layer.kept_weight is not None:
                layer.kept_weight.drop()

    # torch does not count the writes of fused optimizers to their parameters.
    after_step = register_optimizer_step_post_hook(drop_all)
    try:
        yield
    finally:
        after_step.remove()
        for layer in layers:
            layer.kept_weight = None


def autocast_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which a convolution with this weight computes: that of autocast if it is on and would cast."""
    device = weight.device.type
    if weight.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return weight.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class _WSConv(nn.Module):
    """The shared part of the six classes; precedes a torch convolution in their bases.

    Args:
        variant: Formula of the standardisation, one of `wsbcn_mm.ops.VARIANTS`.
        eps: Replaces the variant's eps.
        gain: 'fan_in' divides the standardised filter by the root of its fan-in, so that outputs are about as large as
            inputs and do not overflow float16. None is the formula as published, for weights trained without a gain.

    Raises:
        ValueError: At construction, if the variant or the gain is unknown, `eps` is not positive, or the fan-in is 1 (a
            depthwise 1x1 convolution).
    """

    weight: Tensor
    bias: Tensor | None
    groups: int
    transposed: bool
    kept_weight: KeptWeight | None = None
    """Set inside `standardize_once`; copies of the layer start without it."""

    def __init__(
        self, *args: Any, variant: str = 'jhu', eps: float | None = None, gain: str | None = None, **kwargs: Any
    ) -> None:
        get_variant(variant, eps, gain)
        super().__init__(*args, **kwargs)
        self.variant = variant
        self.ws_eps = eps
        self.gain = gain
        if fan_in(self.weight, groups=self.groups, transposed=self.transposed) < 2:
            raise ValueError(
                f'{self} has fan-in 1: at least 2 is expected, because a single weight has no deviation; '
                'use a plain convolution'
            )

    def standardized_weight(self) -> Tensor:
        """The filter of the convolution: of the shape of `weight`, in its dtype or, under autocast, in autocast's."""
        weight, dtype = self.weight, autocast_dtype(self.weight)
        # The order matters: torch.compile must not guard on, and recompile for, what a context changes.
        if is_supported(weight) and self.kept_weight is not None and may_be_kept(weight):
            variant = get_variant(self.variant, self.ws_eps, self.gain)
            return self.kept_weight(weight, variant, dtype, groups=self.groups, transposed=self.transposed)
        return weight_standardize(
            weight,
            variant=self.variant,
            eps=self.ws_eps,
            gain=self.gain,
            groups=self.groups,
            transposed=self.transposed,
            dtype=dtype,
        )

    def train(self: T, mode: bool = True) -> T:
        # Averaged weights often replace the weight for an evaluation, in ways that torch does not always count.
        if self.kept_weight is not None and mode != self.training:
            self.kept_weight.drop()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != 'kept_weight'}

    def forward(self, x: Tensor) -> Tensor:
        return super()._conv_forward(x, self.standardized_weight(), self.bias)  # type: ignore[misc]

    def _conv_forward(self, *args: Any) -> Tensor:
        raise RuntimeError(
            f'{type(self).__name__} standardises its weight in every forward, which undoes a factor that conv-bn '
            'fusing puts on it: set efficient_conv_bn_eval=False'
        )

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        is_new_bias = name == 'bias' and param is not None and self._parameters.get('bias', param) is None
        if is_new_bias:
            raise RuntimeError(
                f'{type(self).__name__} cannot be fused with the norm after it: it standardises its weight in every '
                'forward, which undoes the factor that fusing puts on it'
            )
        super().register_parameter(name, param)

    def extra_repr(self) -> str:
        options = dict(variant=self.variant, eps=self.ws_eps, gain=self.gain)
        return super().extra_repr() + ''.join(f', {name}={v}' for name, v in options.items() if v is not None)


class _WSConvTranspose(_WSConv):
    """The forward of the transposed classes; torch's own accepts no other weight."""

    _conv_transpose: Any
    _output_padding: Any
    _spatial_axes: int

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.padding_mode != 'zeros':
            raise ValueError(f"padding_mode={self.padding_mode!r}: {type(self).__name__} supports 'zeros' only")
        output_padding = self._output_padding(
            x, output_size, self.stride, self.padding, self.kernel_size, self._spatial_axes, self.dilation
        )
        return type(self)._conv_transpose(
            x,
            self.standardized_weight(),
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
        )


class WSConv1d(_WSConv, nn.Conv1d):
    """`torch.nn.Conv1d` with Weight Standardization: (N, C, L) -> (N, O, L'). See `_WSConv` for the arguments."""


class WSConv2d(_WSConv, nn.Conv2d):
    """`torch.nn.Conv2d` with Weight Standardization: (N, C, H, W) -> (N, O, H', W'). Arguments as torch's, and:

    Args:
        variant: Formula of the standardisation, one of `wsbcn_mm.ops.VARIANTS`. The authors' GN+WS checkpoints use
            `jhu`.
        eps: Replaces the variant's eps.
        gain: 'fan_in' divides the standardised filter by the root of its fan-in, for float16.

    Raises:
        ValueError: If the variant or the gain is unknown, `eps` is not positive, or the fan-in is 1.
    """


class WSConv3d(_WSConv, nn.Conv3d):
    """`torch.nn.Conv3d` with Weight Standardization: (N, C, T, H, W) -> (N, O, T', H', W'). As `WSConv2d`."""


class WSConvTranspose1d(_WSConvTranspose, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with Weight Standardization over the fan-in of each output channel."""

    _conv_transpose = staticmethod(F.conv_transpose1d)
    _spatial_axes = 1


class WSConvTranspose2d(_WSConvTranspose, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with Weight Standardization over the fan-in of each output channel."""

    _conv_transpose = staticmethod(F.conv_transpose2d)
    _spatial_axes = 2


class WSConvTranspose3d(_WSConvTranspose, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with Weight Standardization over the fan-in of each output channel."""

    _conv_transpose = staticmethod(F.conv_transpose3d)
    _spatial_axes = 3
