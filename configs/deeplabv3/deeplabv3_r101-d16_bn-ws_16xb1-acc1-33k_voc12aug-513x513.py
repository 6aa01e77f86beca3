"""DeepLabV3, ResNet-101, output stride 16: BN of each device's batch + WS, VOC12+aug 513x513.

bash tools/dist_train.sh configs/deeplabv3/deeplabv3_r101-d16_bn-ws_16xb1-acc1-33k_voc12aug-513x513.py 16
16 GPUs x 1 image x 1 accumulated = batch 16; memory: not measured yet.
No norm in the image pooling branch, where BN of one image is undefined.
Published: none with this norm (BN 76.49, GN+WS 77.20, BCN+WS 78.10).
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/deeplabv3_r101-d16.py', '../_base_/norms/bn-ws.py',
    '../_base_/datasets/voc12aug-513x513.py', '../_base_/schedules/voc12aug-poly-33k.py']
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}},
                  init_cfg=dict(type='Pretrained', checkpoint='pretrained/resnet101_bn_ws.pth')),
    decode_head=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}}, image_pool_norm=False))
train_dataloader = dict(batch_size=1)
