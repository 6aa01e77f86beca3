# Batch Normalization with the statistics of all devices' batches (GPU only; mmengine turns it into BN on one process).
conv_cfg = dict(type='Conv2d')
norm_cfg = dict(type='SyncBN')
conv_cfg_3d = dict(type='Conv3d')
norm_cfg_3d = dict(type='SyncBN')
