"""Weight Standardization and Batch-Channel Normalization for training at one or two samples per device.

Importing this package registers the layers with OpenMMLab, if it is installed. `wsbcn_mm.ops` and `wsbcn_mm.layers`
need only torch.
"""

from importlib.util import find_spec

__version__ = '0.1.0'

if find_spec('mmengine') is not None:
    from .engine.registration import register_layers

    register_layers()
