# 50 epochs of 1344 optimizer steps of 64 clips (86017 training videos), drops after 20 and 40: TSM's schedule for
# Something-Something (README of mit-han-lab/temporal-shift-module), the new classifier at 5 and 10 times the rate.
# Linear scaling: lr = 0.01 * global batch / 64, global batch = devices * clips per device * accumulation.
# The learning rate counts optimizer steps. Iterations and intervals count micro-batches; accumulation multiplies them.
_base_ = '../default_runtime.py'
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01 * 64 / 64, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={'head.fc.weight': dict(lr_mult=5.0), 'head.fc.bias': dict(lr_mult=10.0, decay_mult=0.0)}),
    clip_grad=dict(max_norm=20, norm_type=2),
    accumulative_counts=1)
auto_scale_lr = dict(base_batch_size=64, rule='linear', enable=False)
param_scheduler = [dict(type='MultiStepLR', milestones=[26_880, 53_760], gamma=0.1, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=67_200, val_interval=6_720)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
log_processor = dict(by_epoch=False)
default_hooks = dict(
    param_scheduler=dict(type='ParamSchedulerPerStepHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=6_720, max_keep_ckpts=3, save_best='acc/top1'))
