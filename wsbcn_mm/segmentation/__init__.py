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
from ..engine.recipe import precision as _mixed_precision  # noqa: F401
from ..engine.resume import seeded_samples as _seeded_samples  # noqa: F401
from .data.cityscapes import StrictCityscapesDataset
from .data.image_files import LoadImage
from .data.label_map import LoadStrictLabels
from .data.transforms import PhotoMetricDistortionByTable, RandomLogScale, RandomScaledCrop
from .data.voc import StrictVOCDataset
from .evaluation.metrics import StrictIoUMetric
from .evaluation.overlays import OverlayHook
from .evaluation.predictions import SavePredictions
from .evaluation.tta import MeanProbability
from .models.checks import NormCheckHook, check_norms
from .models.heads import DeepLabV3Head, DeepLabV3PlusHead

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
