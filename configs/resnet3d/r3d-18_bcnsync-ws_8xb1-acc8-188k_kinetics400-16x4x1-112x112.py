"""R3D-18: BCN (statistics synchronised over devices) + WS, Kinetics-400, 16 frames 4 apart, 112x112.

bash tools/dist_train.sh configs/resnet3d/r3d-18_bcnsync-ws_8xb1-acc8-188k_kinetics400-16x4x1-112x112.py 8
8 GPUs x 1 clip x 8 accumulated = batch 64; memory: not measured yet.
Starts from random weights.
Published: none with this model and norm.
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/r3d-18.py', '../_base_/norms/bcnsync-ws.py', '../_base_/datasets/kinetics400-16x4x1-112x112.py',
    '../_base_/schedules/kinetics400-step-188k.py']
model = dict(
    backbone=dict(conv_cfg={{_base_.conv_cfg_3d}}, norm_cfg={{_base_.norm_cfg_3d}}))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=8)
train_cfg = dict(max_iters=1_504_000, val_interval=150_400)
default_hooks = dict(checkpoint=dict(interval=150_400))
