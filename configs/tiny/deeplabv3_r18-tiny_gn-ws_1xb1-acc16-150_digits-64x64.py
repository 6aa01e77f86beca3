"""DeepLabV3, ResNet-18 at a quarter of the width: GN + WS, a batch of 16, accumulated 16 x 1.

python tools/train.py configs/tiny/deeplabv3_r18-tiny_gn-ws_1xb1-acc16-150_digits-64x64.py
CPU, after `make demo` has built its data; measured results: projects/micro_batch_demo/README.md.
"""
_base_ = [
    '../_base_/models/tiny-deeplabv3.py', '../_base_/datasets/demo-digits.py', '../_base_/schedules/demo-1xb1-acc16.py']
conv_cfg = dict(type='WSConv2d')
norm_cfg = dict(type='GN', num_groups=8)
model = dict(
    backbone=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg),
    decode_head=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg))
optim_wrapper = dict(optimizer=dict(lr=0.1))
