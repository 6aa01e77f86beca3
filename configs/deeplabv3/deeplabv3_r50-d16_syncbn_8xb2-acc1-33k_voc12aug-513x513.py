"""DeepLabV3, ResNet-50, output stride 16: BN synchronised over devices, VOC12+aug 513x513.

bash tools/dist_train.sh configs/deeplabv3/deeplabv3_r50-d16_syncbn_8xb2-acc1-33k_voc12aug-513x513.py 8
8 GPUs x 2 images x 1 accumulated = batch 16; memory: not measured yet.
Published: none with this model (DeepLabV3 R101: BN 76.49, GN+WS 77.20, BCN+WS 78.10).
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/deeplabv3_r50-d16.py', '../_base_/norms/syncbn.py',
    '../_base_/datasets/voc12aug-513x513.py', '../_base_/schedules/voc12aug-poly-33k.py']
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}},
                  init_cfg=dict(type='Pretrained', checkpoint='pretrained/resnet50_bn.pth')),
    decode_head=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}}))
train_dataloader = dict(batch_size=2)
