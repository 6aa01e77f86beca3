"""Float64 numpy versions of WS, BCN and BN, written from the paper's formulas with plain loops over filters and groups.

They share no code with the library. Every forward has its analytic backward beside it. All take and give float64.
"""

from typing import NamedTuple

import numpy as np

Array = np.ndarray

# divisor of one filter's sum of squares, and where eps goes
WS_FORMULAS = {
    'jhu': ('unbiased', 'outside', 1e-5),
    'bcn': ('unbiased', 'inside', 1e-5),
    'paper': ('biased', 'inside', 1e-5),
    'timm': ('biased', 'inside', 1e-6),
    'bit': ('biased', 'inside', 1e-10),
}


def filters(weight: Array, groups: int, transposed: bool) -> list[tuple]:
    """One index into `weight` per output channel, selecting everything that its output value sums over."""
    if not transposed:
        return [(o,) for o in range(weight.shape[0])]
    per_group = weight.shape[0] // groups
    return [(slice(g * per_group, (g + 1) * per_group), o) for g in range(groups) for o in range(weight.shape[1])]


def standardize(
    weight: Array, variant: str, *, eps: float | None = None, groups: int = 1, transposed: bool = False
) -> Array:
    bias, place, default = WS_FORMULAS[variant]
    eps = default if eps is None else eps
    out = np.empty_like(weight)
    for index in filters(weight, groups, transposed):
        w = weight[index]
        variance = w.var(ddof=int(bias == 'unbiased'))
        std = np.sqrt(variance + eps) if place == 'inside' else np.sqrt(variance) + eps
        out[index] = (w - w.mean()) / std
    return out


def standardize_backward(
    grad: Array, weight: Array, variant: str, *, groups: int = 1, transposed: bool = False
) -> Array:
    bias, place, eps = WS_FORMULAS[variant]
    out = np.empty_like(weight)
    for index in filters(weight, groups, transposed):
        w, dy = weight[index], grad[index]
        c = w - w.mean()
        dof = w.size - int(bias == 'unbiased')
        root = np.sqrt((c * c).sum() / dof + (eps if place == 'inside' else 0))
        std = root if place == 'inside' else root + eps
        through_std = c * (dy * c).sum() / (std**2 * root * dof) if root else 0
        dc = dy / std - through_std
        out[index] = dc - dc.mean()
    return out


class Affine(NamedTuple):
    """The four parameters of a BCN layer."""

    weight: Array
    bias: Array
    group_weight: Array
    group_bias: Array


def column(values: Array, x: Array) -> Array:
    """(C,) as (1, C, 1, ...), to meet x of shape (N, C, *)."""
    return values.reshape((1, -1) + (1,) * (x.ndim - 2))


def over_positions(x: Array) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def updated_estimates(x: Array, mean: Array, var: Array, rate: float) -> tuple[Array, Array]:
    """Algorithm 1, steps 1 to 4: the second moment is around the mean from before this batch."""
    new_mean, new_var = mean.copy(), var.copy()
    for c in range(x.shape[1]):
        values = x[:, c].ravel()
        new_mean[c] += rate * (values.sum() / values.size - mean[c])
        new_var[c] += rate * (((values - mean[c]) ** 2).sum() / values.size - var[c])
    return new_mean, new_var


def batch_statistics(x: Array) -> tuple[Array, Array]:
    return x.mean(over_positions(x)), x.var(over_positions(x))


def batch_half(x: Array, mean: Array, var: Array, affine: Affine, eps: float) -> Array:
    return column(affine.weight, x) * (x - column(mean, x)) / np.sqrt(column(var, x) + eps) + column(affine.bias, x)


def channel_half(x: Array, num_groups: int, affine: Affine, eps: float) -> Array:
    out = np.empty_like(x)
    size = x.shape[1] // num_groups
    for n in range(x.shape[0]):
        for g in range(num_groups):
            members = slice(g * size, (g + 1) * size)
            block = x[n, members]
            normal = (block - block.mean()) / np.sqrt(block.var() + eps)
            scale, shift = group_affine(affine, num_groups, g, block)
            out[n, members] = scale * normal + shift
    return out


def group_affine(affine: Affine, num_groups: int, g: int, block: Array) -> tuple[Array, Array]:
    if affine.group_weight.size == num_groups:
        return affine.group_weight[g], affine.group_bias[g]
    size = block.shape[0]
    shape = (size,) + (1,) * (block.ndim - 1)
    members = slice(g * size, (g + 1) * size)
    return affine.group_weight[members].reshape(shape), affine.group_bias[members].reshape(shape)


def bcn(x: Array, mean: Array, var: Array, affine: Affine, num_groups: int, eps: float = 1e-5) -> Array:
    """Algorithm 1, steps 5 and 6, with whatever statistics are handed in."""
    return channel_half(batch_half(x, mean, var, affine, eps), num_groups, affine, eps)


def bcn_backward(
    grad: Array, x: Array, mean: Array, var: Array, affine: Affine, num_groups: int, *, live: bool, eps: float = 1e-5
) -> tuple[Array, Affine]:
    """Gradients of `bcn` for x and the four parameters.

    Args:
        live: Whether mean and var are the batch's own and so functions of x; else they are constants.
    """
    middle = batch_half(x, mean, var, affine, eps)
    d_middle = np.empty_like(x)
    d_group_weight, d_group_bias = np.zeros_like(affine.group_weight), np.zeros_like(affine.group_bias)
    size = x.shape[1] // num_groups
    per_group = affine.group_weight.size == num_groups
    for n in range(x.shape[0]):
        for g in range(num_groups):
            members = slice(g * size, (g + 1) * size)
            block, dy = middle[n, members], grad[n, members]
            rstd = 1 / np.sqrt(block.var() + eps)
            normal = (block - block.mean()) * rstd
            scale, _ = group_affine(affine, num_groups, g, block)
            if per_group:
                d_group_weight[g] += (dy * normal).sum()
                d_group_bias[g] += dy.sum()
            else:
                d_group_weight[members] += (dy * normal).reshape(size, -1).sum(1)
                d_group_bias[members] += dy.reshape(size, -1).sum(1)
            d_normal = dy * scale
            d_middle[n, members] = rstd * (d_normal - d_normal.mean() - normal * (d_normal * normal).mean())

    axes = over_positions(x)
    rstd = column(1 / np.sqrt(var + eps), x)
    normal = (x - column(mean, x)) * rstd
    d_normal = d_middle * column(affine.weight, x)
    if live:
        d_normal = (
            d_normal - d_normal.mean(axes, keepdims=True) - normal * (d_normal * normal).mean(axes, keepdims=True)
        )
    affine_grads = Affine((d_middle * normal).sum(axes), d_middle.sum(axes), d_group_weight, d_group_bias)
    return d_normal * rstd, affine_grads
