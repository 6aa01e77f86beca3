"""Measure what training does to a model. It needs torch alone."""

from .activation_bytes import ActivationBytes, activation_bytes

__all__ = ['ActivationBytes', 'activation_bytes']
