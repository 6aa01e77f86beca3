"""BCN's passes over data on CPU, built from the fastest ATen primitives; any layout, any precision.

The calls are unusual because they are fast. `native_group_norm` computes moments tens of times faster than
`torch.var_mean`, and batch norm in evaluation is the fastest map with one scale and one shift per row. Half precision
is computed in float32. All inputs of the size of x are dense in the memory format of x, contiguous or channels last.
"""

import torch
from torch import Tensor

from .algebra import Affines, ChannelStatistics, Moments, Options, batch_half_statistics, gradients, output_map

aten = torch.ops.aten

# Keeps the reciprocal deviation of a constant row finite; too small to change any other variance.
_TINY = 1e-30


def forward(
    x: Tensor,
    residual: Tensor | None,
    running: ChannelStatistics,
    affines: Affines,
    rate: Tensor,
    options: Options,
) -> tuple[Tensor, ChannelStatistics, ChannelStatistics, Moments]:
    """One reduction and one map.

    Returns:
        The output; what the batch half normalised with; what the batch measures; the moments of x.
    """
    rows, moments = _standardized_rows(_in_float32(x))
    half, batch = batch_half_statistics(moments, running, rate, options.statistics)
    scale, shift = output_map(moments, half, affines, options)
    out = _map_rows(rows, scale * moments.var.sqrt(), shift, out=rows)
    if residual is not None:
        out += residual
    if options.relu:
        out.relu_()
    return out.to(x.dtype), half, batch, moments


def backward(
    dy: Tensor,
    x: Tensor,
    out: Tensor | None,
    half: ChannelStatistics,
    moments: Moments,
    affines: Affines,
    options: Options,
) -> tuple[Tensor, Tensor, Affines]:
    """One reduction and one map.

    Args:
        dy: Gradient of the output.
        x: Input of the forward.
        out: Output of the forward if a residual was added before the ReLU, so that x does not give the mask.
        half, moments, affines, options: Of the forward.

    Returns:
        Gradients of x, of the output before the ReLU, and of the affines, each (C,).
    """
    x32 = _in_float32(x)
    if options.relu:
        if out is not None:
            dz = aten.threshold_backward(_in_float32(dy), _in_float32(out), 0)
        else:
            scale, shift = output_map(moments, half, affines, options)
            dz = _map_rows(x32, scale, torch.addcmul(shift, scale, moments.mean, value=-1))
            aten.threshold_backward.grad_input(_in_float32(dy), dz, 0, grad_input=dz)
    else:
        dz = _in_float32(dy)
    sums = _sums(dz, x32, moments.mean)
    result = gradients(moments, half, affines, *sums, x.numel() // moments.mean.numel(), options)
    dx = _map_rows(
        dz,
        result.p,
        torch.addcmul(result.s, result.q, moments.mean, value=-1),
        out=dz if options.relu and out is None else None,
    )
    dx.addcmul_(x32, result.q.view(result.q.shape + (1,) * (x.ndim - 2)))
    return dx.to(x.dtype), dz.to(x.dtype), result.affines


def _in_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rows(x: Tensor) -> list[Tensor]:
    """(N, C, *) as views (1, R, *) whose axis 1 runs over rows; a row has the positions of one (sample, channel).

    One view for contiguous memory, one per sample for channels last.
    """
    if x.is_contiguous():
        return [x.view(1, x.shape[0] * x.shape[1], -1)]
    return list(x.split(1))


def _standardized_rows(x: Tensor) -> tuple[Tensor, Moments]:
    """(x - mean) / deviation of every row, 0 for a constant row, and the moments."""
    samples, channels = x.shape[:2]
    positions = x.numel() // (samples * channels)
    out, mean, rstd = torch.native_group_norm(x, None, None, samples, channels, positions, channels, _TINY)
    return out, Moments(mean, rstd.pow(-2))


def _map_rows(x: Tensor, scale_NC: Tensor, shift_NC: Tensor, out: Tensor | None = None) -> Tensor:
    """scale * x + shift for each row; `out` may be x itself."""
    if out is None:
        out = torch.empty_like(x)
    views = _rows(x)
    rows = views[0].shape[1]
    zero, one, unused = scale_NC.new_zeros(rows), scale_NC.new_ones(rows), scale_NC.new_empty(0)
    for view, to, scale, shift in zip(
        views, _rows(out), scale_NC.reshape(-1, rows), shift_NC.reshape(-1, rows), strict=True
    ):
        aten.native_batch_norm.out(
            view, scale, shift, zero, one, False, 0.0, 0.0, out=to, save_mean=unused, save_invstd=unused
        )
    return out


def _sums(dy: Tensor, x: Tensor, centre_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the positions of dy and of dy (x - centre), each (N, C), in one pass."""
    views = _rows(x)
    rows = views[0].shape[1]
    one = centre_NC.new_ones(rows)
    sums = [
        aten.native_batch_norm_backward(dy_view, view, one, centre, one, None, None, False, 0.0, [False, True, True])
        for dy_view, view, centre in zip(_rows(dy), views, centre_NC.reshape(-1, rows), strict=True)
    ]
    total, centred = (torch.cat([s[i] for s in sums]).view_as(centre_NC) for i in (2, 1))
    return total, centred
