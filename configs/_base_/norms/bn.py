# Batch Normalization with the statistics of each device's own batch.
conv_cfg = dict(type='Conv2d')
norm_cfg = dict(type='BN')
conv_cfg_3d = dict(type='Conv3d')
norm_cfg_3d = dict(type='BN3d')
