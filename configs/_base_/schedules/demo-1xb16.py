# The demo at a real batch of 16: 2400 samples in 150 optimizer steps. The recipe sets the learning rate.
_base_ = '../default_runtime.py'
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4), accumulative_counts=1)
auto_scale_lr = dict(base_batch_size=16, rule='linear', enable=False)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=7, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=7, end=150, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=150, val_interval=50)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
log_processor = dict(by_epoch=False)
default_hooks = dict(
    param_scheduler=dict(type='ParamSchedulerPerStepHook'),
    logger=dict(type='LoggerHook', interval=2, log_metric_by_epoch=False),
    checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=150, max_keep_ckpts=1))
