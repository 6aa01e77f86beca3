# Something-Something v1, 174 classes: one frame from each of 8 segments; 224x224 crops. Test: 2 clips x 3 crops of
# 256x256. No flip: classes such as "Pushing something from left to right" have a direction. FlipClip(swap_labels=True)
# is possible.
#
# data/sthv1/
#   something-something-v1-labels.csv       174 class names, one per line, as downloaded
#   something-something-v1-train.csv        lines `id;class name`, as downloaded
#   something-something-v1-validation.csv
#   20bn-something-something-v1/<id>/00001.jpg, 00002.jpg, ...
#   manifest.csv                            written by tools/data/prepare_something.py v1
dataset_type = 'SomethingV1Dataset'
data_root = 'data/sthv1/'
data_prefix = dict(video='20bn-something-something-v1')
class_file = 'something-something-v1-labels.csv'
frame_sampler = dict(type='segments', num_segments=8)
train_pipeline = [
    dict(type='DecodeClip', sampler=frame_sampler, random=True, backend='frames', template='{:05d}.jpg'),
    dict(type='MultiScaleCropClip', size=224),
    dict(type='PackClipInputs'),
]
val_pipeline = [
    dict(type='DecodeClip', sampler=frame_sampler, random=False, backend='frames', template='{:05d}.jpg'),
    dict(type='ResizeClip', size=256),
    dict(type='CenterCropClip', size=224),
    dict(type='PackClipInputs'),
]
test_pipeline = [
    dict(
        type='DecodeClip',
        sampler=dict(num_clips=2, **frame_sampler),
        random=False,
        backend='frames',
        template='{:05d}.jpg'),
    dict(type='ResizeClip', size=256),
    dict(type='ThreeCropClip', size=256),
    dict(type='PackClipInputs'),
]
train_dataloader = dict(
    batch_size=1,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='GlobalOrderSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        ann_file='something-something-v1-train.csv',
        class_file=class_file,
        manifest='manifest.csv',
        data_root=data_root,
        data_prefix=data_prefix,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type=dataset_type,
        ann_file='something-something-v1-validation.csv',
        class_file=class_file,
        manifest='manifest.csv',
        data_root=data_root,
        data_prefix=data_prefix,
        pipeline=val_pipeline,
        test_mode=True))
test_dataloader = dict(
    batch_size=1,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type=dataset_type,
        ann_file='something-something-v1-validation.csv',
        class_file=class_file,
        manifest='manifest.csv',
        data_root=data_root,
        data_prefix=data_prefix,
        pipeline=test_pipeline,
        test_mode=True))
val_evaluator = dict(type='TopKAccuracy')
test_evaluator = val_evaluator
