"""The verdicts on given times."""

import pytest

from wsbcn_mm.engine.data.advice import judge_loader, judge_training, smaller_copies
from wsbcn_mm.engine.data.speed import SampleTime, Stage

CLIP = SampleTime((Stage('DecodeClip', 0.04), Stage('RandomResizedCropClip', 0.01)), 0.05, 16, (240, 320))
CROP = SampleTime((Stage('LoadImage', 0.01), Stage('Warp', 0.02), Stage('PackSegInputs', 0.01)), 0.04, 16)


@pytest.mark.parametrize(
    ('waited', 'sample', 'workers', 'cores', 'text'),
    [
        (0.09, None, 4, 8, 'data 9 % of the step (0.090 of 1.000 s): fine'),
        (0.71, None, 4, 8, 'data 71 % of the step (0.710 of 1.000 s): the loader does not keep up with the model'),
        (
            0.6,
            CLIP,
            0,
            8,
            'data 60 % of the step (0.600 of 1.000 s), decode-bound: decode 80 % of the 50 ms of a sample (DecodeClip '
            '80 %); num_workers=1 instead of 0 would load 20 samples/s on 8 cores',
        ),
        (
            0.9,
            CROP,
            2,
            2,
            'data 90 % of the step (0.900 of 1.000 s), augment-bound: augment 75 % of the 40 ms of a sample (Warp '
            '50 %); 80 samples/s need 4 workers with a core each; 2 cores are available',
        ),
        (
            0.2,
            CLIP,
            4,
            8,
            'data 20 % of the step (0.200 of 1.000 s), decode-bound: decode 80 % of the 50 ms of a sample (DecodeClip '
            '80 %); 1 of the 4 workers would load 10 samples/s with a core each and a fast disk: check the other load '
            'on the 8 cores and the speed of the disk',
        ),
    ],
)
def test_training(waited: float, sample: SampleTime | None, workers: int, cores: int, text: str) -> None:
    assert judge_training(waited, 1.0, batch=8, workers=workers, cores=cores, sample=sample) == text


def test_loader() -> None:
    makes = 'num_workers=2 on 4 cores loads 38 samples/s, a single thread 20'
    assert judge_loader(CLIP, 38.0, workers=2, cores=4, batch=1, step=None) == [
        'decode-bound: decode 80 % of the 50 ms of a sample (DecodeClip 80 %)',
        makes,
        'whether this is enough depends on the model: set --step-time SECONDS',
    ]
    assert judge_loader(CLIP, 38.0, workers=2, cores=4, batch=1, step=0.025) == [
        'fine: the model consumes 40 samples/s',
        makes,
        'decode-bound: decode 80 % of the 50 ms of a sample (DecodeClip 80 %)',
    ]
    assert judge_loader(CLIP, 38.0, workers=2, cores=4, batch=1, step=0.0125) == [
        'expected: data 52 % of the step (0.014 of 0.026 s), decode-bound: decode 80 % of the 50 ms of a sample '
        '(DecodeClip 80 %)',
        makes,
        'num_workers=4 instead of 2 would load 80 samples/s on 4 cores',
    ]


def test_smaller_copies_of_large_videos_are_advised() -> None:
    large = CLIP._replace(frame_size=(720, 1280))
    advice = 'copies of the videos with a short side of 256 have 1/7.9 of the 1280x720 pixels'
    assert smaller_copies(large) == [advice]
    assert judge_training(0.5, 1.0, batch=8, workers=0, cores=8, sample=large).endswith(f'; {advice}')
    assert not smaller_copies(large._replace(stages=(Stage('DecodeClip', 0.01), Stage('Blur', 0.04))))
    assert not smaller_copies(CLIP)
