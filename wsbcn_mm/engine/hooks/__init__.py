"""Hooks of one idea each; importing this package registers them."""

from .accumulated_gradients import AccumulatedGradientsHook
from .activation_memory import ActivationMemoryHook
from .checkpoint_guard import CheckpointGuardHook
from .class_guard import ClassGuardHook
from .data_verdict import DataSpeedHook
from .deterministic import DeterministicHook
from .each_sample_once import EvaluationPaddingHook
from .ema import EMAPerStepHook
from .fully_shard import FullyShardHook
from .iteration_seeds import IterationSeedHook
from .loader_watchdog import LoaderWatchdogHook
from .merge_statistics import StatisticsMergeHook
from .non_finite import NonFiniteHook
from .norm_report import NormReportHook
from .param_scheduler_per_step import ParamSchedulerPerStepHook
from .precise_statistics import PreciseStatisticsHook
from .preflight import LoaderMemoryHook
from .resume_position import ResumePositionHook
from .safe_checkpoint import SafeCheckpointHook
from .standardize_once import StandardizedWeightHook
from .start_from_bn import BNStartHook
from .statistics_gaps import StatisticsGapHook
from .step_statistics import StepStatisticsHook

__all__ = [
    'AccumulatedGradientsHook',
    'ActivationMemoryHook',
    'BNStartHook',
    'CheckpointGuardHook',
    'ClassGuardHook',
    'DataSpeedHook',
    'DeterministicHook',
    'EMAPerStepHook',
    'EvaluationPaddingHook',
    'FullyShardHook',
    'IterationSeedHook',
    'LoaderMemoryHook',
    'LoaderWatchdogHook',
    'NonFiniteHook',
    'NormReportHook',
    'ParamSchedulerPerStepHook',
    'PreciseStatisticsHook',
    'ResumePositionHook',
    'SafeCheckpointHook',
    'StandardizedWeightHook',
    'StatisticsGapHook',
    'StatisticsMergeHook',
    'StepStatisticsHook',
]
