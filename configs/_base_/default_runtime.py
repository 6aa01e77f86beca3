# What every recipe shares. Schedules build on this file and add intervals for logs, checkpoints and validation.
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
# Reject weights trained with another norm, or another Weight Standardization, than the model's.
allow_norm_mismatch = False
# Reject weights trained with another class list than the data's.
allow_class_mismatch = False
# Check images, masks and labels of segmentation data before training: docs/data_checks.md.
check_pairs = True
# By key, so that hooks in your own custom_hooks add to these. A key set to None switches its hook off.
default_hooks = dict(
    checkpoint_guard=dict(type='CheckpointGuardHook'),
    class_guard=dict(type='ClassGuardHook'),
    evaluation_padding=dict(type='EvaluationPaddingHook'),
    norm_report=dict(type='NormReportHook'),
    deterministic=dict(type='DeterministicHook'),
    non_finite=dict(type='NonFiniteHook'),
    loader_memory=dict(type='LoaderMemoryHook'),
    standardized_weight=dict(type='StandardizedWeightHook'),
    step_statistics=dict(type='StepStatisticsHook'),
    statistics_merge=dict(type='StatisticsMergeHook'),
    accumulated_gradients=dict(type='AccumulatedGradientsHook'),
    iteration_seed=dict(type='IterationSeedHook'),
    resume_position=dict(type='ResumePositionHook'),
    activation_memory=dict(type='ActivationMemoryHook'),
    data_speed=dict(type='DataSpeedHook'),
    loader_watchdog=dict(type='LoaderWatchdogHook'))
activation_memory = 'all'  # 'save_conv' and 'full_checkpoint' keep less: docs/memory.md
randomness = dict(seed=0)  # deterministic=True repeats runs to the last bit, slower: docs/guards.md
log_level = 'INFO'
# RunVisualizer is mmseg's visualizer for segmentation, mmengine's for video. ScalarLog survives a full disk.
visualizer = dict(type='RunVisualizer', vis_backends=[dict(type='ScalarLog')])
load_from = None
resume = False
