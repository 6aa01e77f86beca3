"""Street images and clips made of photographs, in the folders, sizes and formats of Cityscapes and Kinetics-400."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from wsbcn_mm.segmentation.data.cityscapes import LABEL_MAPS
from wsbcn_mm.segmentation.data.label_map import map_labels

CLIP_SIZE = (340, 256)
STREET_SIZE = (2048, 1024)
"""(width, height)"""


def photographs(width: int) -> list[np.ndarray]:
    """Return scikit-learn's two photographs, enlarged to a width; RGB."""
    return [
        cv2.resize(photo, (width, width * 2 // 3), interpolation=cv2.INTER_CUBIC)
        for photo in load_sample_images().images
    ]


def build_kinetics(root: Path, clips: int, frames: int = 300) -> Path:
    """Write clips in Kinetics' layout: H.264 with x264's defaults, key frames every 250 frames, about 400 kbit/s."""
    (root / 'videos_train').mkdir(parents=True, exist_ok=True)
    names = [f'clip{number}.mp4' for number in range(clips)]
    for number, name in enumerate(names):
        if not (root / 'videos_train' / name).is_file():
            write_clip(root / 'videos_train' / name, frames, seed=number)
    (root / 'label_map_k400.txt').write_text(''.join(f'class {label}\n' for label in range(400)))
    lines = ''.join(f'{name} {number % 400}\n' for number, name in enumerate(names))
    (root / 'kinetics400_train_list_videos.txt').write_text(lines)
    return root


def write_clip(path: Path, frames: int, seed: int) -> None:
    """Write a clip: a camera pans and zooms over a photograph, an object moves in front of it, the sensor is noisy."""
    rng = np.random.default_rng(seed)
    photos = photographs(1280)
    background, thing = photos[seed % 2], photos[1 - seed % 2]
    phases = rng.uniform(0, 2 * np.pi, 6)
    width, height = CLIP_SIZE
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        stream.codec_context.gop_size = 250
        for time in range(frames):
            zoom = 1.6 + 0.5 * np.sin(time / 70 + phases[0])
            x, y = 640 + 200 * np.sin(time / 60 + phases[1]), 427 + 80 * np.cos(time / 45 + phases[2])
            window = np.array([[zoom, 0, x - zoom * width / 2], [0, zoom, y - zoom * height / 2]])
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            picture = cv2.warpAffine(background, window, CLIP_SIZE, flags=flags, borderMode=cv2.BORDER_REFLECT)
            left = int((width - 80) * (0.5 + 0.5 * np.sin(time / 17 + phases[3])))
            top = int((height - 80) * (0.5 + 0.5 * np.cos(time / 23 + phases[4])))
            offset = int(300 + 100 * np.sin(time / 30))
            picture[top : top + 80, left : left + 80] = thing[offset : offset + 80, offset : offset + 80]
            noisy = np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format='rgb24')))
        container.mux(stream.encode())


def build_cityscapes(root: Path, images: int) -> Path:
    """Write PNGs of 2.5 to 3.1 MB in Cityscapes' layout, with labelIds and the labelTrainIds that mmseg needs."""
    folders = [root / kind / 'train' / 'aachen' for kind in ('leftImg8bit', 'gtFine')]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for number in range(images):
        name = f'aachen_{number:06d}_000019'
        picture, labels = street(number)
        file = folders[0] / f'{name}_leftImg8bit.png'
        if not file.is_file():
            Image.fromarray(labels).save(folders[1] / f'{name}_gtFine_labelIds.png')
            train_ids = map_labels(labels, LABEL_MAPS['labelIds'], file)
            Image.fromarray(train_ids).save(folders[1] / f'{name}_gtFine_labelTrainIds.png')
            Image.fromarray(picture).save(file)
    return root


def street(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy photograph, and labels like those of a street: a few large areas, many small objects."""
    rng = np.random.default_rng(seed)
    width, height = STREET_SIZE
    photo = photographs(width)[seed % 2][150 : 150 + height]
    picture = np.clip(photo + rng.normal(0, 0.8, photo.shape), 0, 255).astype(np.uint8)
    labels = np.full((height, width), 23, np.uint8)
    labels[600:], labels[550:620] = 7, 8
    labels[200:560, :500], labels[300:560, 1500:] = 11, 21
    for _ in range(60):
        centre = (int(rng.integers(width)), int(rng.integers(250, 900)))
        axes = (int(rng.integers(5, 150)), int(rng.integers(5, 90)))
        label = int(rng.choice([24, 26, 20, 17, 22, 33, 3, 4]))
        cv2.ellipse(labels, centre, axes, float(rng.uniform(0, 180)), 0, 360, label, -1)
    labels[990:] = 1
    return picture, labels
