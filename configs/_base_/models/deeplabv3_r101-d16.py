_base_ = './deeplabv3_r50-d16.py'
model = dict(backbone=dict(depth=101))
