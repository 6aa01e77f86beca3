"""Pure functions on tensors: the mathematics of Weight Standardization and Batch-Channel Normalization."""

from .batch_norm import batch_norm
from .bcn.batch_channel_norm import batch_channel_norm
from .ws.weight_standardization import VARIANTS, weight_standardize

__all__ = ['VARIANTS', 'batch_channel_norm', 'batch_norm', 'weight_standardize']
