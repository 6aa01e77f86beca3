"""Go on with WS and BCN from a network that was trained with Batch Normalization, as exactly as mathematics allows.

A filter is its standardised self, times what standardisation divides it by, plus what it subtracts:

    W = s (W_hat + k)        W x = s (W_hat x + k sum(x))        s, k per filter; sum(x) over the filter's window

* The scale s is absorbed without a trace by the norm after the convolution: running_mean / s, running_var / s^2. The
  norm's own eps stood beside the undivided variance; a factor on its weight, 1 but in nearly dead channels, makes up.
* The mean k is lost. A norm adds one number per channel, while sum(x) differs from sample to sample and from place to
  place.
* The channel half of BCN normalises each sample by itself, which no constant undoes. It starts with the affine that
  makes it the identity where a sample's group has the statistics of all samples: those of the batch half's output,
  whose channels have mean `bias` and standard deviation `weight`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import BatchChannelNorm
from ..layers.ws_conv import _WSConv
from .convert import Conversion, convert, hand_scale_to_norms
from .policies import POLICIES, get_policy
from .replacement import filter_scale, filters, statistics_at_start
from .trace import Example, norms_after, norms_after_by_order, trace


@dataclass(frozen=True)
class BNStart:
    """What a start from BN made of a model, by the names of its layers.

    Attributes:
        lost_means: WS convolution -> k (O,), the means of its filters in units of s, where a norm absorbed s.
        norms: BatchChannelNorm layers that a trained BatchNorm became the batch half of.
        conversion: What `convert` did; None where the model had its layers already.
    """

    lost_means: dict[str, Tensor]
    norms: tuple[str, ...]
    conversion: Conversion | None = None


@torch.no_grad()
def start_from_bn(
    model: nn.Module, policy: str = 'bcn-ws', *, example: Example | None = None, **options: Any
) -> BNStart:
    """Convert a model that was trained with Batch Normalization, in place; see the module for what is kept.

    Layers whose statistics are those they were made with, such as a new head, have nothing to keep: they start as
    `convert` leaves them. So do norms that several convolutions share, whose scales differ.

    Args:
        model: Any model with BatchNorm.
        policy: A policy of `wsbcn_mm.surgery.policies.POLICIES` whose norm has a batch half.
        example: As of `convert`.
        **options: As of `convert`.

    Raises:
        ValueError: For a policy of GN, for a model without trained BatchNorm, and what `convert` refuses.
    """
    if get_policy(policy).norm == 'GN':
        fit = ', '.join(name for name, wanted in POLICIES.items() if wanted.norm != 'GN')
        raise ValueError(f'policy={policy!r} has no running statistics that could take over those of BN: choose {fit}')
    trained = {n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and not statistics_at_start(m)}
    if not trained:
        raise ValueError('the model has no BatchNorm with trained statistics: load its weights first')
    conversion = convert(model, policy, example=example, **options)
    pairs = norms_after_by_order(model) if example is None else trace(model, example).pairs
    # Where `convert` made a WS convolution, it has divided the statistics by the scale.
    absorbed = {
        conv: norm
        for conv, norm in pairs.items()
        if norm in trained and conv in conversion.changed and conversion.changed[conv].new.startswith('WS')
    }
    became_bcn = [name for name in trained if name in conversion.changed]
    return _start(model, absorbed, became_bcn, conversion)


@torch.no_grad()
def adopt_bn_weights(model: nn.Module, *, example: Example | None = None) -> BNStart:
    """As `start_from_bn`, for a model that is built with WS and BCN and has loaded the weights of its BN counterpart.

    Args:
        model: Its WS convolutions hold filters, and its norms statistics, of a network without WS.
        example: As of `convert`.

    Raises:
        ValueError: If no norm has trained statistics.
    """
    seen = None if example is None else trace(model, example)
    followers = norms_after(model, seen)
    pairs = seen.pairs if seen else norms_after_by_order(model)
    layers = dict(model.named_modules())
    trained = [
        name
        for name, layer in layers.items()
        if isinstance(layer, (_BatchNorm, BatchChannelNorm)) and not statistics_at_start(layer)
    ]
    if not trained:
        raise ValueError('the model has no norm with trained statistics: load the weights of its BN counterpart first')
    for name, layer in layers.items():
        if isinstance(layer, _WSConv):
            hand_scale_to_norms(layer, {norm: layers[norm] for norm in followers.get(name, ())}, paired=name in pairs)
    absorbed = {conv: norm for conv, norm in pairs.items() if norm in trained and isinstance(layers[conv], _WSConv)}
    return _start(model, absorbed, trained, None)


def _start(model: nn.Module, absorbed: Mapping[str, str], trained: list[str], conversion: Conversion | None) -> BNStart:
    """Finish where statistics have been divided: `absorbed` names the WS convolutions and the norms that did."""
    layers: dict[str, Any] = dict(model.named_modules())
    lost_means = {}
    for conv, norm in absorbed.items():
        scale = filter_scale(layers[conv])
        keep_share_of_eps(layers[norm], scale)
        lost_means[conv] = (filters(layers[conv], layers[conv].weight.double()).mean(1) / scale).to(layers[conv].weight)
    # Norms whose statistics `convert` had to start anew are trained no more.
    norms = tuple(
        name
        for name, layer in layers.items()
        if name in trained and isinstance(layer, BatchChannelNorm) and not statistics_at_start(layer)
    )
    for name in norms:
        near_identity(layers[name])
    return BNStart(lost_means, norms, conversion)


@torch.no_grad()
def keep_share_of_eps(norm: Any, scale: Tensor) -> None:
    """Scale a norm's weight as its eps did, before its variance was divided by scale^2 (C,).

    weight / (scale sqrt(var + eps / scale^2)) is what it multiplied its input by.
    """
    if norm.weight is not None:
        var, eps = norm.running_var.double(), norm.eps
        norm.weight.mul_(((var + eps) / (var + eps / scale.square())).sqrt())


@torch.no_grad()
def near_identity(norm: BatchChannelNorm) -> None:
    """Give the channel half the affine that undoes it on average.

    Channel c leaves the batch half with mean bias_c and standard deviation weight_c, hence a group of them with

        mean  mean_c(bias_c)        variance  mean_c(weight_c^2) + var_c(bias_c)
    """
    weight, bias = (p.unflatten(0, (norm.num_groups, -1)) for p in (norm.weight, norm.bias))
    mean = bias.mean(1)
    std = (weight.square().mean(1) + bias.var(1, correction=0)).sqrt()
    per_value = len(norm.group_weight) // norm.num_groups
    norm.group_weight.copy_(std.repeat_interleave(per_value))
    norm.group_bias.copy_(mean.repeat_interleave(per_value))
