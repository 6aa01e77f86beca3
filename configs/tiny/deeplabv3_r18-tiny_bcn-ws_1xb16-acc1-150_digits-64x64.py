"""DeepLabV3, ResNet-18 at a quarter of the width: micro-batch BCN + WS, a real batch of 16.

python tools/train.py configs/tiny/deeplabv3_r18-tiny_bcn-ws_1xb16-acc1-150_digits-64x64.py
CPU, after `make demo` has built its data; measured results: projects/micro_batch_demo/README.md.
"""
_base_ = [
    '../_base_/models/tiny-deeplabv3.py', '../_base_/datasets/demo-digits.py', '../_base_/schedules/demo-1xb16.py']
conv_cfg = dict(type='WSConv2d')
norm_cfg = dict(type='BCN', num_groups=8, rate=0.1, warmup=True)
model = dict(
    backbone=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg),
    decode_head=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg))
optim_wrapper = dict(optimizer=dict(lr=0.1))
train_dataloader = dict(batch_size=16)
