"""BCN of CUDA tensors: two passes over the data each way and one launch between them, in Triton."""

from torch import Tensor

from .algebra import Affines, Half, Moments, Options
from .triton_algebra import backward_algebra, forward_algebra
from .triton_passes import affine, channel_moments, gradient_map, gradient_sums


def forward(
    x: Tensor,
    residual: Tensor | None,
    running: Half,
    affines: Affines,
    rate: Tensor,
    options: Options,
) -> tuple[Tensor, Half, Half, Moments]:
    """As `aten.forward`."""
    num_groups, statistics, relu, eps = options
    positions = x[0, 0].numel()
    folded = forward_algebra(*channel_moments(x), *running, *affines, num_groups, rate, eps, statistics, positions)
    out = affine(x, folded.mean, folded.scale, folded.shift, residual, relu)
    half = Half(folded.half_mean, folded.half_var)
    batch = half if statistics == 'frozen' else Half(folded.batch_mean, folded.batch_var)
    return out, half, batch, Moments(folded.mean, folded.var)


def backward(
    dy: Tensor,
    x: Tensor,
    out: Tensor | None,
    half: Half,
    moments: Moments,
    affines: Affines,
    options: Options,
) -> tuple[Tensor, Tensor, Affines]:
    """As `aten.backward`, except that the gradients of the affines have their affine's shape, None for None."""
    num_groups, statistics, relu, eps = options
    positions = x[0, 0].numel()
    # The map of the forward once more, from what it normalised with.
    mean, var = (t[None] for t in moments)
    folded = forward_algebra(mean, var, *half, *affines, num_groups, 0.0, eps, 'frozen', positions)
    of_forward = (folded.mean, folded.scale, folded.shift, None, relu)
    sums = gradient_sums(dy, x, *of_forward, out)
    gradients = backward_algebra(*sums, folded, *affines, num_groups, eps, statistics, positions)
    dx, dz = gradient_map(dy, x, *of_forward, *gradients[:3], out)
    return dx, dy if dz is None else dz, Affines(*gradients[3:])
