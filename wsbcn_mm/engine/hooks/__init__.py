"""Hooks of one idea each; importing this package registers them."""

from .accumulated_gradients import AccumulatedGradients
from .activation_memory import ActivationMemory
from .checkpoint_guard import CheckpointGuard
from .class_guard import ClassGuard
from .deterministic import Deterministic
from .each_sample_once import EachSampleOnce
from .iteration_seeds import IterationSeeds
from .norm_report import NormReport
from .param_scheduler_per_step import ParamSchedulerPerStepHook
from .resume_position import ResumePosition
from .safe_checkpoint import SafeCheckpointHook
from .standardize_once import StandardizeOnceHook
from .start_from_bn import StartFromBN
from .step_statistics import StepStatisticsHook

__all__ = [
    'AccumulatedGradients',
    'ActivationMemory',
    'CheckpointGuard',
    'ClassGuard',
    'Deterministic',
    'EachSampleOnce',
    'IterationSeeds',
    'NormReport',
    'ParamSchedulerPerStepHook',
    'ResumePosition',
    'SafeCheckpointHook',
    'StandardizeOnceHook',
    'StartFromBN',
    'StepStatisticsHook',
]
