# ResNet-50 inflated in the style of I3D (Wang et al. 2018, table 1; mmaction2's i3d_r50): 5x7x7 stem, time halved by
# stem and both pools, 3x1x1 in every second block from the second stage on. The recipe sets conv_cfg and norm_cfg.
default_scope = 'mmengine'
custom_imports = dict(imports=['wsbcn_mm.video'], allow_failed_imports=False)
model = dict(
    type='Recognizer3d',
    data_preprocessor=dict(type='ClipDataPreprocessor'),
    backbone=dict(
        type='ResNet3d',
        depth=50,
        conv1_kernel=(5, 7, 7),
        conv1_stride_t=2,
        with_pool1=True,
        pool1_stride_t=2,
        with_pool2=True,
        temporal_strides=(1, 1, 1, 1),
        inflate=((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0)),
        inflate_style='3x1x1',
        zero_init_residual=True),
    head=dict(type='ClipHead', num_classes=400, in_channels=2048, dropout_ratio=0.5))
