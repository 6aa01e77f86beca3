"""Kinetics and Something-Something as mmengine datasets.

An item starts as ``path``, ``label``, ``sample_idx`` and, where class names are known, ``mirrored_label``; the pipeline
makes ``dict(inputs, data_samples)`` of it.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from .annotations import (
    Annotation,
    load_classes,
    load_path_label_lines,
    load_something_csv,
    load_something_json,
)
from .decoding import DecodeError
from .transforms import FlipClip, Results, mirror_labels


class ClipDataset(BaseDataset):
    """Clips with one label each; a subclass says how its files list them.

    Listed clips whose file is missing are counted and named at the start; the rest is used.

    A clip that cannot be decoded while training is replaced by another one of its class, counted once and logged;
    training stops when more than ``max_bad`` of the clips are bad. In ``test_mode`` nothing is replaced: the error,
    which names the file, ends the run.

    ``metainfo``: ``classes`` (names in label order, if known), ``num_annotated`` (clips listed) and ``num_missing``.

    Args:
        ann_file: list of clips, under ``data_root``.
        class_file: class names (see ``load_classes``), under ``data_root``.
        data_root: root folder.
        data_prefix: ``dict(video=folder of the videos)``, under ``data_root``.
        pipeline: transforms.
        test_mode: validation or test.
        missing: ``'skip'`` missing files, with a warning, or ``'error'``.
        max_bad: share of clips that may fail to decode in training; counted by each process and its workers together.
        kwargs: as for mmengine's ``BaseDataset``.

    Raises:
        ValueError: for malformed files (naming file and line), or an unsuitable pipeline.
        FileNotFoundError: if no listed clip exists, or with ``missing='error'`` if one does not.
        DecodeError: from an item, as described.
    """

    def __init__(
        self,
        ann_file: str,
        class_file: str | None = None,
        data_root: str = '',
        data_prefix: Mapping[str, str] | None = None,
        pipeline: Sequence[Any] = (),
        test_mode: bool = False,
        missing: str = 'skip',
        max_bad: float = 0.005,
        **kwargs: Any,
    ) -> None:
        if missing not in ('skip', 'error'):
            raise ValueError(f"missing={missing!r}: accepted are 'skip' and 'error'")
        self.class_file = os.path.join(data_root, class_file) if class_file else None
        self.missing = missing
        self.max_bad = max_bad
        self._by_label: dict[int, list[int]] = {}
        super().__init__(
            ann_file=ann_file,
            data_root=data_root,
            data_prefix=dict(data_prefix or {'video': ''}),
            pipeline=list(pipeline),
            test_mode=test_mode,
            **kwargs,
        )

    def load_annotations(self) -> list[Annotation]:
        """All clips that the files list; may need ``self.classes``."""
        raise NotImplementedError

    def path_of(self, name: str) -> str:
        """Where the clip called ``name`` in the annotation file lies, relative to the video folder."""
        return name

    @property
    def classes(self) -> list[str] | None:
        """Class names in label order."""
        classes: list[str] | None = self._metainfo.get('classes')
        return classes

    def full_init(self) -> None:
        if self._fully_initialized:
            return
        if self.class_file is not None:
            self._metainfo['classes'] = load_classes(self.class_file)
        self._mirrored = mirror_labels(self.classes) if self.classes else None
        if self._mirrored and self._mirrored != list(range(len(self._mirrored))):
            self._refuse_plain_flip(self.pipeline)
        super().full_init()
        # Shared memory: loader workers are processes and must agree on which clips are bad.
        self._bad = torch.zeros(self._metainfo['num_annotated'], dtype=torch.bool).share_memory_()

    def load_data_list(self) -> list[Results]:
        annotations = self.load_annotations()
        root = self.data_prefix['video']
        listed: list[Results] = [
            {'path': os.path.join(root, self.path_of(clip.name)), 'label': clip.label, 'annotation': number}
            for number, clip in enumerate(annotations)
        ]
        exists = _existing([clip['path'] for clip in listed])
        found = [clip for clip in listed if clip['path'] in exists]
        self._metainfo['num_annotated'] = len(listed)
        self._metainfo['num_missing'] = len(listed) - len(found)
        if len(found) < len(listed):
            self._report_missing([clip['path'] for clip in listed if clip['path'] not in exists], len(listed))
        return found

    def get_data_info(self, idx: int) -> Results:
        info: Results = super().get_data_info(idx)
        if self._mirrored is not None:
            info['mirrored_label'] = self._mirrored[info['label']]
        return info

    def prepare_data(self, idx: int) -> Any:
        info = self.get_data_info(idx)
        if self.test_mode:
            return self.pipeline(info)
        while True:
            annotation, path = info['annotation'], info['path']
            if not self._bad[annotation]:
                try:
                    return self.pipeline(info)
                except DecodeError as error:
                    self._count_bad(annotation, error)
            info = self._replacement(info['label'], path)

    def _count_bad(self, annotation: int, error: DecodeError) -> None:
        self._bad[annotation] = True
        bad = int(self._bad.sum())
        print_log(f'{error}; replaced by another clip of its class ({bad} bad so far)', 'current', logging.WARNING)
        if bad > self.max_bad * len(self):
            raise DecodeError(
                f'{bad} of {len(self)} clips of {self.ann_file} cannot be decoded, more than max_bad={self.max_bad}; '
                f'the last one: {error}'
            ) from error

    def _replacement(self, label: int, path: str) -> Results:
        if not self._by_label:
            for idx in range(len(self)):
                self._by_label.setdefault(super().get_data_info(idx)['label'], []).append(idx)
        infos = (self.get_data_info(idx) for idx in self._shuffled(self._by_label[label]))
        for info in infos:
            if not self._bad[info['annotation']]:
                return info
        raise DecodeError(f'no clip of class {label} can be decoded; the last one tried is {path!r}')

    @staticmethod
    def _shuffled(indices: list[int]) -> list[int]:
        return [indices[i] for i in torch.randperm(len(indices)).tolist()]

    def _report_missing(self, paths: list[str], listed: int) -> None:
        first = ', '.join(repr(path) for path in paths[:3]) + (', ...' if len(paths) > 3 else '')
        text = f'{len(paths)} of {listed} clips in {self.ann_file} have no file: {first}'
        if len(paths) == listed or self.missing == 'error':
            raise FileNotFoundError(text)
        print_log(f'{text}; the other {listed - len(paths)} are used', 'current', logging.WARNING)

    def _refuse_plain_flip(self, transform: Any) -> None:
        if isinstance(transform, FlipClip) and transform.prob > 0 and not transform.swap_labels:
            raise ValueError(
                f'{type(self).__name__} with a plain FlipClip: its classes differ by direction and mirrored clips '
                'need mirrored labels; use FlipClip(swap_labels=True) or remove the flip'
            )
        inner = getattr(transform, 'transforms', ())
        for one in inner if isinstance(inner, Sequence) else [inner]:
            self._refuse_plain_flip(one)


@DATASETS.register_module()
class KineticsDataset(ClipDataset):
    """Kinetics from lists of ``path label`` lines (mmaction2's format).

    Args:
        num_classes: accepted labels are 0 to ``num_classes - 1``; with a ``class_file`` the number of its names.
    """

    def __init__(self, *args: Any, num_classes: int | None = None, **kwargs: Any) -> None:
        self.num_classes = num_classes
        super().__init__(*args, **kwargs)

    def load_annotations(self) -> list[Annotation]:
        num_classes = self.num_classes or len(self.classes or ())
        if not num_classes:
            raise ValueError('KineticsDataset needs num_classes or class_file')
        if self.classes and len(self.classes) != num_classes:
            raise ValueError(f'num_classes={num_classes}, but {self.class_file} has {len(self.classes)} names')
        return load_path_label_lines(self.ann_file, num_classes)


class SomethingDataset(ClipDataset):
    """What both versions share: a list of classes, lists of clips in csv or json."""

    def load_annotations(self) -> list[Annotation]:
        if not self.classes:
            raise ValueError(f'{type(self).__name__} needs class_file, the official list of labels')
        load = load_something_json if self.ann_file.endswith('.json') else load_something_csv
        return load(self.ann_file, self.classes)


@DATASETS.register_module()
class SomethingV1Dataset(SomethingDataset):
    """Something-Something v1: a folder of JPEG frames per clip (decode with ``backend='frames'``)."""


@DATASETS.register_module()
class SomethingV2Dataset(SomethingDataset):
    """Something-Something v2: one video per clip, ``<id>.webm`` as downloaded, or another ``suffix``.

    Args:
        suffix: ending of the files, with the dot.
    """

    def __init__(self, *args: Any, suffix: str = '.webm', **kwargs: Any) -> None:
        self.suffix = suffix
        super().__init__(*args, **kwargs)

    def path_of(self, name: str) -> str:
        return name + self.suffix


def _existing(paths: Sequence[str]) -> set[str]:
    """Those of ``paths`` that exist, by listing each folder once: asking for 240 000 files one by one takes minutes."""
    folders: dict[str, set[str]] = {}
    existing = set()
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
        if name in folders[folder]:
            existing.add(path)
    return existing
