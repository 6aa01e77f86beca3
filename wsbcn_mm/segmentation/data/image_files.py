"""Images from files, PNGs by the decoder of FFmpeg."""

from pathlib import Path

import av
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """mmcv's `LoadImageFromFile`, where most of a sample's time goes if the images are large PNGs.

    libpng, which OpenCV has, undoes a PNG's row filters byte by byte; FFmpeg's decoder in PyAV does so with vector
    instructions. The pixels are the same.

    Raises:
        FileNotFoundError: For a file that is missing.
        OSError: For a file that is damaged, naming it.
    """

    def transform(self, results: dict) -> dict:
        results['img'] = read_image(results['img_path'])
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


def read_image(file: str | Path) -> np.ndarray:
    """An image as OpenCV reads it, (H, W, 3), uint8, BGR.

    Raises:
        FileNotFoundError: For a file that is missing.
        OSError: For a file that is damaged, naming it.
    """
    content = Path(file).read_bytes()
    if _is_plain_png(content):
        return mmcv.rgb2bgr(_decode_png(content, file))
    image = mmcv.imfrombytes(content) if content else None
    if image is None:
        raise OSError(f'image {file} is damaged, or of a format that OpenCV does not read')
    return image


def _is_plain_png(content: bytes) -> bool:
    """8 bits each of red, green and blue, without transparency or an orientation."""
    colours = content.startswith(PNG_SIGNATURE) and content[24:26] == b'\x08\x02'
    return colours and not {b'tRNS', b'eXIf'} & _chunk_kinds(content)


def _chunk_kinds(content: bytes) -> set[bytes]:
    """Kinds of the parts of a PNG: each is a length, a kind, its content and a check sum."""
    kinds, at = set(), len(PNG_SIGNATURE)
    while at < len(content):
        kinds.add(content[at + 4 : at + 8])
        at += 12 + int.from_bytes(content[at : at + 4], 'big')
    return kinds


def _decode_png(content: bytes, file: str | Path) -> np.ndarray:
    decoder = av.CodecContext.create('png', 'r')
    decoder.thread_count = 1
    # check the sums that every part of a PNG has, as libpng does
    decoder.options = {'err_detect': 'crccheck+explode'}
    try:
        (frame,) = decoder.decode(av.Packet(content)) + decoder.decode(None)
    except (av.FFmpegError, ValueError) as error:
        raise OSError(f'image {file} is damaged: {error}') from error
    return frame.to_ndarray()
