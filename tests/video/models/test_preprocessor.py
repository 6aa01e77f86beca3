import re

import pytest
import torch
from mmengine.registry import MODELS

from wsbcn_mm.video.data.samples import ClipDataSample
from wsbcn_mm.video.models.preprocessor import ClipDataPreprocessor


def test_stacks_and_normalises():
    preprocessor = MODELS.build({'type': 'ClipDataPreprocessor', 'mean': [10.0, 20.0, 30.0], 'std': [1.0, 2.0, 4.0]})
    clips = [torch.randint(256, (3, 3, 4, 8, 6), dtype=torch.uint8) for _ in range(2)]
    samples = [ClipDataSample(metainfo={'sample_idx': i}) for i in range(2)]
    out = preprocessor({'inputs': clips, 'data_samples': samples}, training=True)
    assert out['inputs'].shape == (2, 3, 3, 4, 8, 6)
    assert out['inputs'].dtype == torch.float32
    for channel, (mean, std) in enumerate([(10, 1), (20, 2), (30, 4)]):
        expected = (torch.stack(clips)[:, :, channel].double() - mean) / std
        torch.testing.assert_close(out['inputs'][:, :, channel].double(), expected)
    assert [sample.sample_idx for sample in out['data_samples']] == [0, 1]
    torch.testing.assert_close(preprocessor({'inputs': torch.stack(clips)}, True)['inputs'], out['inputs'])
    assert preprocessor.state_dict() == {}


def test_evaluation_gets_bytes_which_the_recognizer_normalises():
    preprocessor = ClipDataPreprocessor()
    clips = torch.randint(256, (1, 3, 3, 4, 8, 6), dtype=torch.uint8)
    assert torch.equal(preprocessor({'inputs': clips})['inputs'], clips)
    assert torch.equal(preprocessor.normalise(clips), preprocessor({'inputs': clips}, True)['inputs'])


def test_labels_follow_the_device():
    preprocessor = ClipDataPreprocessor().to('meta')
    sample = ClipDataSample()
    sample.gt_label = torch.tensor(3)
    data = {'inputs': [torch.zeros(1, 3, 2, 4, 4, dtype=torch.uint8)], 'data_samples': [sample]}
    out = preprocessor(data, training=True)
    assert out['inputs'].device.type == 'meta'
    assert out['data_samples'][0].gt_label.device.type == 'meta'


def test_refuses_what_it_cannot_stack():
    preprocessor = ClipDataPreprocessor()
    sizes = [torch.zeros(1, 3, 2, 4, side, dtype=torch.uint8) for side in (4, 6)]
    text = (
        'clips of different shapes (V, C, T, H, W) in one batch: [(1, 3, 2, 4, 4), (1, 3, 2, 4, 6)]; '
        'end the pipeline with a crop or resize to one size'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(text)}$'):
        preprocessor({'inputs': sizes})
    with pytest.raises(ValueError, match=r'uint8 \(N, V, C, T, H, W\) with C=3 is expected'):
        preprocessor({'inputs': [torch.zeros(3, 2, 4, 4, dtype=torch.uint8)]})
    with pytest.raises(ValueError, match=r'torch.float32: uint8'):
        preprocessor({'inputs': [torch.zeros(1, 3, 2, 4, 4)]})
    with pytest.raises(ValueError, match='each std above 0'):
        ClipDataPreprocessor(std=(1.0, 0.0, 1.0))
