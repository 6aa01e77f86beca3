"""The log of scalars under a full disk."""

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
    """mmengine's LocalVisBackend, which leaves out the lines that there is no room for, where its own ends training.

    The first such line of a file is said, and how many there were when there is room again. No line is there in part.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._left_out: Counter[Path] = Counter()

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
            if not self._left_out[path]:
                print_log(f'{path} cannot be written ({error.strerror}): training goes on', 'current', logging.ERROR)
            self._left_out[path] += 1
            return
        left_out = self._left_out.pop(path, 0)
        if left_out:
            print_log(f'{path} lacks {left_out} lines, as there was no room', 'current', logging.WARNING)
