"""Measure what training does to a model. Needs only torch."""

from .activation_bytes import ActivationBytes, activation_bytes

__all__ = ['ActivationBytes', 'activation_bytes']
