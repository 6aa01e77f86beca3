"""SlowOnly ResNet-50: BCN (estimated statistics) + WS, Something-Something v2, 8 segments, 224x224.

python tools/train.py configs/resnet3d/slowonly-r50_bcn-ws_1xb1-acc64-132k_sthv2-8seg-224x224.py
1 GPU x 1 clip x 64 accumulated = batch 64; memory: not measured yet.
Starts from the 2D pretrained/resnet50_bcn_ws.pth, inflated.
Published: none with this model and norm.
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/slowonly-r50.py', '../_base_/norms/bcn-ws.py', '../_base_/datasets/sthv2.py',
    '../_base_/schedules/sthv2-step-132k.py']
model = dict(
    backbone=dict(conv_cfg={{_base_.conv_cfg_3d}}, norm_cfg={{_base_.norm_cfg_3d}},
                  init_cfg=dict(type='Inflated2d', checkpoint='pretrained/resnet50_bcn_ws.pth')),
    head=dict(num_classes=174, init_std=0.001))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=64)
train_cfg = dict(max_iters=8_448_000, val_interval=844_800)
default_hooks = dict(checkpoint=dict(interval=844_800))
