# R3D-18 as torchvision's r3d_18 (Tran et al. 2018). A recipe gives conv_cfg and norm_cfg.
default_scope = 'mmengine'
custom_imports = dict(imports=['wsbcn_mm.video'], allow_failed_imports=False)
model = dict(
    type='Recognizer3d',
    data_preprocessor=dict(type='ClipDataPreprocessor'),
    backbone=dict(
        type='ResNet3d',
        depth=18,
        conv1_kernel=(3, 7, 7),
        conv1_stride_t=1,
        temporal_strides=(1, 2, 2, 2),
        inflate=(1, 1, 1, 1),
        inflate_style='3x3x3',
        zero_init_residual=True),
    head=dict(type='ClipHead', num_classes=400, in_channels=512, dropout_ratio=0.5))
