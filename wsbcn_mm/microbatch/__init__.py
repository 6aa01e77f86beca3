"""Micro-batches of one optimizer step: batch arithmetic, shared statistics and activation memory."""

from .activation_memory import set_activation_memory
from .matched_rate import matched_rate
from .step_statistics import StepStatistics

__all__ = ['StepStatistics', 'matched_rate', 'set_activation_memory']
