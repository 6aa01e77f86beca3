"""DeepLabV3, ResNet-50, output stride 8: BN of each device's batch, Cityscapes 512x1024.

bash tools/dist_train.sh configs/deeplabv3/deeplabv3_r50-d8_bn_8xb1-acc1-80k_cityscapes-512x1024.py 8
8 GPUs x 1 image x 1 accumulated = batch 8; memory: not measured yet.
No norm in the image pooling branch, where BN of one image is undefined.
Published: 79.63 mIoU (mmsegmentation r50b, plain ResNet, SyncBN, 4 x 2).
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/deeplabv3_r50-d8.py', '../_base_/norms/bn.py',
    '../_base_/datasets/cityscapes-512x1024.py', '../_base_/schedules/cityscapes-poly-80k.py']
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}},
                  init_cfg=dict(type='Pretrained', checkpoint='pretrained/resnet50_bn.pth')),
    decode_head=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}}, image_pool_norm=False),
    auxiliary_head=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}}))
train_dataloader = dict(batch_size=1)
