"""DeepLabV3+, ResNet-50, output stride 8: GN + WS, Cityscapes 769x769.

python tools/train.py configs/deeplabv3plus/deeplabv3plus_r50-d8_gn-ws_1xb1-acc8-80k_cityscapes-769x769.py
1 GPU x 1 image x 8 accumulated = batch 8; memory: not measured yet.
Published: none with this norm. SyncBN: 79.41 mIoU (mmsegmentation r50b, plain ResNet, 4 x 2).
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/deeplabv3plus-d8.py', '../_base_/norms/gn-ws.py',
    '../_base_/datasets/cityscapes-769x769.py', '../_base_/schedules/cityscapes-poly-80k.py']
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(depth=50, conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}},
                  init_cfg=dict(type='Pretrained', checkpoint='pretrained/resnet50_gn_ws.pth')),
    decode_head=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}}, align_corners=True),
    auxiliary_head=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}}, align_corners=True),
    test_cfg=dict(mode='slide', crop_size=(769, 769), stride=(513, 513)))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=8)
train_cfg = dict(max_iters=640_000, val_interval=64_000)
default_hooks = dict(checkpoint=dict(interval=64_000))
