"""What mmsegmentation lacks for micro-batch training; importing this package registers all of it with mmseg."""

# ruff: noqa: E402 - the environment is judged before anything of mmseg is imported
from ..engine.environment import require_openmmlab

require_openmmlab()

from .checks import MicroBatchNormCheck, check_norms
from .heads import DeepLabV3Head, DeepLabV3PlusHead
from .metrics import StrictIoUMetric
from .overlays import SaveOverlays
from .transforms import RandomLogScale

__all__ = [
    'DeepLabV3Head',
    'DeepLabV3PlusHead',
    'MicroBatchNormCheck',
    'RandomLogScale',
    'SaveOverlays',
    'StrictIoUMetric',
    'check_norms',
]
