"""Video recognition: data, 3D networks and metrics.

Importing this package registers them with mmengine, and the hooks and wrappers of `wsbcn_mm.engine` that recipes name.
"""

# ruff: noqa: E402 - the environment is judged before anything of mmengine is imported
from ..engine.environment import require_openmmlab

require_openmmlab('video')

from ..engine import hooks as _hooks  # noqa: F401
from ..engine.recipe import precision as _mixed_precision  # noqa: F401
from ..engine.resume import seeded_samples as _seeded_samples  # noqa: F401
from .data import datasets, transforms
from .evaluation import metrics, strips
from .models import head, inflation, preprocessor, recognizer, resnet3d

__all__ = [
    'datasets',
    'head',
    'inflation',
    'metrics',
    'preprocessor',
    'recognizer',
    'resnet3d',
    'strips',
    'transforms',
]
