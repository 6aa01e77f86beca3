# Group Normalization + Weight Standardization.
conv_cfg = dict(type='WSConv2d')
norm_cfg = dict(type='GN', num_groups=32)
conv_cfg_3d = dict(type='WSConv3d')
norm_cfg_3d = dict(type='GN', num_groups=32)
