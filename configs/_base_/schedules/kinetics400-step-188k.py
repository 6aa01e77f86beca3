# 50 epochs of 3757 optimizer steps of 64 clips (240436 training videos), drops after 20 and 40: TSM's schedule for
# Kinetics.
# Linear scaling: lr = 0.01 * global batch / 64, global batch = devices * clips per device * accumulation.
# The learning rate counts optimizer steps. Iterations and intervals count micro-batches; accumulation multiplies them.
_base_ = '../default_runtime.py'
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01 * 64 / 64, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=40, norm_type=2),
    accumulative_counts=1)
auto_scale_lr = dict(base_batch_size=64, rule='linear', enable=False)
param_scheduler = [dict(type='MultiStepLR', milestones=[75_200, 150_400], gamma=0.1, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=188_000, val_interval=18_800)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
log_processor = dict(by_epoch=False)
default_hooks = dict(
    param_scheduler=dict(type='ParamSchedulerPerStepHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=18_800, max_keep_ckpts=3, save_best='acc/top1'))
