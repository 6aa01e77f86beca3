"""Register the layers in the root registry, which every OpenMMLab scope searches."""

from mmengine.registry import MODELS

from .. import layers

CONVS = ('WSConv1d', 'WSConv2d', 'WSConv3d', 'WSConvTranspose1d', 'WSConvTranspose2d', 'WSConvTranspose3d')


def register_layers() -> None:
    """Register the six WSConv classes and 'BCN' in mmengine's root registry. A second call changes nothing."""
    for name in CONVS:
        MODELS.register_module(name=name, module=getattr(layers, name), force=MODELS.get(name) is getattr(layers, name))
    MODELS.register_module(
        name='BCN', module=layers.BatchChannelNorm, force=MODELS.get('BCN') is layers.BatchChannelNorm
    )
