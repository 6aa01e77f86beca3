# Cityscapes as in cityscapes.py, crop 769x769: mmsegmentation scales around 2049x1025 then.
_base_ = './cityscapes.py'
crop_size = (769, 769)
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadStrictLabels'),
    dict(type='RandomScaledCrop', scale=(2049, 1025), ratio_range=(0.5, 2.0), crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortionByTable'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2049, 1025), keep_ratio=True),
    # after Resize: the ground truth keeps its size
    dict(type='LoadStrictLabels'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
