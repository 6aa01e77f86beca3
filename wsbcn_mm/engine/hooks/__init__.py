"""Hooks of one idea each; importing this package registers them."""

from .activation_memory import ActivationMemory
from .checkpoint_guard import CheckpointGuard
from .norm_report import NormReport
from .param_scheduler_per_step import ParamSchedulerPerStepHook
from .safe_checkpoint import SafeCheckpointHook
from .standardize_once import StandardizeOnceHook
from .start_from_bn import StartFromBN
from .step_statistics import StepStatisticsHook

__all__ = [
    'ActivationMemory',
    'CheckpointGuard',
    'NormReport',
    'ParamSchedulerPerStepHook',
    'SafeCheckpointHook',
    'StandardizeOnceHook',
    'StartFromBN',
    'StepStatisticsHook',
]
