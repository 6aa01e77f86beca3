"""Log scalars even if the disk is full."""

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import VISBACKENDS, VISUALIZERS
from mmengine.visualization import LocalVisBackend, Visualizer

from .files import NO_ROOM

# `wsbcn_mm.segmentation` has another one of this name in mmseg's scope, which MMSegInferencer accepts.
VISUALIZERS.register_module(name='RunVisualizer', module=Visualizer, force=True)


@VISBACKENDS.register_module()
class ScalarLog(LocalVisBackend):
    """Like mmengine's LocalVisBackend, but skip lines if the disk is full, instead of ending training.

    The first skipped line of a file is an error in the log. The number of skipped lines follows when there is space
    again. Lines are never written in part.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._skipped: Counter[Path] = Counter()

    def _dump(self, value_dict: dict, file_path: str, file_format: str) -> None:
        path = Path(file_path)
        size = path.stat().st_size if path.exists() else 0
        try:
            super()._dump(value_dict, file_path, file_format)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if path.exists():
                os.truncate(path, size)
            if not self._skipped[path]:
                message = f'{path} cannot be written ({error.strerror}): training continues without these lines'
                print_log(message, 'current', logging.ERROR)
            self._skipped[path] += 1
            return
        skipped = self._skipped.pop(path, 0)
        if skipped:
            print_log(f'{path} lacks {skipped} lines: the disk was full', 'current', logging.WARNING)
