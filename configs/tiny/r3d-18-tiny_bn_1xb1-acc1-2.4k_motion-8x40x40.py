"""R3D of three stages at a quarter of the width: Batch Normalization, one sample per optimizer step.

python tools/train.py configs/tiny/r3d-18-tiny_bn_1xb1-acc1-2.4k_motion-8x40x40.py
CPU, after `make demo` has built its data; measured results: projects/micro_batch_demo/README.md.
"""
_base_ = [
    '../_base_/models/tiny-r3d.py', '../_base_/datasets/demo-motion.py', '../_base_/schedules/demo-1xb1.py']
conv_cfg = dict(type='Conv3d')
norm_cfg = dict(type='BN3d')
model = dict(
    backbone=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg))
optim_wrapper = dict(optimizer=dict(lr=0.02))
