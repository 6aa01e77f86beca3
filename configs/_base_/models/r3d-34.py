# R3D-34: the stem and blocks of R3D-18, 3-4-6-3 of them.
_base_ = './r3d-18.py'
model = dict(backbone=dict(depth=34))
