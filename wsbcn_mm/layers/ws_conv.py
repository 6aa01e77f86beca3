"""Convolutions that standardise their filters: WSConv1d to WSConvTranspose3d.

The parameter `weight` is the raw filter; it is standardised in every forward and back-propagated through
(see `wsbcn_mm.ops.weight_standardize`). Use them only where a normalisation follows: a standardised filter multiplies
the standard deviation of its input by about sqrt(fan-in).
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.weight_standardization import fan_in, get_variant, weight_standardize


class _WSConv(nn.Module):
    """What the six classes share; stands before a torch convolution in their bases.

    Args:
        variant: Formula of the standardisation, one of `wsbcn_mm.ops.VARIANTS`.
        eps: Replaces the variant's eps.

    Raises:
        ValueError: At construction, for an unknown variant, an eps that is not positive or a fan-in of 1 (a
            depthwise 1x1 convolution).
    """

    weight: Tensor
    bias: Tensor | None
    groups: int
    transposed: bool

    def __init__(self, *args: Any, variant: str = 'jhu', eps: float | None = None, **kwargs: Any) -> None:
        get_variant(variant, eps)
        super().__init__(*args, **kwargs)
        self.variant = variant
        self.ws_eps = eps
        if fan_in(self.weight, groups=self.groups, transposed=self.transposed) < 2:
            raise ValueError(
                f'{self} has fan-in 1: a filter of a single weight cannot be standardised; use a plain convolution'
            )

    def standardized_weight(self) -> Tensor:
        """The filter that convolves, shaped as `weight`."""
        return weight_standardize(
            self.weight, variant=self.variant, eps=self.ws_eps, groups=self.groups, transposed=self.transposed
        )

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
        ws = f', variant={self.variant}' + (f', eps={self.ws_eps}' if self.ws_eps is not None else '')
        return super().extra_repr() + ws


class _WSConvTranspose(_WSConv):
    """Adds the forward of the transposed classes, which torch leaves without a place to hand in a weight."""

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
        variant: Formula of the standardisation, one of `wsbcn_mm.ops.VARIANTS`; `jhu` fits the authors' GN+WS files.
        eps: Replaces the variant's eps.

    Raises:
        ValueError: For an unknown variant or a fan-in of 1.
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
