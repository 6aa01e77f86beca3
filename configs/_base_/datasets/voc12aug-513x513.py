# Pascal VOC 2012 with the SBD annotations: 1464 + 9118 = 10582 images to train, 1449 to validate, 21 classes, crop 513.
# Augmentation and evaluation are the BCN authors': flip, log-uniform scale, crop. Smaller images are padded to 513 on
# the right and below, after normalisation, with 0 and label 255. Validation images keep their size, padded to 513.
crop_size = (513, 513)
dataset_type = 'StrictVOCDataset'
data_root = 'data/VOCdevkit/VOC2012'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadStrictLabels'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomLogScale', scale_range=(0.5, 2.0), interpolation='lanczos', backend='pillow'),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadStrictLabels'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='GlobalOrderSampler', shuffle=True),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(
                type=dataset_type,
                data_root=data_root,
                data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
                ann_file='ImageSets/Segmentation/train.txt',
                pipeline=train_pipeline),
            dict(
                type=dataset_type,
                data_root=data_root,
                data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'),
                ann_file='ImageSets/Segmentation/aug.txt',
                pipeline=train_pipeline),
        ]))
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        ann_file='ImageSets/Segmentation/val.txt',
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='StrictIoUMetric', iou_metrics=['mIoU', 'mDice'])
test_evaluator = val_evaluator
