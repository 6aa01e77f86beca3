"""SlowOnly ResNet-50: GN + WS, Something-Something v1, 8 segments, 224x224.

bash tools/dist_train.sh configs/resnet3d/slowonly-r50_gn-ws_8xb2-acc4-67k_sthv1-8seg-224x224.py 8
8 GPUs x 2 clips x 4 accumulated = batch 64; memory: not measured yet.
Starts from the 2D pretrained/resnet50_gn_ws.pth, inflated.
Published: none with this model. Nearest: TSM ResNet-50, 8 frames, 44.26 / 75.51 top-1 / top-5
(arXiv 1903.10520 v2, recalled and not verified; a 2D network that shifts channels over time).
Measured: not measured yet.
"""
_base_ = [
    '../_base_/models/slowonly-r50.py', '../_base_/norms/gn-ws.py', '../_base_/datasets/sthv1.py',
    '../_base_/schedules/sthv1-step-67k.py']
model = dict(
    backbone=dict(conv_cfg={{_base_.conv_cfg_3d}}, norm_cfg={{_base_.norm_cfg_3d}},
                  init_cfg=dict(type='Inflated2d', checkpoint='pretrained/resnet50_gn_ws.pth')),
    head=dict(num_classes=174, init_std=0.001))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(accumulative_counts=4)
train_cfg = dict(max_iters=268_800, val_interval=26_880)
default_hooks = dict(checkpoint=dict(interval=26_880))
