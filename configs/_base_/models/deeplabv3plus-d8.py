# DeepLabV3+ at output stride 8: mmsegmentation's Cityscapes model. It adds a decoder to `deeplabv3-d8.py`.
_base_ = './deeplabv3-d8.py'
model = dict(
    decode_head=dict(
        type='DeepLabV3PlusHead',
        c1_in_channels=256,
        c1_channels=64))  # 48 in mmseg; with 64, 32 groups divide it and the width of the decoder's input
