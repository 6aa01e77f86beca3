"""Index of the hooks; importing it registers them."""

from .checkpoint.class_guard import ClassGuardHook
from .checkpoint.norm_guard import CheckpointGuardHook
from .checkpoint.saving import SafeCheckpointHook
from .data.advice import DataSpeedHook
from .data.watchdog import LoaderWatchdogHook
from .evaluation.streaming_metric import EvaluationPaddingHook
from .guards.deterministic import DeterministicHook
from .guards.non_finite import NonFiniteHook
from .launch.fully_shard import FullyShardHook
from .memory.activations import ActivationMemoryHook
from .memory.loaders import LoaderMemoryHook
from .recipe.batch_plan import ParamSchedulerPerStepHook
from .resume.accumulation import AccumulatedGradientsHook
from .resume.position import ResumePositionHook
from .resume.seeds import IterationSeedHook
from .statistics.averaging import EMAPerStepHook
from .statistics.gaps import StatisticsGapHook
from .statistics.norm_report import NormReportHook
from .statistics.recalibration import PreciseStatisticsHook
from .statistics.sharing import StatisticsMergeHook, StepStatisticsHook
from .statistics.standardized_weight import StandardizedWeightHook
from .statistics.start_from_bn import BNStartHook

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
