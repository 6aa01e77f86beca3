# Micro-batch Batch-Channel Normalization (estimated statistics) + Weight Standardization.
conv_cfg = dict(type='WSConv2d')
norm_cfg = dict(type='BCN', num_groups=32, rate=0.1, warmup=True)
conv_cfg_3d = dict(type='WSConv3d')
norm_cfg_3d = dict(type='BCN', num_groups=32, rate=0.1, warmup=True)
