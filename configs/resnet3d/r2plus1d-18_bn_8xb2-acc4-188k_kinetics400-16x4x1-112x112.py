"""R(2+1)D-18: BN of each device's batch, Kinetics-400, 16 frames 4 apart, 112x112.

bash tools/dist_train.sh configs/resnet3d/r2plus1d-18_bn_8xb2-acc4-188k_kinetics400-16x4x1-112x112.py 8
8 GPUs x 2 clips x 4 accumulated = batch 64; memory: not measured yet.
Starts from random weights.
Published: 67.46 / 86.18 top-1 / top-5, torchvision's r2plus1d_18 weights (published widths, 16 frames, 5 clips,
another schedule).
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/r2plus1d.py', '../_base_/norms/bn.py', '../_base_/datasets/kinetics400-16x4x1-112x112.py',
    '../_base_/schedules/kinetics400-step-188k.py']
model = dict(
    backbone=dict(depth=18, conv_cfg={{_base_.conv_cfg_3d}}, norm_cfg={{_base_.norm_cfg_3d}}))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(accumulative_counts=4)
train_cfg = dict(max_iters=752_000, val_interval=75_200)
default_hooks = dict(checkpoint=dict(interval=75_200))
