# R3D-50: the stem of R3D-18, bottlenecks whose middle convolution is 3x3x3.
_base_ = './r3d-18.py'
model = dict(backbone=dict(depth=50), head=dict(in_channels=2048))
