# DeepLabV3 at output stride 16 as the BCN authors' `deeplab.py` has it for VOC: ASPP rates 6, 12, 18 of 256 channels,
# 1x1 bottleneck, no auxiliary head, no dropout, multigrid (1, 1, 1), corners aligned, torch's own initialisation of the
# classifier, loss averaged over the pixels that have a label.
_base_ = './deeplab.py'
model = dict(
    backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    decode_head=dict(
        type='DeepLabV3Head',
        channels=256,
        dilations=(1, 6, 12, 18),
        bottleneck_kernel_size=1,
        dropout_ratio=0,
        num_classes=21,
        align_corners=True,
        init_cfg=None,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True)))
