# 50 epochs of 662 optimizer steps of 16 images: the BCN authors' VOC schedule, weight decay on all parameters.
# The learning rate counts optimizer steps. Iterations and intervals count micro-batches; accumulation multiplies them.
_base_ = '../default_runtime.py'
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.007, momentum=0.9, weight_decay=1e-4), accumulative_counts=1)
auto_scale_lr = dict(base_batch_size=16, rule='linear', enable=False)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=33_100, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=33_100, val_interval=3_310)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
log_processor = dict(by_epoch=False)
default_hooks = dict(
    param_scheduler=dict(type='ParamSchedulerPerStepHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=3_310, max_keep_ckpts=3, save_best='mIoU'),
    norm_check=dict(type='NormCheckHook'))
