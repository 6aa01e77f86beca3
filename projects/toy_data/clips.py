"""Video clips in which the class is the motion, in the layout of Something-Something v2.

No single frame tells the class of a clip. A clip follows

    state(t) = middle + t * travel        t from -1 to 1; state: x, y, logarithm of the size, angle of the digit

The middle state, the amount of travel, the digit, the photograph and the light are drawn independently of the class.
The class selects the coordinate that travels and the sign. The classes form pairs that differ only in the sign, and
flicker and camera shake are independent from frame to frame. Therefore

* a clip played backwards has the distribution of a clip of the twin class, and a frame at a random time has the same
  distribution in both classes;
* the middle of a clip has the same distribution in all classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from projects.toy_data.appearance import (
    PHOTOGRAPHS,
    SPLITS,
    contrasting_ink,
    expose,
    illumination,
    photo_crop,
    split_digits,
    warp_digit,
)

MOTIONS: dict[str, tuple[str, int]] = {
    'Moving [something] from left to right': ('x', 1),
    'Moving [something] from right to left': ('x', -1),
    'Moving [something] down': ('y', 1),
    'Moving [something] up': ('y', -1),
    'Moving [something] towards the camera': ('size', 1),
    'Moving [something] away from the camera': ('size', -1),
    'Turning [something] clockwise': ('angle', 1),
    'Turning [something] counterclockwise': ('angle', -1),
}
"""Template -> (coordinate of the state that travels, sign). Neighbours are reversal twins."""
COORDINATES = ('x', 'y', 'size', 'angle')
ANNOTATIONS = {'train': 'something-something-v2-train.json', 'val': 'something-something-v2-validation.json'}
LABELS = 'something-something-v2-labels.json'


def video_classes() -> tuple[str, ...]:
    """Return the class names by index, as in the labels file: templates without brackets."""
    return tuple(template.replace('[something]', 'something') for template in MOTIONS)


def clip_states(rng: np.random.Generator, template: str, frames: int, size: int) -> np.ndarray:
    """Return the digit's path (frames, 4) float64: x, y, natural logarithm of the side (pixels), angle (degrees)."""
    middle = np.array(
        [
            rng.uniform(0.33, 0.67) * size,
            rng.uniform(0.33, 0.67) * size,
            np.log(rng.uniform(0.34, 0.46) * size),
            rng.uniform(0, 360),
        ]
    )
    travel = {
        'x': rng.uniform(0.18, 0.3) * size,
        'y': rng.uniform(0.18, 0.3) * size,
        'size': np.log(rng.uniform(1.35, 1.7)),
        'angle': rng.uniform(45, 80),
    }
    coordinate, sign = MOTIONS[template]
    direction = np.array([sign * travel[name] if name == coordinate else 0.0 for name in COORDINATES])
    return middle + np.linspace(-1, 1, frames)[:, None] * direction


def draw_clip(
    rng: np.random.Generator, ink: np.ndarray, template: str, split: str, frames: int, size: int
) -> np.ndarray:
    """Draw a clip (frames, size, size, 3) uint8 RGB: a digit moves over a photograph, with slight shake and flicker."""
    states = clip_states(rng, template, frames, size)
    pad = 3
    photo = photo_crop(rng, PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))], split, size + 2 * pad)
    photo = np.clip(0.5 + (photo - photo.mean()) * rng.uniform(0.25, 0.5) + rng.uniform(-0.2, 0.2), 0, 1)
    colour = contrasting_ink(rng, photo)
    light = illumination(rng, size)
    shake = np.clip(rng.normal(0, 0.6, (frames, 2)), -pad, pad)
    flicker = np.exp(rng.normal(0, 0.02, frames))
    pictures = []
    for (x, y, log_side, angle), (dx, dy), gain in zip(states, shake, flicker, strict=True):
        window = np.array([[1, 0, dx - pad], [0, 1, dy - pad]])
        view = cv2.warpAffine(photo, window, (size, size), flags=cv2.INTER_LINEAR)
        cover = warp_digit(ink, (x + dx, y + dy), float(np.exp(log_side)), angle, size)
        pictures.append(expose(view + cover[..., None] * (colour - view), light, float(gain)))
    return np.stack(pictures)


def write_mp4(path: Path, clip: np.ndarray, fps: int) -> None:
    """Encode (T, H, W, 3) uint8 RGB as H.264, yuv420p, with a key frame every 4 frames. H and W must be even."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=fps)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = 'yuv420p'
        stream.gop_size = 4
        stream.thread_count = 1
        stream.time_base = Fraction(1, fps)
        # With mbtree, x264's bytes differ from call to call, even with one thread.
        stream.options = {'crf': '18', 'preset': 'veryfast', 'x264-params': 'mbtree=0'}
        for index, picture in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_video(
    folder: Path,
    *,
    n_train: int,
    n_val: int,
    size: int,
    frames: int,
    fps: int,
    digits: Sequence[int],
    seed: int,
    advance: Callable[[], None],
) -> None:
    """Write all clips and the three annotation files below `folder`, and call `advance` after each clip.

    Classes take turns, so they are balanced. The ids count through both splits.
    """
    (folder / 'videos').mkdir(parents=True)
    templates = list(MOTIONS)
    labels = {name: str(index) for index, name in enumerate(video_classes())}
    (folder / LABELS).write_text(json.dumps(labels, indent=1) + '\n')
    first = 1
    for split, count in zip(SPLITS, (n_train, n_val), strict=True):
        pool = split_digits(split, digits, seed)
        entries = []
        for index in range(count):
            rng = np.random.default_rng([seed, 2 + SPLITS.index(split), index])
            template = templates[index % len(templates)]
            digit = int(rng.choice(list(pool)))
            ink = pool[digit][rng.integers(len(pool[digit]))]
            name, thing = str(first + index), f'the digit {digit}'
            write_mp4(folder / 'videos' / f'{name}.mp4', draw_clip(rng, ink, template, split, frames, size), fps)
            label = template.replace('[something]', thing)
            entries.append({'id': name, 'label': label, 'template': template, 'placeholders': [thing]})
            advance()
        (folder / ANNOTATIONS[split]).write_text(json.dumps(entries, indent=1) + '\n')
        first += count
