"""From a network with BN to one with WS and BCN little by little: alpha goes from 0, what was trained, to 1.

    convolution      W_hat x + (1 - alpha) k sum(x)          k: means of the filters at the start, see `start_from_bn`
    norm             (1 - alpha) y + alpha CN(y)             y: output of the batch half, CN: channel half

The layers are plain WSConv and BatchChannelNorm layers at any time, and the state of the model is the ordinary one:
what is not there yet is added by forward hooks, which go when alpha has come to 1.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from ..layers import BatchChannelNorm
from .kinds import conv_kind
from .replacement import plain_conv


class Gradual:
    """Blend Weight Standardization and the channel half in; `alpha` says how far.

        start = start_from_bn(model, example=x)
        gradual = Gradual(model, start.lost_means, start.norms)
        for step in range(steps):
            gradual.alpha = step / steps
            ...
        gradual.finish()

    With alpha 0, in evaluation, the model computes what the BN network did. In training its batch halves work as
    BatchChannelNorm does (estimates that move, no gradient through them) behind the channel half; beside it, y is
    normalised with the estimates as they stand after the forward.

    The state of the model knows nothing of alpha: whoever loads it elsewhere gets the layers of alpha 1, and makes a
    Gradual from `state_dict` for those of now.

    Args:
        model: With WSConv and BatchChannelNorm layers, from `start_from_bn` or `adopt_bn_weights`.
        lost_means: WS convolution -> k (O,).
        norms: Names of the BatchChannelNorm layers whose channel half is blended in.
        alpha: To begin with.

    Raises:
        ValueError: For an alpha outside [0, 1], or for names and sizes that are not those of the model's layers.
    """

    def __init__(
        self, model: nn.Module, lost_means: Mapping[str, Tensor], norms: Iterable[str], alpha: float = 0.0
    ) -> None:
        layers: dict[str, Any] = dict(model.named_modules())
        self.alpha = alpha
        self._lost_means, self._norms = dict(lost_means), list(norms)
        self._handles: list[RemovableHandle] = []
        for name, mean in self._lost_means.items():
            conv: Any = layers.get(name)
            if conv_kind(conv) != 'WS' or mean.shape != (conv.out_channels,):
                raise ValueError(
                    f'the model has no WS convolution `{name}` with {len(mean)} filters: their means are of another one'
                )
        for name in self._norms:
            if not isinstance(layers.get(name), BatchChannelNorm):
                raise ValueError(f'the model has no BatchChannelNorm `{name}` to blend in')
        for name, mean in self._lost_means.items():
            self._handles.append(layers[name].register_forward_hook(self._hook_of_conv(layers[name], mean)))
        for name in self._norms:
            self._handles.append(layers[name].register_forward_hook(self._add_batch_half))

    @property
    def alpha(self) -> float:
        """Share of Weight Standardization and of the channel half, from 0 to 1."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ValueError(f'alpha={value!r} is no share: a number from 0 (BN) to 1 (WS and BCN) is expected')
        self._alpha = float(value)

    def finish(self) -> None:
        """Leave plain layers, whatever alpha is."""
        self.alpha = 1.0
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def state_dict(self) -> dict[str, Any]:
        """The arguments that make it again on a model with the same state: `Gradual(model, **state)`. Plain data."""
        return dict(
            lost_means={name: mean.detach().cpu() for name, mean in self._lost_means.items()},
            norms=list(self._norms),
            alpha=self.alpha,
        )

    def _hook_of_conv(self, conv: Any, mean: Tensor) -> Any:
        window, mean = window_sums(conv), mean.to(conv.weight)

        def add_mean(conv: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
            if self.alpha == 1:
                return out
            sums = functional_call(window, {'weight': _ones(window, conv.weight)}, args)  # (N, groups, *)
            channels = -1 - len(conv.kernel_size)
            left = (1 - self.alpha) * mean.to(out).view(conv.groups, -1, *(1,) * len(conv.kernel_size))
            grouped = out.unflatten(channels, (conv.groups, -1))
            return torch.addcmul(grouped, left, sums.unsqueeze(channels).to(out)).flatten(channels - 1, channels)

        return add_mean

    def _add_batch_half(self, norm: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if self.alpha == 1:
            return out
        # Copies, because autograd keeps them and the estimates move on.
        mean, var = norm.running_mean.clone(), norm.running_var.clone()
        y = F.batch_norm(args[0], mean, var, norm.weight, norm.bias, training=False, eps=norm.eps)
        return torch.lerp(y.to(out), out, self.alpha)


def window_sums(conv: Any) -> nn.Module:
    """A convolution like `conv` with one filter per group; with ones in it, it sums what a filter sees.

    It is on the meta device, and gets its weight with every call.
    """
    kind: Any = type(plain_conv(conv))
    options = dict(output_padding=conv.output_padding) if conv.transposed else {}
    window: nn.Module = kind(
        conv.in_channels,
        conv.groups,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=False,
        padding_mode=conv.padding_mode,
        device='meta',
        **options,
    )
    return window


def _ones(window: nn.Module, like: Tensor) -> Tensor:
    weight = window.weight
    assert isinstance(weight, Tensor)
    return like.new_ones(weight.shape)
