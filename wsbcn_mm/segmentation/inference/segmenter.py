"""A trained segmentation model as a callable."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...engine.inference.batches import batches
from ...engine.inference.palette import distinct_colours
from ...engine.inference.predictor import Input, OnError, Predictor, prepared
from ...engine.inference.recipe_text import inference_pipeline
from ...engine.inference.source import Source, input_channels
from ...layers import standardize_once
from ..evaluation.metrics import require_finite
from .images import LARGE, as_rgb, image_of_array, image_of_file
from .results import ClassSums, SegmentationResult
from .tiles import ALIGN, Part, Span, blended, spans

Sides = int | Sequence[int]
TILE = (512, 768)
"""Least and largest side of a tile by default; larger ones need more memory than a large image does."""


class Loaded(NamedTuple):
    """An image as the recipe loads it, and the tiles that it is cut in, (0, 0) for none."""

    source: str | None
    image: np.ndarray
    tile: tuple[int, int]


class Segmenter(Predictor[SegmentationResult]):
    """Images in, a label for each pixel out, bit-equal to what tools/test.py scores.

    The preprocessing is the recipe's test pipeline without its labels, the prediction the model's `test_step`.

    Attributes:
        palette: One RGB colour for each class.
        channels: Channels of an image.
    """

    kind = 'images'

    def __init__(self, model: nn.Module, source: Source, device: torch.device, notes: Sequence[str]) -> None:
        head = source.cfg.model.decode_head
        outputs = (head[-1] if isinstance(head, (list, tuple)) else head).num_classes
        named = source
        if outputs == 1:
            # One sigmoid: label 0 is what is not the class, label 1 the class.
            outputs = 2
            if len(source.classes) == 1:
                named = source._replace(classes=('background', *source.classes), palette=())
        super().__init__(model, named, device, outputs, notes)
        self.palette = distinct_colours(named.palette, outputs)
        self.channels = input_channels(source.cfg)
        steps = inference_pipeline(source.cfg)
        self._loading, self._rest = steps[0], steps[1:]
        self._load = self._compose(steps[:1])
        self._pack = self._compose(self._rest)
        # A size that the recipe gives to whole images says nothing of tiles.
        self._pack_tile = self._compose([step for step in self._rest if step['type'] != 'Resize'])

    def iterate(
        self,
        inputs: Iterable[Input],
        *,
        batch_size: int = 1,
        tile: Sides | str = 'auto',
        overlap: int | None = None,
        max_value: float | None = None,
        channel_order: str = 'rgb',
        keep_logits: bool = False,
        on_error: OnError | None = None,
        advance: Callable[[float], None] | None = None,
    ) -> Iterator[SegmentationResult]:
        """Yield a result for each image.

        Args:
            inputs: Files, or arrays (H, W, channels) of bytes.
            batch_size: Neighbouring images of one size, or tiles, in one forward pass. What a batch adds up in another
                order may differ in the last bits from what tools/test.py scores; 1 gives the same bits.
            tile: 'auto' cuts images of more than 16.8 million pixels in square tiles of the shorter side of the
                recipe's crop, 512 to 768; a number or (height, width) cuts every larger image in tiles of this size;
                'off' cuts none. Tiles have the image's own resolution: steps of the recipe that resize are left out.
            overlap: Pixels that neighbouring tiles share; by default a quarter of the shorter side.
            max_value: Value that becomes 255 in an image of more than 8 bits, which is rejected without it.
            channel_order: 'rgb' or 'bgr', of arrays of three channels. Files need none.
            keep_logits: Whether results have `logits`; not for images in tiles.
            on_error: Function that takes each input that cannot be read and the error; without it the error is raised.
            advance: Function that takes the share of an input that is done.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: For an image or option that the model does not take, and for predictions that are not finite.
        """
        size = self._tile_size(tile)
        advance = advance or (lambda share: None)

        def prepare(one: Input) -> Loaded:
            loaded = self._loaded(one, max_value, channel_order)
            height, width = loaded.image.shape[:2]
            large = height * width > LARGE if tile == 'auto' else size is not None
            cut = size if large and size is not None and (height > size[0] or width > size[1]) else (0, 0)
            return loaded._replace(tile=cut)

        def shape(loaded: Loaded) -> tuple[Any, ...]:
            return loaded.image.shape, loaded.tile, id(loaded) if loaded.tile[0] else 0

        images = (loaded for _, loaded in prepared(inputs, prepare, on_error))
        with ExitStack() as once:
            opened = False
            for batch in batches(images, batch_size, shape):
                if batch[0].tile[0]:
                    # Large images need the memory that standardised filters would take.
                    once.close()
                    opened = False
                    yield self._in_tiles(batch[0], overlap, batch_size, advance)
                    continue
                if not opened:
                    once.enter_context(standardize_once(self.model))
                    opened = True
                for result in self._whole(batch, keep_logits):
                    advance(1.0)
                    yield result

    def _loaded(self, one: Input, max_value: float | None, order: str) -> Loaded:
        if isinstance(one, np.ndarray):
            return Loaded(None, image_of_array(one, self._loading, self.channels, order, max_value), (0, 0))
        image = image_of_file(one, self._loading, self._load, self.channels, max_value)
        return Loaded(str(one), image, (0, 0))

    def _whole(self, batch: Sequence[Loaded], keep_logits: bool) -> Iterator[SegmentationResult]:
        packed = [self._pack(results_of(one.image, one.source)) for one in batch]
        for loaded, sample in zip(batch, self._predict(packed), strict=True):
            logits = sample.seg_logits.data
            require_finite(logits, loaded.source or 'an array')
            labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(self._label_type)
            confidence = confidence_of(logits, sample.pred_sem_seg.data[0]).cpu().numpy()
            sums = ClassSums(len(self.classes))
            sums.add(labels, confidence)
            yield self._result(loaded, labels, sums, confidence=confidence, logits=logits if keep_logits else None)

    def _in_tiles(
        self, loaded: Loaded, overlap: int | None, batch_size: int, advance: Callable[[float], None]
    ) -> SegmentationResult:
        (height, width), (tile_h, tile_w) = loaded.image.shape[:2], loaded.tile
        overlap = min(tile_h, tile_w) // 4 if overlap is None else overlap
        tile_h, tile_w = min(tile_h, height), min(tile_w, width)
        rows, columns = spans(height, tile_h, overlap), spans(width, tile_w, overlap)
        number = len(rows) * len(columns)

        def predict(wanted: list[tuple[Span, Span]]) -> list[Tensor]:
            cuts = [loaded.image[row.start : row.stop, column.start : column.stop] for row, column in wanted]
            samples = self._predict([self._pack_tile(results_of(cut, loaded.source)) for cut in cuts])
            advance(len(wanted) / number)
            return [sample.seg_logits.data for sample in samples]

        labels: np.ndarray = np.empty((height, width), self._label_type)
        sums = ClassSums(len(self.classes))
        for part in blended(rows, columns, predict, batch_size):
            require_finite(part.logits, loaded.source or 'an array')
            chosen = self._choose(part)
            found: np.ndarray = chosen.cpu().numpy().astype(self._label_type)
            sums.add(found, confidence_of(part.logits, chosen).cpu().numpy())
            labels[part.top : part.top + found.shape[0], part.left : part.left + found.shape[1]] = found
        notes = [f'in {number} tiles of {tile_h} x {tile_w} pixels, {overlap} shared, at its own resolution']
        return self._result(loaded, labels, sums, tiles=number, notes=tuple(notes))

    def _choose(self, part: Part) -> Tensor:
        """Decide as the segmentor does: (K, h, w) -> (h, w)."""
        if len(part.logits) > 1:
            return part.logits.argmax(dim=0)
        return (part.logits[0] > self.model.decode_head.threshold).long()

    def _result(self, loaded: Loaded, labels: np.ndarray, sums: ClassSums, **more: Any) -> SegmentationResult:
        return SegmentationResult(
            source=loaded.source,
            image=as_rgb(loaded.image),
            class_map=labels,
            class_names=self.classes,
            palette=self.palette,
            pixels=sums.pixels,
            scores=sums.scores(),
            **more,
        )

    def _tile_size(self, tile: Sides | str) -> tuple[int, int] | None:
        """Return (height, width) of a tile, or None where no image is to be cut."""
        if tile == 'off':
            return None
        if tile == 'auto':
            crop = self.cfg.model.get('test_cfg', {}).get('crop_size') or preprocessor_size(self.cfg.model)
            side = min(max(min(crop) // ALIGN * ALIGN, TILE[0]), TILE[1])
            return side, side
        sides = [tile, tile] if isinstance(tile, int) else [*tile]
        if len(sides) != 2 or not all(isinstance(side, int) and side >= ALIGN for side in sides):
            raise ValueError(f"tile={tile!r}: 'auto', 'off', or pixels from {ALIGN}, one number or (height, width)")
        return sides[0], sides[1]

    @property
    def _label_type(self) -> type:
        return np.uint8 if len(self.classes) <= 256 else np.uint16


def results_of(image: np.ndarray, source: str | None) -> dict[str, Any]:
    """Return what a loading step leaves in `results` of an image."""
    shape = image.shape[:2]
    return dict(img=image, img_shape=shape, ori_shape=shape, img_path=source, seg_fields=[], reduce_zero_label=False)


def confidence_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the probability of each pixel's label, (K, h, w) and (h, w) -> (h, w).

    The logits of a model with one output are probabilities of label 1 already.
    """
    if len(logits) == 1:
        return torch.where(labels > 0, logits[0], 1 - logits[0])
    logits = logits.float()
    return (logits - logits.amax(0)).exp_().sum(0).reciprocal_()


def preprocessor_size(model: Mapping[str, Any]) -> tuple[int, int]:
    """Return (height, width) that a model's preprocessor pads to in training, (0, 0) without one."""
    size = (model.get('data_preprocessor') or {}).get('size') or (0, 0)
    return (size, size) if isinstance(size, int) else tuple(size)
