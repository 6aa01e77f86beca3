"""SlowOnly ResNet-50: BN of each device's batch, Kinetics-400, 8 frames 8 apart, 224x224.

bash tools/dist_train.sh configs/resnet3d/slowonly-r50_bn_8xb2-acc4-188k_kinetics400-8x8x1-224x224.py 8
8 GPUs x 2 clips x 4 accumulated = batch 64; memory: not measured yet.
Starts from random weights.
Published: none with this model and norm.
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/slowonly-r50.py', '../_base_/norms/bn.py', '../_base_/datasets/kinetics400.py',
    '../_base_/schedules/kinetics400-step-188k.py']
model = dict(
    backbone=dict(conv_cfg={{_base_.conv_cfg_3d}}, norm_cfg={{_base_.norm_cfg_3d}}))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(accumulative_counts=4)
train_cfg = dict(max_iters=752_000, val_interval=75_200)
default_hooks = dict(checkpoint=dict(interval=75_200))
