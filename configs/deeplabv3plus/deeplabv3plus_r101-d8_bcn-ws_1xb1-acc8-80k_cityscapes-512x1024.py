"""DeepLabV3+, ResNet-101, output stride 8: BCN (estimated statistics) + WS, Cityscapes 512x1024.

python tools/train.py configs/deeplabv3plus/deeplabv3plus_r101-d8_bcn-ws_1xb1-acc8-80k_cityscapes-512x1024.py
1 GPU x 1 image x 8 accumulated = batch 8; memory: not measured yet.
Published: none with this norm. SyncBN: 80.16 mIoU (mmsegmentation r101b, plain ResNet, 4 x 2).
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/deeplabv3plus-d8.py', '../_base_/norms/bcn-ws.py',
    '../_base_/datasets/cityscapes.py', '../_base_/schedules/cityscapes-poly-80k.py']
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(depth=101, conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}},
                  init_cfg=dict(type='Pretrained', checkpoint='pretrained/resnet101_bcn_ws.pth')),
    decode_head=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}}),
    auxiliary_head=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}}))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=8)
train_cfg = dict(max_iters=640_000, val_interval=64_000)
default_hooks = dict(checkpoint=dict(interval=64_000))
