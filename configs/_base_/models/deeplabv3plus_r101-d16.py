_base_ = './deeplabv3plus_r50-d16.py'
model = dict(backbone=dict(depth=101))
