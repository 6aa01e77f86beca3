# ResNet-101 inflated in the style of I3D: as i3d-r50, 3x1x1 in every second of the 23 blocks of the third stage.
_base_ = './i3d-r50.py'
model = dict(backbone=dict(depth=101, inflate=((1, 1, 1), (1, 0, 1, 0), (1, 0) * 11 + (1, ), (0, 1, 0))))
