# DeepLabV3+ at output stride 16. It differs from `deeplabv3-d16.py` only in the head: a decoder, and a 3x3 convolution
# in place of the 1x1.
_base_ = './deeplab.py'
model = dict(
    backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    decode_head=dict(
        type='DeepLabV3PlusHead',
        channels=256,
        c1_in_channels=256,
        c1_channels=64,  # 48 in mmseg; with 64, 32 groups divide it and the width of the decoder's input
        dilations=(1, 6, 12, 18),
        dropout_ratio=0,
        num_classes=21,
        align_corners=True,
        init_cfg=None,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True)))
