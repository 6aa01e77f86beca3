# Scenes of handwritten digits under changing light, in Cityscapes' layout; `make demo` builds them.
data_root = 'data/micro_batch_demo/seg/'
metainfo = dict(
    classes=('background', 'digit 0', 'digit 1', 'digit 4'),
    palette=[[40, 40, 40], [230, 25, 75], [60, 180, 75], [245, 130, 48]])
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
test_pipeline = train_pipeline
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='GlobalOrderSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset',
        img_suffix='_leftImg8bit.png',
        seg_map_suffix='_gtFine_labelTrainIds.png',
        metainfo=metainfo,
        data_root=data_root,
        data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type='BaseSegDataset',
        img_suffix='_leftImg8bit.png',
        seg_map_suffix='_gtFine_labelTrainIds.png',
        metainfo=metainfo,
        data_root=data_root,
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='StrictIoUMetric', iou_metrics=['mIoU', 'mDice'])
test_evaluator = val_evaluator
