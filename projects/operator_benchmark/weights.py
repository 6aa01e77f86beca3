"""Weight Standardization of all convolutions of a ResNet-50, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from projects.operator_benchmark.norms import GateError
from wsbcn_mm.ops import weight_standardize

TOLERANCE = 1e-5
EPS = 1e-5

Standardize = Callable[[Tensor], Tensor]


def plain(weight: Tensor) -> Tensor:
    """The authors' formula: three means, a difference, a standard deviation, a quotient."""
    mean = weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
    centred = weight - mean
    std = centred.flatten(1).std(1).view(-1, 1, 1, 1) + EPS
    return centred / std


def mmcv(weight: Tensor) -> Tensor:
    """The standardisation of mmcv's ConvWS, without the convolution."""
    rows = weight.flatten(1)
    mean, std = (moment.view(-1, 1, 1, 1) for moment in (rows.mean(1), rows.std(1)))
    return (weight - mean) / (std + EPS)


SIDES: dict[str, Standardize] = {'plain': plain, 'mmcv': mmcv, 'ws': weight_standardize}


def conv_weights(device: torch.device, *, quick: bool = False) -> list[Tensor]:
    """Return the random convolution weights of torchvision's ResNet-50, or of ResNet-18 if `quick`."""
    torch.manual_seed(0)
    model = (resnet18 if quick else resnet50)(weights=None).to(device)
    return [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]


def forward_and_backward(side: Standardize, weights: list[Tensor], grads: list[Tensor]) -> Callable[[], object]:
    """Return a pass that standardises all weights, then takes all gradients."""
    return lambda: torch.autograd.grad([side(weight) for weight in weights], weights, grads)


def gate(weights: list[Tensor], grads: list[Tensor], side: Standardize = weight_standardize) -> float:
    """Compare a side with the plain formula in float64.

    Returns:
        The largest relative error of a weight or its gradient, in the 2-norm of the whole tensor.

    Raises:
        GateError: If it exceeds `TOLERANCE` or is NaN.
    """
    largest = 0.0
    for weight, grad in zip(weights, grads, strict=True):
        exact = weight.detach().double().requires_grad_()
        right = plain(exact)
        out = side(weight)
        pairs = {
            'out': (out, right),
            'dweight': (*torch.autograd.grad(out, weight, grad), *torch.autograd.grad(right, exact, grad.double())),
        }
        found = {name: float((a.double() - b).detach().norm() / b.detach().norm()) for name, (a, b) in pairs.items()}
        if not all(error <= TOLERANCE for error in found.values()):
            numbers = ', '.join(f'{key} {error:.2g}' for key, error in found.items())
            raise GateError(
                f'WS of a weight {tuple(weight.shape)} differs from the plain formula in float64 by more than '
                f'{TOLERANCE:g}: {numbers}'
            )
        largest = max(largest, *found.values())
    return largest
