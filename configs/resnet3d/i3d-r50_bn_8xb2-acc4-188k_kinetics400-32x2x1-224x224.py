"""I3D-style inflated ResNet-50: BN of each device's batch, Kinetics-400, 32 frames 2 apart, 224x224.

bash tools/dist_train.sh configs/resnet3d/i3d-r50_bn_8xb2-acc4-188k_kinetics400-32x2x1-224x224.py 8
8 GPUs x 2 clips x 4 accumulated = batch 64; memory: not measured yet.
Starts from the 2D pretrained/resnet50_bn.pth, inflated.
Published: none with this model and norm.
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/i3d-r50.py', '../_base_/norms/bn.py', '../_base_/datasets/kinetics400-32x2x1-224x224.py',
    '../_base_/schedules/kinetics400-step-188k.py']
model = dict(
    backbone=dict(conv_cfg={{_base_.conv_cfg_3d}}, norm_cfg={{_base_.norm_cfg_3d}},
                  init_cfg=dict(type='Inflated2d', checkpoint='pretrained/resnet50_bn.pth')))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(accumulative_counts=4)
train_cfg = dict(max_iters=752_000, val_interval=75_200)
default_hooks = dict(checkpoint=dict(interval=75_200))
