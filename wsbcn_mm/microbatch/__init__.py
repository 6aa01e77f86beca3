"""Batch arithmetic: what several micro-batches share within one optimizer step."""

from .activation_memory import set_activation_memory
from .matched_rate import matched_rate
from .step_statistics import StepStatistics

__all__ = ['StepStatistics', 'matched_rate', 'set_activation_memory']
