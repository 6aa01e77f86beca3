# H.264 clips of a moving digit in Something-Something v2's layout, the class being the motion; `make demo` builds them.
# Eight of sixteen frames. No flip: the classes have a direction.
data_root = 'data/micro_batch_demo/video/'
pipeline = [
    dict(type='DecodeClip', sampler=dict(type='segments', num_segments=8), random=False),
    dict(type='PackClipInputs')]
train_pipeline = [
    dict(type='DecodeClip', sampler=dict(type='segments', num_segments=8), random=True),
    dict(type='PackClipInputs')]
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='GlobalOrderSampler', shuffle=True),
    dataset=dict(
        type='SomethingV2Dataset',
        ann_file='something-something-v2-train.json',
        class_file='something-something-v2-labels.json',
        suffix='.mp4',
        data_root=data_root,
        data_prefix=dict(video='videos'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type='SomethingV2Dataset',
        ann_file='something-something-v2-validation.json',
        class_file='something-something-v2-labels.json',
        suffix='.mp4',
        data_root=data_root,
        data_prefix=dict(video='videos'),
        pipeline=pipeline,
        test_mode=True))
test_dataloader = val_dataloader
val_evaluator = dict(type='TopKAccuracy')
test_evaluator = val_evaluator
