# Batch Normalization of each device's own batch + Weight Standardization.
conv_cfg = dict(type='WSConv2d')
norm_cfg = dict(type='BN')
conv_cfg_3d = dict(type='WSConv3d')
norm_cfg_3d = dict(type='BN3d')
