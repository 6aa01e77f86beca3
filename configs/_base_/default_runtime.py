# What every recipe shares. Intervals (logging, checkpoints, validation) belong to the schedules.
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
# Refuse weights of another norm, or of another Weight Standardization, than the model's.
allow_norm_mismatch = False
# Refuse weights that were trained with another class list than the data's.
allow_class_mismatch = False
custom_hooks = [
    dict(type='CheckpointGuard'),
    dict(type='ClassGuard'),
    dict(type='EachSampleOnce'),
    dict(type='NormReport'),
    dict(type='Deterministic'),
    dict(type='StopAtNonFinite'),
    dict(type='Preflight'),
    dict(type='StandardizeOnceHook'),
    dict(type='StepStatisticsHook'),
    dict(type='MergeStatistics'),
    dict(type='AccumulatedGradients'),
    dict(type='IterationSeeds'),
    dict(type='ResumePosition'),
    dict(type='ActivationMemory'),
    dict(type='DataVerdict'),
    dict(type='LoaderWatchdog'),
]
activation_memory = 'all'  # 'save_conv' and 'full_checkpoint' keep less: docs/memory.md
randomness = dict(seed=0)  # deterministic=True repeats runs to the last bit, slower: docs/guards.md
log_level = 'INFO'
visualizer = dict(type='Visualizer', vis_backends=[dict(type='ScalarLog')])  # survives a full disk
load_from = None
resume = False
