"""What mmsegmentation lacks for micro-batch training.

Importing this package registers all of it with mmseg, and the hooks of `wsbcn_mm.engine` that the recipes name.
"""

# ruff: noqa: E402 - the environment is judged before anything of mmseg is imported
from ..engine.environment import require_openmmlab

require_openmmlab()

from ..engine import hooks as _hooks  # noqa: F401
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
