# Cityscapes, fine annotations: 2975 images to train, 500 to validate, 19 classes, crop 512x1024.
# The downloaded labelIds are read as they are; docs/data.md says how to prepare and check the folder.
crop_size = (512, 1024)
dataset_type = 'StrictCityscapesDataset'
data_root = 'data/cityscapes/'
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadStrictLabels'),
    # mmcv's RandomResize and mmseg's RandomCrop in one transform: docs/throughput.md
    dict(type='RandomScaledCrop', scale=(2048, 1024), ratio_range=(0.5, 2.0), crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortionByTable'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 1024), keep_ratio=True),
    # after Resize: the ground truth keeps its size
    dict(type='LoadStrictLabels'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='GlobalOrderSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split='train',
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split='val',
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='StrictIoUMetric',
    iou_metrics=['mIoU', 'mDice'],
    boundary_ratio=0.005)  # the width that the authors of boundary IoU take for Cityscapes
test_evaluator = val_evaluator
