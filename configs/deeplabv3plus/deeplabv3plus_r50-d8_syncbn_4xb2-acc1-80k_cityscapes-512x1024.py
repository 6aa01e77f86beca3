"""DeepLabV3+, ResNet-50, output stride 8: BN synchronised over devices, Cityscapes 512x1024.

bash tools/dist_train.sh configs/deeplabv3plus/deeplabv3plus_r50-d8_syncbn_4xb2-acc1-80k_cityscapes-512x1024.py 4
4 GPUs x 2 images x 1 accumulated = batch 8; memory: not measured yet.
Published: 80.28 mIoU (mmsegmentation r50b, plain ResNet, SyncBN, 4 x 2).
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/deeplabv3plus-d8.py', '../_base_/norms/syncbn.py',
    '../_base_/datasets/cityscapes.py', '../_base_/schedules/cityscapes-poly-80k.py']
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(depth=50, conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}},
                  init_cfg=dict(type='Pretrained', checkpoint='pretrained/resnet50_bn.pth')),
    decode_head=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}}),
    auxiliary_head=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}}))
train_dataloader = dict(batch_size=2)
