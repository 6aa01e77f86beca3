# R3D (Tran et al. 2018), at depth 18 torchvision's r3d_18. The recipe sets the depth, conv_cfg and norm_cfg.
# Depths 18 and 34 have basic blocks. Depth 50 has bottlenecks whose middle convolution is 3x3x3, and 2048 channels
# before the classifier: head=dict(in_channels=2048).
default_scope = 'mmengine'
custom_imports = dict(imports=['wsbcn_mm.video'], allow_failed_imports=False)
model = dict(
    type='Recognizer3d',
    data_preprocessor=dict(type='ClipDataPreprocessor'),
    backbone=dict(
        type='ResNet3d',
        conv1_kernel=(3, 7, 7),
        conv1_stride_t=1,
        temporal_strides=(1, 2, 2, 2),
        inflate=(1, 1, 1, 1),
        inflate_style='3x3x3',
        zero_init_residual=True),
    head=dict(type='ClipHead', num_classes=400, in_channels=512, dropout_ratio=0.5))
