# DeepLabV3+ on ResNet-50 at output stride 16, differing from `deeplabv3_r50-d16.py` in the head alone: the decoder, and
# a 3x3 convolution where that one has a 1x1. The recipe sets convs and norms.
default_scope = 'mmseg'
custom_imports = dict(imports=['wsbcn_mm.segmentation'], allow_failed_imports=False)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255),
    backbone=dict(
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 1, 2),
        strides=(1, 2, 2, 1),
        norm_eval=False,
        style='pytorch',
        contract_dilation=True,
        # mmseg would zero `weight` of the last norm, which in BCN is not the output scale.
        zero_init_residual=False),
    decode_head=dict(
        type='DeepLabV3PlusHead',
        in_channels=2048,
        in_index=3,
        channels=256,
        c1_in_channels=256,
        c1_channels=64,  # 48 in mmseg; with 64, 32 groups divide it and the width of the decoder's input
        dilations=(1, 6, 12, 18),
        dropout_ratio=0,
        num_classes=21,
        align_corners=True,
        init_cfg=None,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
