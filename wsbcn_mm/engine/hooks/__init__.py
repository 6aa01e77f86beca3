"""Hooks of one idea each; importing this package registers them."""

from .accumulated_gradients import AccumulatedGradients
from .activation_memory import ActivationMemory
from .checkpoint_guard import CheckpointGuard
from .class_guard import ClassGuard
from .data_verdict import DataVerdict
from .deterministic import Deterministic
from .each_sample_once import EachSampleOnce
from .ema import EMAPerStepHook
from .fully_shard import FullyShardHook
from .iteration_seeds import IterationSeeds
from .loader_watchdog import LoaderWatchdog
from .merge_statistics import MergeStatistics
from .non_finite import StopAtNonFinite
from .norm_report import NormReport
from .param_scheduler_per_step import ParamSchedulerPerStepHook
from .precise_statistics import PreciseStatistics
from .preflight import Preflight
from .resume_position import ResumePosition
from .safe_checkpoint import SafeCheckpointHook
from .standardize_once import StandardizeOnceHook
from .start_from_bn import StartFromBN
from .statistics_gaps import StatisticsGaps
from .step_statistics import StepStatisticsHook

__all__ = [
    'AccumulatedGradients',
    'ActivationMemory',
    'CheckpointGuard',
    'ClassGuard',
    'DataVerdict',
    'Deterministic',
    'EMAPerStepHook',
    'EachSampleOnce',
    'FullyShardHook',
    'IterationSeeds',
    'LoaderWatchdog',
    'MergeStatistics',
    'NormReport',
    'ParamSchedulerPerStepHook',
    'PreciseStatistics',
    'Preflight',
    'ResumePosition',
    'SafeCheckpointHook',
    'StandardizeOnceHook',
    'StartFromBN',
    'StatisticsGaps',
    'StepStatisticsHook',
    'StopAtNonFinite',
]
