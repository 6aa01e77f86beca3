"""Video recognition: data, 3D networks and metrics.

Importing this package registers them with mmengine, together with the hooks and wrappers of `wsbcn_mm.engine` that
recipes name.
"""

# ruff: noqa: E402 - the environment is checked before anything of mmengine is imported
from ..engine.environment import require_openmmlab

require_openmmlab('video')

from ..engine import hooks as _hooks  # noqa: F401
from ..engine.recipe import precision as _mixed_precision  # noqa: F401
from ..engine.resume import order as _seeded_samples  # noqa: F401
from .data.datasets import KineticsDataset, SomethingV1Dataset, SomethingV2Dataset
from .data.folder import FolderClipDataset
from .data.transforms import (
    CenterCropClip,
    DecodeClip,
    FlipClip,
    MultiScaleCropClip,
    PackClipInputs,
    RandomResizedCropClip,
    ResizeClip,
    ThreeCropClip,
)
from .evaluation.metrics import TopKAccuracy
from .evaluation.strips import ClipStripHook
from .models.head import ClipHead
from .models.inflation import Inflated2d
from .models.preprocessor import ClipDataPreprocessor
from .models.recognizer import Recognizer3d
from .models.resnet3d import ResNet3d

__all__ = [
    'CenterCropClip',
    'ClipDataPreprocessor',
    'ClipHead',
    'ClipStripHook',
    'DecodeClip',
    'FlipClip',
    'FolderClipDataset',
    'Inflated2d',
    'KineticsDataset',
    'MultiScaleCropClip',
    'PackClipInputs',
    'RandomResizedCropClip',
    'Recognizer3d',
    'ResNet3d',
    'ResizeClip',
    'SomethingV1Dataset',
    'SomethingV2Dataset',
    'ThreeCropClip',
    'TopKAccuracy',
]
