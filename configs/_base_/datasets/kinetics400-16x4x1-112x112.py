# Kinetics-400, dense 16x4x1: 16 frames 4 apart, 1 clip in training; 112x112 crops. Test: 10 clips x 3 crops of 128x128.
# Folders as in kinetics400.py.
_base_ = './kinetics400.py'
sampler = dict(type='dense', clip_len=16, interval=4)
train_pipeline = [
    # decodes only the frames of the clip and rejects lost ones: docs/throughput.md, docs/data.md
    dict(type='DecodeClip', sampler=sampler, random=True, backend='pyav'),
    dict(type='RandomResizedCropClip', size=112),
    dict(type='FlipClip', prob=0.5),
    dict(type='PackClipInputs'),
]
val_pipeline = [
    dict(type='DecodeClip', sampler=sampler, random=False, backend='pyav'),
    dict(type='ResizeClip', size=128),
    dict(type='CenterCropClip', size=112),
    dict(type='PackClipInputs'),
]
test_pipeline = [
    dict(type='DecodeClip', sampler=dict(num_clips=10, **sampler), random=False, backend='pyav'),
    dict(type='ResizeClip', size=128),
    dict(type='ThreeCropClip', size=128),
    dict(type='PackClipInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
