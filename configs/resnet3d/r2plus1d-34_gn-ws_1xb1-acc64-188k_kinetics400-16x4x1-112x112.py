"""R(2+1)D-34: GN + WS, Kinetics-400, 16 frames 4 apart, 112x112.

python tools/train.py configs/resnet3d/r2plus1d-34_gn-ws_1xb1-acc64-188k_kinetics400-16x4x1-112x112.py
1 GPU x 1 clip x 64 accumulated = batch 64; memory: not measured yet.
Starts from random weights.
Published: none with this model and norm.
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/r2plus1d.py', '../_base_/norms/gn-ws.py', '../_base_/datasets/kinetics400-16x4x1-112x112.py',
    '../_base_/schedules/kinetics400-step-188k.py']
model = dict(
    backbone=dict(depth=34, conv_cfg={{_base_.conv_cfg_3d}}, norm_cfg={{_base_.norm_cfg_3d}}))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=64)
train_cfg = dict(max_iters=12_032_000, val_interval=1_203_200)
default_hooks = dict(checkpoint=dict(interval=1_203_200))
