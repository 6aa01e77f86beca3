# R(2+1)D-34: as R(2+1)D-18 with 3-4-6-3 blocks.
_base_ = './r3d-18.py'
model = dict(backbone=dict(depth=34, factorize=True, mid_channels_divisor=32))
