"""Hooks of one idea each; importing this package registers them."""

from .checkpoint_guard import CheckpointGuard
from .norm_report import NormReport
from .standardize_once import StandardizeOnceHook
from .step_statistics import StepStatisticsHook

__all__ = ['CheckpointGuard', 'NormReport', 'StandardizeOnceHook', 'StepStatisticsHook']
