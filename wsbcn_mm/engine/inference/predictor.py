"""A loaded model as a callable: paths, arrays and lists in, results out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmengine.runner.amp import autocast
from torch import nn

from .inputs import expand, is_many
from .source import Source, class_names

Result = TypeVar('Result')
Input = str | Path | np.ndarray
OnError = Callable[[Input, Exception], None]


class Predictor(Generic[Result]):
    """What both tasks share; `wsbcn_mm.inference.load` makes one.

    Attributes:
        kind: What the model takes, 'images' or 'videos'.
        classes: Class names in label order.
        cfg: Model and test pipeline of the recipe.
        model: The network, in evaluation mode.
        device: Where it runs.
        notes: What a person should know about the file, one line each.
    """

    kind: ClassVar[str]

    iterate: Callable[..., Iterator[Result]]
    """Yield the result of each input as soon as it is there; a method of the subclass."""

    def __init__(
        self, model: nn.Module, source: Source, device: torch.device, outputs: int, notes: Sequence[str]
    ) -> None:
        self.classes, more = class_names(source.classes, outputs)
        self.cfg = source.cfg
        self.model = model
        self.device = device
        self.notes = [*notes, *more]
        self._fp16 = bool((source.cfg.get('test_cfg') or {}).get('fp16', False))

    def __call__(self, inputs: Input | Sequence[Input], **options: Any) -> Result | list[Result]:
        """Predict one input, or each of several.

        Args:
            inputs: A file or an array, which gives one result; or a list of them, a folder or a glob, which give a
                list.
            options: As `iterate` of the task takes them.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: For an input or option that the model does not take.
        """
        if isinstance(inputs, (str, Path)):
            found = list(self.iterate(expand([inputs], self.kind), **options))
            return found if is_many(inputs) and not self._is_one(inputs) else found[0]
        if isinstance(inputs, np.ndarray):
            return next(iter(self.iterate([inputs], **options)))
        return list(self.iterate(inputs, **options))

    def _is_one(self, path: str | Path) -> bool:
        """Whether a folder is a single input."""
        return False

    def _compose(self, steps: Sequence[Mapping[str, Any]]) -> Compose:
        with DefaultScope.overwrite_default_scope(self.cfg.default_scope):
            return Compose([dict(step) for step in steps])

    def _predict(self, packed: Sequence[Mapping[str, Any]]) -> Any:
        """Run what the recipe's test runs on packed samples of one shape."""
        data = {key: [sample[key] for sample in packed] for key in ('inputs', 'data_samples')}
        with torch.no_grad(), autocast(enabled=self._fp16):
            return self.model.test_step(data)


def prepared(
    inputs: Iterable[Input], prepare: Callable[[Input], Result], on_error: OnError | None
) -> Iterator[tuple[Input, Result]]:
    """Yield each input with what `prepare` makes of it; failures go to `on_error`, or are raised without it."""
    for one in inputs:
        try:
            done = prepare(one)
        except (OSError, RuntimeError, ValueError) as error:
            if on_error is None:
                raise
            on_error(one, error)
            continue
        yield one, done
