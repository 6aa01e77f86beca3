# Group Normalization.
conv_cfg = dict(type='Conv2d')
norm_cfg = dict(type='GN', num_groups=32)
conv_cfg_3d = dict(type='Conv3d')
norm_cfg_3d = dict(type='GN', num_groups=32)
