# What DeepLabV3 and V3+ share at both output strides: preprocessing and the plain ResNet (mmsegmentation's `r50b`), the
# one that pretrained files of every norm exist for. The recipe sets the depth, convs, norms and the padded size.
default_scope = 'mmseg'
custom_imports = dict(imports=['wsbcn_mm.segmentation'], allow_failed_imports=False)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255),
    backbone=dict(
        type='ResNet',
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        norm_eval=False,
        style='pytorch',
        contract_dilation=True,
        # mmseg would zero `weight` of the last norm, which in BCN is not the output scale.
        zero_init_residual=False),
    decode_head=dict(in_channels=2048, in_index=3),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
