# SlowOnly ResNet-50 (Feichtenhofer et al. 2019): frames stay apart up to the second stage, 3x1x1 in every block of the
# last two, no temporal stride. The recipe sets conv_cfg and norm_cfg.
default_scope = 'mmengine'
custom_imports = dict(imports=['wsbcn_mm.video'], allow_failed_imports=False)
model = dict(
    type='Recognizer3d',
    data_preprocessor=dict(type='ClipDataPreprocessor'),
    backbone=dict(
        type='ResNet3d',
        depth=50,
        conv1_kernel=(1, 7, 7),
        conv1_stride_t=1,
        with_pool1=True,
        pool1_stride_t=1,
        temporal_strides=(1, 1, 1, 1),
        inflate=(0, 0, 1, 1),
        inflate_style='3x1x1',
        zero_init_residual=True),
    head=dict(type='ClipHead', num_classes=400, in_channels=2048, dropout_ratio=0.5))
