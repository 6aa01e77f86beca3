"""I3D-style inflated ResNet-50: BCN (estimated statistics) + WS, Kinetics-400, 32 frames 2 apart, 224x224.

python tools/train.py configs/resnet3d/i3d-r50_bcn-ws_1xb1-acc64-188k_kinetics400-32x2x1-224x224.py
1 GPU x 1 clip x 64 accumulated = batch 64; memory: not measured yet.
Starts from the 2D pretrained/resnet50_bcn_ws.pth, inflated.
Published: none with this model and norm.
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/i3d-r50.py', '../_base_/norms/bcn-ws.py', '../_base_/datasets/kinetics400-32x2x1-224x224.py',
    '../_base_/schedules/kinetics400-step-188k.py']
model = dict(
    backbone=dict(conv_cfg={{_base_.conv_cfg_3d}}, norm_cfg={{_base_.norm_cfg_3d}},
                  init_cfg=dict(type='Inflated2d', checkpoint='pretrained/resnet50_bcn_ws.pth')))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=64)
train_cfg = dict(max_iters=12_032_000, val_interval=1_203_200)
default_hooks = dict(checkpoint=dict(interval=1_203_200))
