# A DeepLabV3 that trains on two CPU cores: ResNet-18 at a quarter of the width, output stride 8, ASPP of 64 channels.
# The image pooling branch has no norm, whatever the recipe's norm: Batch Normalization is undefined there at batch 1.
default_scope = 'mmseg'
custom_imports = dict(imports=['wsbcn_mm.segmentation'], allow_failed_imports=False)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(64, 64),
        pad_val=0,
        seg_pad_val=255),
    backbone=dict(
        type='ResNet',
        depth=18,
        stem_channels=16,
        base_channels=16,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        contract_dilation=True,
        style='pytorch',
        zero_init_residual=False),
    decode_head=dict(
        type='DeepLabV3Head',
        in_channels=128,
        in_index=3,
        channels=64,
        dilations=(1, 2, 3),
        dropout_ratio=0,
        num_classes=4,
        bottleneck_kernel_size=1,
        image_pool_norm=False,
        align_corners=False,
        # Most pixels are background.
        loss_decode=dict(type='CrossEntropyLoss', class_weight=[0.25, 1.0, 1.0, 1.0])),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
