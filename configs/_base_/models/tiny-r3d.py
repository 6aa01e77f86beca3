# An R3D that trains on two CPU cores: ResNet-18's first three stages at a quarter of the width, early pooling.
default_scope = 'mmengine'
custom_imports = dict(imports=['wsbcn_mm.video'], allow_failed_imports=False)
model = dict(
    type='Recognizer3d',
    data_preprocessor=dict(type='ClipDataPreprocessor'),
    backbone=dict(
        type='ResNet3d',
        depth=18,
        base_channels=16,
        num_stages=3,
        spatial_strides=(1, 2, 2),
        temporal_strides=(1, 2, 2),
        dilations=(1, 1, 1),
        inflate=(1, 1, 1),
        with_pool1=True,
        zero_init_residual=False),
    head=dict(type='ClipHead', num_classes=8, in_channels=64, dropout_ratio=0.0))
