"""Bytes that a step allocates, against bytes counted by hand."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from wsbcn_mm.diagnostics.activation_bytes import ActivationBytes, activation_bytes

SCALAR = 4


def test_saved_tensors_are_kept_and_the_others_are_not():
    w = torch.randn(1000, requires_grad=True)
    w.grad = torch.zeros_like(w)
    # w * 2 is not saved, its exponential is. Backward holds it, the gradient of the sum and its own gradients.
    counted = activation_bytes(lambda: (w * 2).exp().sum())
    assert counted.kept == 4000 + SCALAR
    assert 8000 <= counted.peak <= 3 * 4000 + 2 * SCALAR


def test_views_and_earlier_tensors_do_not_count():
    w, x = torch.randn(1000, requires_grad=True), torch.randn(1000)
    counted = activation_bytes(lambda: (w.view(10, 100).t() * x.view(100, 10)).sum())
    assert counted.kept == SCALAR
    buffer = torch.zeros(1000)

    def in_place():
        buffer.add_(1)
        return (w * buffer.clone().view(-1)).sum()

    assert activation_bytes(in_place).kept == 4000 + SCALAR


def test_a_tensor_held_by_the_caller_is_kept():
    w, held = torch.randn(1000, requires_grad=True), []

    def forward():
        held.append(w * 3)
        return held[0].sum()

    assert activation_bytes(forward).kept == 4000 + SCALAR


def test_checkpointing_shows_and_its_recomputation_is_in_the_peak():
    torch.manual_seed(0)
    net = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.Sigmoid())))
    x = torch.randn(256, 64)
    one = 256 * 64 * 4

    plain = activation_bytes(lambda: net(x).sum())
    assert plain == ActivationBytes(8 * one + SCALAR, plain.peak)
    less = activation_bytes(lambda: checkpoint(net, x, use_reentrant=False, preserve_rng_state=False).sum())
    # Only the output is alive, and only until the sum's backward.
    assert less.kept <= one + SCALAR
    assert 8 * one < less.peak <= plain.peak + 2 * one


def test_gradients_are_those_without_counting():
    net, x = nn.Linear(5, 3), torch.randn(4, 5)
    net(x).square().sum().backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    activation_bytes(lambda: net(x).square().sum())
    assert all(torch.equal(p.grad, e) for p, e in zip(net.parameters(), expected, strict=True))
