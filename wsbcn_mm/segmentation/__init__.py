"""What mmsegmentation lacks for micro-batch training.

Importing this package registers all of it with mmseg, and the hooks and wrappers of `wsbcn_mm.engine` that recipes
name.
"""

# ruff: noqa: E402 - the environment is judged before anything of mmseg is imported
import warnings

from ..engine.environment import require_openmmlab

require_openmmlab('segmentation')
with warnings.catch_warnings():
    # Its advice to install another mmcv is for compiled operators, which nothing here uses.
    warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')
    import mmseg.models as _models  # noqa: F401

from ..engine import hooks as _hooks  # noqa: F401
from ..engine import mixed_precision as _mixed_precision  # noqa: F401
from ..engine import seeded_samples as _seeded_samples  # noqa: F401
from .checks import NormCheckHook, check_norms
from .cityscapes import StrictCityscapesDataset
from .heads import DeepLabV3Head, DeepLabV3PlusHead
from .image_files import LoadImage
from .label_map import LoadStrictLabels
from .metrics import StrictIoUMetric
from .overlays import OverlayHook
from .photometric import PhotoMetricDistortionByTable
from .predictions import SavePredictions
from .scaled_crop import RandomScaledCrop
from .transforms import RandomLogScale
from .tta import MeanProbability
from .voc import StrictVOCDataset

__all__ = [
    'DeepLabV3Head',
    'DeepLabV3PlusHead',
    'LoadImage',
    'LoadStrictLabels',
    'MeanProbability',
    'NormCheckHook',
    'OverlayHook',
    'PhotoMetricDistortionByTable',
    'RandomLogScale',
    'RandomScaledCrop',
    'SavePredictions',
    'StrictCityscapesDataset',
    'StrictIoUMetric',
    'StrictVOCDataset',
    'check_norms',
]
