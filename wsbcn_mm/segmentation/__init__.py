"""Datasets, transforms, heads, metrics and hooks that mmsegmentation lacks for micro-batch training.

Importing this package registers them with mmseg, together with the hooks and wrappers of `wsbcn_mm.engine` that recipes
name.
"""

# ruff: noqa: E402 - the environment is checked before anything of mmseg is imported
import warnings

from ..engine.environment import require_openmmlab

require_openmmlab('segmentation')
with warnings.catch_warnings():
    # mmseg advises to install another mmcv, for compiled operators that nothing here uses.
    warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')
    import mmseg.models as _models  # noqa: F401

from ..engine import hooks as _hooks  # noqa: F401
from ..engine.recipe import precision as _mixed_precision  # noqa: F401
from ..engine.resume import order as _seeded_samples  # noqa: F401
from .data.cityscapes import StrictCityscapesDataset
from .data.folder import FolderSegDataset
from .data.image_files import LoadImage
from .data.label_map import LoadStrictLabels
from .data.transforms import PhotoMetricDistortionByTable, RandomLogScale, RandomScaledCrop
from .data.voc import StrictVOCDataset
from .evaluation.metrics import StrictIoUMetric
from .evaluation.overlays import OverlayHook
from .evaluation.predictions import SavePredictions
from .evaluation.tta import MeanProbability
from .inference import visualizer as _visualizer  # noqa: F401 - recipes name it
from .models.checks import NormCheckHook
from .models.heads import DeepLabV3Head, DeepLabV3PlusHead

__all__ = [
    'DeepLabV3Head',
    'DeepLabV3PlusHead',
    'FolderSegDataset',
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
]
