"""Hooks of one idea each; importing this package registers them."""

from .norm_report import NormReport

__all__ = ['NormReport']
