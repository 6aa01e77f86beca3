# Micro-batch Batch-Channel Normalization (estimated statistics), plain convolutions.
conv_cfg = dict(type='Conv2d')
norm_cfg = dict(type='BCN', num_groups=32, rate=0.1, warmup=True)
conv_cfg_3d = dict(type='Conv3d')
norm_cfg_3d = dict(type='BCN', num_groups=32, rate=0.1, warmup=True)
