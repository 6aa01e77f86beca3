import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsbcn_mm.video.data.sampling import dense_indices, get_sampler, segment_indices

counts = st.integers(1, 400)
small = st.integers(1, 40)


@given(counts, small, st.integers(1, 16), st.integers(1, 12), st.booleans(), st.sampled_from(['loop', 'clamp']))
def test_dense_indices_stay_inside(total, clip_len, interval, num_clips, random, short):
    indices = dense_indices(total, clip_len, interval, num_clips, random=random, short=short)
    assert indices.shape == (num_clips, clip_len)
    assert indices.dtype == torch.int64
    assert indices.min() >= 0
    assert indices.max() < total
    if total > (clip_len - 1) * interval:
        assert (indices.diff(dim=1) == interval).all()


@given(counts, small, st.integers(1, 12), st.booleans())
def test_segment_indices_stay_inside_in_order_and_in_their_segment(total, num_segments, num_clips, random):
    indices = segment_indices(total, num_segments, num_clips, random=random)
    assert indices.shape == (num_clips, num_segments)
    assert indices.dtype == torch.int64
    assert indices.min() >= 0
    assert indices.max() < total
    assert (indices.diff(dim=1) >= 0).all()
    edges = torch.arange(num_segments + 1, dtype=torch.float64) * total / num_segments
    assert (indices >= edges[:-1].floor() - 1e-6).all()
    assert (indices <= edges[1:] + 1e-6).all()


def test_dense_test_clips_are_evenly_spaced_from_first_to_last():
    indices = dense_indices(100, 8, 4, 10, random=False)
    assert indices[0, 0] == 0
    assert indices[-1, -1] == 99
    assert set(indices[:, 0].diff().tolist()) <= {7, 8}
    assert dense_indices(101, 8, 4, random=False)[0].tolist() == list(range(36, 68, 4))


def test_dense_training_starts_reach_every_place():
    torch.manual_seed(0)
    starts = dense_indices(12, 4, 3, 500, random=True)[:, 0]
    assert sorted(set(starts.tolist())) == [0, 1, 2]


def test_short_videos_loop_or_clamp():
    assert dense_indices(5, 8, 1, random=False)[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert dense_indices(5, 8, 1, random=False, short='clamp')[0].tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    assert dense_indices(1, 3, 8, random=True)[0].tolist() == [0, 0, 0]
    assert segment_indices(3, 8, random=False)[0].tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


def test_segments_take_centres_in_test_and_every_frame_in_training():
    assert segment_indices(80, 8, random=False)[0].tolist() == list(range(5, 80, 10))
    assert segment_indices(80, 8, 2, random=False)[:, 0].tolist() == [2, 7]
    torch.manual_seed(0)
    drawn = segment_indices(19, 4, 400, random=True)
    assert sorted(set(drawn.flatten().tolist())) == list(range(19))


def test_a_generator_makes_it_repeatable():
    draws = [
        segment_indices(200, 8, random=True, generator=torch.Generator().manual_seed(seed)).tolist()
        for seed in (3, 3, 4)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_bad_arguments():
    with pytest.raises(ValueError, match='clip_len=0: at least 1 is expected'):
        dense_indices(10, 0, 1, random=False)
    with pytest.raises(ValueError, match="short='mirror': 'loop' or 'clamp' is expected"):
        dense_indices(10, 4, 1, random=False, short='mirror')
    with pytest.raises(ValueError, match="sampler type='uniform': one of dense, segments is expected"):
        get_sampler({'type': 'uniform'})
    with pytest.raises(ValueError, match='clip_length'):
        get_sampler({'type': 'dense', 'clip_length': 8, 'interval': 8})
    with pytest.raises(ValueError, match='num_segments=0'):
        get_sampler({'type': 'segments', 'num_segments': 0})
