# Your own images: images/, masks/ and classes.txt in data_root, see docs/own_images.md.
# A recipe sets data_root in the data sets, and num_classes in the heads of its model.
crop_size = (512, 512)
dataset_type = 'FolderSegDataset'
data_root = 'data/own_images/'
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadStrictLabels'),
    dict(type='RandomLogScale', scale_range=(0.5, 2.0)),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    # refused where class names have a direction, such as left_lung: give swap_seg_labels then, or remove it
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),  # the loader that mmseg's MMSegInferencer exchanges
    dict(type='LoadStrictLabels'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='GlobalOrderSampler', shuffle=True),
    dataset=dict(type=dataset_type, data_root=data_root, split='train', pipeline=train_pipeline))
# images may differ in size, so one at a time
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(type=dataset_type, data_root=data_root, split='val', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='StrictIoUMetric', iou_metrics=['mIoU', 'mDice'])
test_evaluator = val_evaluator
