"""Hooks of one idea each; importing this package registers them."""

from .activation_memory import ActivationMemory
from .checkpoint_guard import CheckpointGuard
from .norm_report import NormReport
from .safe_checkpoint import SafeCheckpointHook
from .param_scheduler_per_step import ParamSchedulerPerStepHook
from .standardize_once import StandardizeOnceHook
from .start_from_bn import StartFromBN
from .step_statistics import StepStatisticsHook

__all__ = [
    'ActivationMemory',
    'CheckpointGuard',
    'NormReport',
    'SafeCheckpointHook',
    'ParamSchedulerPerStepHook',
    'StandardizeOnceHook',
    'StartFromBN',
    'StepStatisticsHook',
]
