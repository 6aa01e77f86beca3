"""A trained video model as a callable."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...engine.inference.batches import batches
from ...engine.inference.inputs import files_below
from ...engine.inference.predictor import Input, OnError, Predictor, prepared
from ...engine.inference.recipe_text import inference_pipeline
from ...engine.inference.source import Source
from ...layers import standardize_once
from .clips import DECODER, Frames, Sampler, frames_of_array, frames_of_file, read_in_order, starts
from .results import ClipResult, WindowsResult


class Packed(NamedTuple):
    """A clip as the model takes it, `dict(inputs, data_samples)`, and where it comes from."""

    sample: dict[str, Any]
    frames: Frames


class ClipClassifier(Predictor[ClipResult | WindowsResult]):
    """Videos in, class scores out, bit-equal to what tools/test.py scores.

    The preprocessing is the recipe's test pipeline, the prediction the model's `test_step`.
    """

    kind = 'videos'

    def __init__(self, model: nn.Module, source: Source, device: torch.device, notes: Sequence[str]) -> None:
        super().__init__(model, source, device, source.cfg.model.head.num_classes, notes)
        steps = inference_pipeline(source.cfg)
        if steps[0]['type'] != DECODER:
            raise ValueError(f"the recipe's test pipeline begins with {steps[0]['type']}: {DECODER} is expected")
        self._decoder = steps[0]
        self._pack = self._compose(steps[1:])

    def iterate(
        self,
        inputs: Iterable[Input],
        *,
        batch_size: int = 1,
        window: float | None = None,
        step: float | None = None,
        fps: float | None = None,
        on_error: OnError | None = None,
        advance: Callable[[float], None] | None = None,
    ) -> Iterator[ClipResult | WindowsResult]:
        """Yield a result for each video: a `ClipResult`, or with `window` a `WindowsResult`.

        Args:
            inputs: Video files, folders of numbered images, or arrays (T, H, W, 3) of bytes in RGB.
            batch_size: Neighbouring clips of one size, or windows, in one forward pass. 1 gives the bits that
                tools/test.py scores.
            window: Seconds of a window that slides over the video; 0 takes the frames that the recipe's clips span. A
                window is sampled as the recipe samples a test video, with a single clip in time.
            step: Seconds from one window to the next; by default half of the window.
            fps: Frames per second of inputs that do not say it, which are arrays and folders of images.
            on_error: Function that takes each input that cannot be read and the error; without it the error is raised.
            advance: Function that takes the share of an input that is done.

        Raises:
            DecodeError: If a video cannot be read.
            ValueError: For an input or option that the model does not take.
        """
        advance = advance or (lambda share: None)
        if window is None and step is not None:
            raise ValueError(f'step={step}: it goes with window')
        for name, value in (('window', window), ('step', step)):
            if value is not None and (value < 0 or (name == 'step' and value == 0)):
                raise ValueError(f'{name}={value}: seconds above 0 are expected')
        with standardize_once(self.model):
            if window is not None:
                for _, result in prepared(
                    inputs, lambda one: self._in_windows(one, window, step, fps, batch_size, advance), on_error
                ):
                    yield result
                return
            clips = (packed for _, packed in prepared(inputs, self._clip, on_error))
            for batch in batches(clips, batch_size, lambda packed: tuple(packed.sample['inputs'].shape)):
                for packed, scores in zip(batch, self._scores(batch), strict=True):
                    advance(1.0)
                    yield ClipResult(
                        packed.frames.source,
                        self.classes,
                        scores,
                        packed.sample['inputs'][0].permute(1, 2, 3, 0).numpy(),
                        tuple(packed.frames.complaints),
                    )

    def open(self, one: Input, deadline: float | None = None) -> Frames:
        """Return the frames of an input, which are read when asked for.

        Args:
            one: As for `iterate`.
            deadline: Seconds for opening and all reading; None for no limit.
        """
        if isinstance(one, np.ndarray):
            return frames_of_array(one)
        return frames_of_file(one, self._decoder, deadline=deadline)

    def _clip(self, one: Input) -> Packed:
        frames = self.open(one, self._decoder.get('deadline', 20.0))
        indices = Sampler(self._decoder)(frames.total)
        return self._packed(frames, indices, frames.read(indices.flatten()))

    def _packed(self, frames: Frames, indices: Tensor, pixels: Tensor) -> Packed:
        """Run the recipe's steps after decoding on frames (views * T, H, W, 3) of the numbers (views, T)."""
        clips = pixels.unflatten(0, indices.shape).permute(0, 1, 4, 2, 3)
        results = dict(
            path=frames.source,
            label=-1,
            sample_idx=0,
            clips=clips,
            frame_indices=indices.tolist(),
            total_frames=frames.total,
            fps=frames.fps,
            complaints=frames.complaints,
        )
        return Packed(self._pack(results), frames)

    def _scores(self, batch: Sequence[Packed]) -> list[np.ndarray]:
        samples = self._predict([packed.sample for packed in batch])
        scores = [sample.pred_score.float().cpu().numpy() for sample in samples]
        for packed, found in zip(batch, scores, strict=True):
            if not np.isfinite(found).all():
                raise ValueError(
                    f'the scores of {packed.frames.source or "an array"} are not all finite: the weights have '
                    'diverged, or the precision is too low for them'
                )
        return scores

    def _in_windows(
        self,
        one: Input,
        window: float,
        step: float | None,
        fps: float | None,
        batch_size: int,
        advance: Callable[[float], None],
    ) -> WindowsResult:
        # No deadline: a long video takes as long as it takes.
        frames = self.open(one, None)
        rate = frames.fps or fps
        if not rate or rate <= 0:
            raise ValueError(f'{frames.source or "the array"} has no frame rate: give it with --fps (fps= in Python)')
        sampler = Sampler(self._decoder, one_view=True)
        length = max(round(window * rate), 1) if window else sampler.span
        if length is None:
            raise ValueError("window=0: the recipe's clips span no fixed number of frames; give seconds")
        stride = max(round(step * rate), 1) if step else max(length // 2, 1)
        firsts = list(starts(frames.total, length, stride))
        found, middles = [], []
        chosen = [sampler(min(length, frames.total)) + first for first in firsts]
        pixels = read_in_order(frames, [indices.flatten() for indices in chosen])
        clips = (self._packed(frames, *read) for read in zip(chosen, pixels, strict=True))
        for batch in batches(clips, batch_size, lambda packed: tuple(packed.sample['inputs'].shape)):
            found += self._scores(batch)
            middles += [
                packed.sample['inputs'][0][:, packed.sample['inputs'].shape[2] // 2].permute(1, 2, 0).numpy().copy()
                for packed in batch
            ]
            advance(len(batch) / len(firsts))
        return WindowsResult(
            frames.source,
            self.classes,
            float(rate),
            frames.total,
            np.array(firsts),
            length,
            np.stack(found),
            np.stack(middles),
            tuple(dict.fromkeys(frames.complaints)),
        )

    def _is_one(self, path: str | Path) -> bool:
        return Path(path).is_dir() and files_below(Path(path), self.kind) == [Path(path)]
