"""Files of recognised videos: strips, annotated videos, and scores."""

from pathlib import Path
from typing import Any

from PIL import Image

from .classifier import ClipClassifier
from .pictures import annotate, strip, timeline
from .results import ClipResult, WindowsResult

STRIPS, ANNOTATED = 'strips', 'annotated'
FOLDERS = (STRIPS, ANNOTATED)
"""Below the folder of a run."""

OPTIONS = ('top', 'annotated', 'in_windows', 'pictures')
"""Keyword arguments of `VideoFiles`."""


class VideoFiles:
    """Write `strips/NAME.png` of each video and, if asked for, `annotated/NAME.mp4`.

    Args:
        folder: Where the two folders go.
        model: The model, which opens videos again to annotate them.
        top: Classes of each clip or window in the table.
        in_windows: Whether results are of windows.
        annotated: Whether to write annotated videos; they need windows.
        pictures: Whether to write strips.

    Raises:
        ValueError: For `annotated` without windows, or `top` below 1.
    """

    def __init__(
        self,
        folder: Path,
        model: ClipClassifier,
        *,
        top: int = 5,
        in_windows: bool = False,
        annotated: bool = False,
        pictures: bool = True,
    ) -> None:
        if annotated and not in_windows:
            raise ValueError('--annotate writes the classes of windows: give --window SECONDS too')
        if top < 1:
            raise ValueError(f'top={top}: at least 1 is expected')
        times = ('start_s', 'end_s') if in_windows else ()
        self.columns = ('file', *times, 'rank', 'class_id', 'class', 'score')
        self._folder = folder
        self._model = model
        self._top = top
        self._pictures = pictures
        self._annotated = annotated
        for name, wanted in ((STRIPS, pictures), (ANNOTATED, annotated)):
            if wanted:
                (folder / name).mkdir(parents=True, exist_ok=True)

    def write(self, result: ClipResult | WindowsResult, name: str) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
        """Write the files of one video; return its rows of the table and its entry of the JSON."""
        written = {}
        if self._pictures:
            written['strip'] = f'{STRIPS}/{name}.png'
            picture = strip(result) if isinstance(result, ClipResult) else timeline(result)
            Image.fromarray(picture).save(self._folder / written['strip'])
        entry: dict[str, Any] = dict(file=result.source, notes=list(result.notes))
        if isinstance(result, ClipResult):
            found = result.top(self._top)
            rows = [(result.source, rank, c.class_id, c.name, round(c.score, 6)) for rank, c in enumerate(found, 1)]
            return rows, entry | written | dict(scores=result.scores.tolist())
        if self._annotated and result.source is not None:
            written['annotated'] = f'{ANNOTATED}/{name}.mp4'
            annotate(result, self._model.open(result.source), self._folder / written['annotated'])
        windows = list(result.windows(self._top))
        timed = [
            (result.source, round(window.start, 3), round(window.end, 3), rank, c.class_id, c.name, round(c.score, 6))
            for window in windows
            for rank, c in enumerate(window.classes, 1)
        ]
        entry |= dict(fps=result.fps, seconds=result.total_frames / result.fps, **written)
        found_windows = [
            dict(start_s=window.start, end_s=window.end, scores=scores.tolist())
            for window, scores in zip(windows, result.scores, strict=True)
        ]
        return timed, entry | dict(windows=found_windows)
