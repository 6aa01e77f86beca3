"""DeepLabV3, ResNet-18 at a quarter of the width: Batch Normalization, a real batch of 16.

python tools/train.py configs/tiny/deeplabv3_r18-tiny_bn_1xb16-acc1-150_digits-64x64.py
CPU, after `make demo` has built its data; measured results: projects/micro_batch_demo/README.md.
"""
_base_ = [
    '../_base_/models/tiny-deeplabv3.py', '../_base_/datasets/demo-digits.py', '../_base_/schedules/demo-1xb16.py']
conv_cfg = dict(type='Conv2d')
norm_cfg = dict(type='BN')
model = dict(
    backbone=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg),
    decode_head=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg))
optim_wrapper = dict(optimizer=dict(lr=0.2))
train_dataloader = dict(batch_size=16)
