"""DeepLabV3+, ResNet-50, output stride 16: BCN (estimated statistics) + WS, VOC12+aug 513x513.

python tools/train.py configs/deeplabv3plus/deeplabv3plus_r50-d16_bcn-ws_1xb1-acc16-33k_voc12aug-513x513.py
1 GPU x 1 image x 16 accumulated = batch 16; memory: not measured yet.
Published: none with this model. DeepLabV3 on ResNet-101: BN 76.49, GN + WS 77.20, BCN + WS 78.10 mIoU.
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/deeplabv3plus-d16.py', '../_base_/norms/bcn-ws.py',
    '../_base_/datasets/voc12aug-513x513.py', '../_base_/schedules/voc12aug-poly-33k.py']
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(depth=50, conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}},
                  init_cfg=dict(type='Pretrained', checkpoint='pretrained/resnet50_bcn_ws.pth')),
    decode_head=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}}))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=16)
train_cfg = dict(max_iters=529_600, val_interval=52_960)
default_hooks = dict(checkpoint=dict(interval=52_960))
