# DeepLabV3 on ResNet-50 at output stride 16 as the BCN authors' `deeplab.py` has it for VOC: ASPP rates 6, 12, 18 of
# 256 channels, 1x1 bottleneck, no auxiliary head, no dropout, multigrid (1, 1, 1), corners aligned, torch's own
# initialisation of the classifier, loss averaged over the pixels that have a label. The recipe sets convs and norms.
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
        type='DeepLabV3Head',
        in_channels=2048,
        in_index=3,
        channels=256,
        dilations=(1, 6, 12, 18),
        bottleneck_kernel_size=1,
        dropout_ratio=0,
        num_classes=21,
        align_corners=True,
        init_cfg=None,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
