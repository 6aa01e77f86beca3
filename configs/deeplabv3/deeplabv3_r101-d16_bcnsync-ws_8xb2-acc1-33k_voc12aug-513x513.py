"""DeepLabV3, ResNet-101, output stride 16: BCN (statistics synchronised over devices) + WS, VOC12+aug 513x513.

bash tools/dist_train.sh configs/deeplabv3/deeplabv3_r101-d16_bcnsync-ws_8xb2-acc1-33k_voc12aug-513x513.py 8
8 GPUs x 2 images x 1 accumulated = batch 16; memory: not measured yet.
Published: 78.10 mIoU (README of joe-siyuan-qiao/Batch-Channel-Normalization).
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/deeplabv3-d16.py', '../_base_/norms/bcnsync-ws.py',
    '../_base_/datasets/voc12aug-513x513.py', '../_base_/schedules/voc12aug-poly-33k.py']
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(depth=101, conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}},
                  init_cfg=dict(type='Pretrained', checkpoint='pretrained/resnet101_bcn_ws.pth')),
    decode_head=dict(conv_cfg={{_base_.conv_cfg}}, norm_cfg={{_base_.norm_cfg}}))
train_dataloader = dict(batch_size=2)
