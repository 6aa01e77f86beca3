"""BCN of CUDA tensors: two passes over the data each way and one launch between them, in Triton."""

from torch import Tensor

from .algebra import Affines, ChannelStatistics, Moments, Options
from .triton_algebra import backward_algebra, forward_algebra
from .triton_passes import affine, channel_moments, gradient_map, gradient_sums


def forward(
    x: Tensor,
    residual: Tensor | None,
    running: ChannelStatistics,
    affines: Affines,
    rate: Tensor,
    options: Options,
) -> tuple[Tensor, ChannelStatistics, ChannelStatistics, Moments]:
    """As `aten.forward`."""
    folded = forward_algebra(Moments(*channel_moments(x)), running, affines, rate, options, x[0, 0].numel())
    out = affine(x, folded.moments.mean, folded.scale, folded.shift, residual, options.relu)
    batch = folded.half if options.statistics == 'frozen' else folded.batch
    return out, folded.half, batch, folded.moments


def backward(
    dy: Tensor,
    x: Tensor,
    out: Tensor | None,
    half: ChannelStatistics,
    moments: Moments,
    affines: Affines,
    options: Options,
) -> tuple[Tensor, Tensor, Affines]:
    """As `aten.backward`, except that the gradients of the affines have their affine's shape, None for None."""
    positions = x[0, 0].numel()
    # Recompute the map of the forward from what it normalised with.
    one_part = Moments(*(t[None] for t in moments))
    folded = forward_algebra(one_part, half, affines, 0.0, options._replace(statistics='frozen'), positions)
    of_forward = (folded.moments.mean, folded.scale, folded.shift, None, options.relu)
    sums = gradient_sums(dy, x, *of_forward, out)
    p, q, s, daffines = backward_algebra(*sums, folded, affines, options, positions)
    dx, dz = gradient_map(dy, x, *of_forward, p, q, s, out)
    return dx, dy if dz is None else dz, daffines
