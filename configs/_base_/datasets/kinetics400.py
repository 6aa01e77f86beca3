# Kinetics-400, dense 8x8x1: 8 frames 8 apart, 1 clip in training; 224x224 crops. Test: 10 clips x 3 crops of 256x256.
#
# data/kinetics400/
#   label_map_k400.txt                      400 class names, one per line, in label order
#   kinetics400_train_list_videos.txt       lines `path label`, paths below videos_train, labels from 0
#   kinetics400_val_list_videos.txt         likewise, below videos_val
#   videos_train/  videos_val/              the videos; copies with a short side of 320 or less decode much faster
#   manifest.csv                            written by tools/data/prepare_kinetics.py
dataset_type = 'KineticsDataset'
data_root = 'data/kinetics400/'
class_file = 'label_map_k400.txt'
frame_sampler = dict(type='dense', clip_len=8, interval=8)
train_pipeline = [
    # decodes only the frames of the clip and rejects lost ones: docs/throughput.md, docs/data.md
    dict(type='DecodeClip', sampler=frame_sampler, random=True, backend='pyav'),
    dict(type='RandomResizedCropClip', size=224),
    dict(type='FlipClip', prob=0.5),
    dict(type='PackClipInputs'),
]
val_pipeline = [
    dict(type='DecodeClip', sampler=frame_sampler, random=False, backend='pyav'),
    dict(type='ResizeClip', size=256),
    dict(type='CenterCropClip', size=224),
    dict(type='PackClipInputs'),
]
test_pipeline = [
    dict(type='DecodeClip', sampler=dict(num_clips=10, **frame_sampler), random=False, backend='pyav'),
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
        num_classes=400,
        ann_file='kinetics400_train_list_videos.txt',
        class_file=class_file,
        manifest='manifest.csv',
        data_root=data_root,
        data_prefix=dict(video='videos_train'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type=dataset_type,
        num_classes=400,
        ann_file='kinetics400_val_list_videos.txt',
        class_file=class_file,
        manifest='manifest.csv',
        data_root=data_root,
        data_prefix=dict(video='videos_val'),
        pipeline=val_pipeline,
        test_mode=True))
test_dataloader = dict(
    batch_size=1,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type=dataset_type,
        num_classes=400,
        ann_file='kinetics400_val_list_videos.txt',
        class_file=class_file,
        manifest='manifest.csv',
        data_root=data_root,
        data_prefix=dict(video='videos_val'),
        pipeline=test_pipeline,
        test_mode=True))
val_evaluator = dict(type='TopKAccuracy')
test_evaluator = val_evaluator
