# Batch-Channel Normalization with live statistics of all devices' batches, the authors' VOC setting,
# + Weight Standardization. Runs on CPU too.
conv_cfg = dict(type='WSConv2d')
norm_cfg = dict(type='BCN', num_groups=32, statistics='sync')
conv_cfg_3d = dict(type='WSConv3d')
norm_cfg_3d = dict(type='BCN', num_groups=32, statistics='sync')
