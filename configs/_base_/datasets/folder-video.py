# Your own videos: class folders or a CSV in data_root, prepared by tools/data/prepare_folder.py (docs/own_videos.md).
# Dense 8x8x1: 8 frames 8 apart, 1 clip in training; 224x224 crops. Test: 10 clips x 3 crops of 256x256.
# A recipe sets data_root in the data sets, and num_classes in the head of its model.
dataset_type = 'FolderClipDataset'
data_root = 'data/own_videos/'
frame_sampler = dict(type='dense', clip_len=8, interval=8)
train_pipeline = [
    dict(type='DecodeClip', sampler=frame_sampler, random=True, backend='pyav'),
    dict(type='RandomResizedCropClip', size=224),
    # labels follow the mirror where class names have a direction, such as turn_left
    dict(type='FlipClip', prob=0.5, swap_labels=True),
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
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='GlobalOrderSampler', shuffle=True),
    dataset=dict(type=dataset_type, data_root=data_root, split='train', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(type=dataset_type, data_root=data_root, split='val', pipeline=val_pipeline, test_mode=True))
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(type=dataset_type, data_root=data_root, split='val', pipeline=test_pipeline, test_mode=True))
val_evaluator = dict(type='TopKAccuracy')
test_evaluator = val_evaluator
