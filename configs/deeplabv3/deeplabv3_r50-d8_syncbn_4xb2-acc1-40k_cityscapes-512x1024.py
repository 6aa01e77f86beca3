"""DeepLabV3, ResNet-50, output stride 8: BN synchronised over devices, Cityscapes 512x1024.

bash tools/dist_train.sh configs/deeplabv3/deeplabv3_r50-d8_syncbn_4xb2-acc1-40k_cityscapes-512x1024.py 4
4 GPUs x 2 images x 1 accumulated = batch 8; memory: not measured yet.
Published: 79.09 mIoU (mmsegmentation r50, ResNetV1c, SyncBN, 4 x 2).
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/deeplabv3-d8.py', '../_base_/norms/syncbn.py',
    '../_base_/datasets/cityscapes.py', '../_base_/schedules/cityscapes-poly-80k.py']
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(depth=50, conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}},
                  init_cfg=dict(type='Pretrained', checkpoint='pretrained/resnet50_bn.pth')),
    decode_head=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}}),
    auxiliary_head=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}}))
train_dataloader = dict(batch_size=2)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=1e-4, begin=0, end=40_000, by_epoch=False)]
train_cfg = dict(max_iters=40_000, val_interval=4_000)
default_hooks = dict(checkpoint=dict(interval=4_000))
