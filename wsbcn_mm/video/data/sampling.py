"""Choose the frames of a video that form a clip: arithmetic on numbers, without decoding.

Every function returns int64 indices of shape (num_clips, clip_len), each within `[0, total)`, in temporal order
(except where a short video loops). Randomness comes from torch's generator, so seeding the worker is enough.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

IndexSampler = Callable[..., Tensor]


def dense_indices(
    total: int,
    clip_len: int,
    interval: int,
    num_clips: int = 1,
    *,
    random: bool,
    short: str = 'loop',
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return clips of `clip_len` frames at a distance of `interval` frames.

    A clip spans `(clip_len - 1) * interval + 1` frames. With `random` each clip starts anywhere the span fits.
    Otherwise the starts are evenly spaced from the first to the last possible one, and a single clip is centred.

    Args:
        total: Number of frames in the video.
        clip_len: Frames per clip (T).
        interval: Distance of neighbouring frames; 1 takes consecutive ones.
        num_clips: Temporal clips per video.
        random: Training (True) or testing (False).
        short: How a video shorter than the span is filled: 'loop' starts again from frame 0, 'clamp' repeats the last
            frame.
        generator: Source of randomness; by default torch's global one.

    Returns:
        (num_clips, clip_len) int64.

    Raises:
        ValueError: For a count below 1 or an unknown `short`.
    """
    _check_positive(total=total, clip_len=clip_len, interval=interval, num_clips=num_clips)
    if short not in ('loop', 'clamp'):
        raise ValueError(f"short={short!r}: 'loop' or 'clamp' is expected")
    last_start = max(total - ((clip_len - 1) * interval + 1), 0)
    if random:
        starts = torch.randint(last_start + 1, (num_clips,), generator=generator)
    elif num_clips == 1:
        starts = torch.tensor([last_start // 2])
    else:
        starts = torch.arange(num_clips) * last_start // (num_clips - 1)
    indices = starts[:, None] + torch.arange(clip_len) * interval
    return indices % total if short == 'loop' else indices.clamp_(max=total - 1)


def segment_indices(
    total: int,
    num_segments: int,
    num_clips: int = 1,
    *,
    random: bool,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return one frame from each of `num_segments` equal segments of the video (TSN, Wang et al. 2016, section 3.1).

    Segment k covers the real interval `[k, k + 1) * total / num_segments`. The frame is `floor` of a point in it:
    uniformly random with `random`, otherwise the centre, or with several clips the centres of `num_clips` equal parts
    of the segment. A video with fewer frames than segments repeats frames.

    Departures: the published TSN code floors the length of a segment first, so it never reaches the last
    `total % num_segments` frames, and TSM's second test clip starts at the beginning of each segment. Here every frame
    can be drawn, and test clips are placed symmetrically.

    Args:
        total: Number of frames in the video.
        num_segments: Frames per clip (T).
        num_clips: Temporal clips per video.
        random: Training (True) or testing (False).
        generator: Source of randomness; by default torch's global one.

    Returns:
        (num_clips, num_segments) int64.

    Raises:
        ValueError: For a count below 1.
    """
    _check_positive(total=total, num_segments=num_segments, num_clips=num_clips)
    if random:
        within = torch.rand(num_clips, num_segments, generator=generator, dtype=torch.float64)
    else:
        within = ((torch.arange(num_clips, dtype=torch.float64) + 0.5) / num_clips)[:, None]
    points = (torch.arange(num_segments) + within) * (total / num_segments)
    return points.long().clamp_(max=total - 1)


SAMPLERS: dict[str, IndexSampler] = {'dense': dense_indices, 'segments': segment_indices}


def get_sampler(cfg: dict[str, Any]) -> tuple[IndexSampler, dict[str, Any]]:
    """Split `dict(type='dense' | 'segments', **arguments)` into the function and its arguments.

    The arguments are tried on a video of one frame, so a misspelled one fails when the pipeline is built.

    Raises:
        ValueError: For an unknown type, or arguments that the function does not accept.
    """
    arguments = dict(cfg)
    name = arguments.pop('type', None)
    if name not in SAMPLERS:
        raise ValueError(f'sampler type={name!r}: one of {", ".join(sorted(SAMPLERS))} is expected')
    sampler = SAMPLERS[name]
    try:
        sampler(1, **arguments, random=False)
    except TypeError as error:
        raise ValueError(f'sampler {cfg}: {error}') from None
    return sampler, arguments


def _check_positive(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f'{name}={value}: at least 1 is expected')
