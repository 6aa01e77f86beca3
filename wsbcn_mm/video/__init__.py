"""Video recognition: data, 3D networks and metrics. Importing this package registers them with mmengine."""

from . import datasets, head, inflation, metrics, preprocessor, recognizer, resnet3d, transforms

__all__ = ['datasets', 'head', 'inflation', 'metrics', 'preprocessor', 'recognizer', 'resnet3d', 'transforms']
