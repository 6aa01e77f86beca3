"""Kinetics and Something-Something as mmengine datasets.

An item starts as `path`, `label`, `sample_idx` and, if class names are known, `mirrored_label`. The pipeline turns it
into `dict(inputs, data_samples)`.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger, print_log
from mmengine.registry import DATASETS
from torch import Tensor

from ...engine.data.left_right import mirror_labels, unpaired
from ...engine.data.watchdog import Whereabouts
from ...engine.files import require
from ..decoding.reader import DecodeError
from .annotations import Annotation, load_classes, load_path_label_lines, load_something_csv, load_something_json
from .manifest import NO_FILE, OK, ManifestRow, load_manifest
from .transforms import FlipClip, Results


class ClipDataset(BaseDataset):
    """Clips with one label each; a subclass reads the list of clips.

    Listed clips that have no file or that the manifest marks as unusable are counted and named at the start; the others
    are used. With a manifest, frames are chosen among the verified ones.

    In training, a clip that cannot be decoded is replaced by another clip of its class, counted once, logged, and
    written to `bad_clips.txt` beside the log. Training stops if more than `max_bad` of the clips are bad. In
    `test_mode` nothing is replaced: the error, which names the file, ends the run. With `on_bad='count'` the clip
    becomes black frames marked `unreadable` instead, which `TopKAccuracy` counts but does not score. Clips whose damage
    the decoder conceals are used, counted and logged once.

    `metainfo` has `classes` (names in label order, if known), `num_annotated` (listed clips), `num_missing` (listed
    clips without a file) and `num_unusable` (listed clips that the manifest marks as unusable).

    Args:
        ann_file: List of clips, under `data_root`.
        class_file: Class names (see `load_classes`), under `data_root`.
        data_root: Root folder.
        data_prefix: `dict(video=folder of the videos)`, under `data_root`.
        pipeline: Transforms.
        test_mode: Whether this is validation or test.
        manifest: Manifest of the dataset (`wsbcn_mm.video.data.manifest`), under `data_root`; used if it exists.
        missing: 'skip' skips missing files and a missing manifest with a warning; 'error' raises.
        on_bad: In `test_mode`, how a clip that cannot be decoded is handled: 'error' or 'count'.
        max_bad: Share of clips that may fail to decode in training; each process counts together with its workers.
        kwargs: Arguments of mmengine's `BaseDataset`.

    Raises:
        ValueError: For malformed files (the error names file and line), a manifest with other labels or without a
            usable clip, or an unsuitable pipeline.
        FileNotFoundError: If the list or the class file does not exist, no listed clip exists, or, with
            `missing='error'`, any listed clip or the manifest does not exist.
        DecodeError: When an item is loaded, as described.
    """

    def __init__(
        self,
        ann_file: str,
        class_file: str | None = None,
        data_root: str = '',
        data_prefix: Mapping[str, str] | None = None,
        pipeline: Sequence[Any] = (),
        test_mode: bool = False,
        manifest: str | None = None,
        missing: str = 'skip',
        on_bad: str = 'error',
        max_bad: float = 0.005,
        **kwargs: Any,
    ) -> None:
        if missing not in ('skip', 'error'):
            raise ValueError(f"missing={missing!r}: 'skip' or 'error' is expected")
        if on_bad not in ('error', 'count'):
            raise ValueError(f"on_bad={on_bad!r}: 'error' or 'count' is expected")
        self.class_file = os.path.join(data_root, class_file) if class_file else None
        self.manifest = os.path.join(data_root, manifest) if manifest else None
        self.missing = missing
        self.on_bad = on_bad
        self.max_bad = max_bad
        self._by_label: dict[int, list[int]] = {}
        if self.class_file is not None:
            require(Path(self.class_file))
            kwargs['metainfo'] = {**(kwargs.get('metainfo') or {}), 'classes': load_classes(self.class_file)}
        super().__init__(
            ann_file=ann_file,
            data_root=data_root,
            data_prefix=dict(data_prefix or {'video': ''}),
            pipeline=list(pipeline),
            test_mode=test_mode,
            **kwargs,
        )

    def load_annotations(self) -> list[Annotation]:
        """Return all listed clips; may need `self.classes`."""
        raise NotImplementedError

    def path_of(self, name: str) -> str:
        """Return the path, relative to the video folder, of the clip called `name` in the annotation file."""
        return name

    @property
    def classes(self) -> list[str] | None:
        """Class names in label order."""
        classes: list[str] | None = self._metainfo.get('classes')
        return classes

    def full_init(self) -> None:
        if self._fully_initialized:
            return
        self._mirrored = mirror_labels(self.classes) if self.classes else None
        if self._mirrored and self._mirrored != list(range(len(self._mirrored))):
            self._refuse_plain_flip(self.pipeline)
        super().full_init()
        self.whereabouts = Whereabouts()
        # Shared memory: loader workers are processes and must agree on which clips are bad or damaged.
        self._bad, self._damaged = torch.zeros(2, self._metainfo['num_annotated'], dtype=torch.bool).share_memory_()
        log = MMLogger.get_current_instance().log_file
        self._bad_list = log and os.path.join(os.path.dirname(log), 'bad_clips.txt')

    def load_data_list(self) -> list[Results]:
        require(Path(self.ann_file))
        annotations = self.load_annotations()
        root = self.data_prefix['video']
        listed: list[Results] = [
            {'path': os.path.join(root, self.path_of(clip.name)), 'label': clip.label, 'annotation': number}
            for number, clip in enumerate(annotations)
        ]
        rows = self._load_manifest()
        reasons = self._look_up(listed, rows) if rows is not None else _look_for(listed)
        self._metainfo['num_annotated'] = len(listed)
        self._metainfo['num_missing'] = sum(reason == NO_FILE for reason in reasons)
        self._metainfo['num_unusable'] = sum(reason not in (OK, NO_FILE) for reason in reasons)
        self._report_missing([clip['path'] for clip, reason in zip(listed, reasons, strict=True) if reason == NO_FILE])
        self._report_unusable(
            [(clip['path'], why) for clip, why in zip(listed, reasons, strict=True) if why not in (OK, NO_FILE)]
        )
        return [clip for clip, reason in zip(listed, reasons, strict=True) if reason == OK]

    def get_data_info(self, idx: int) -> Results:
        info: Results = super().get_data_info(idx)
        if self._mirrored is not None:
            info['mirrored_label'] = self._mirrored[info['label']]
        return info

    def prepare_data(self, idx: int) -> Any:
        info = self.get_data_info(idx)
        if self.test_mode:
            return self._test_item(info)
        drawn = torch.get_rng_state()
        for clip in chain([info], self._others_of_class(info['label'], drawn)):
            if not self._bad[clip['annotation']]:
                # The numbers drawn for a clip must not depend on which clips are known to be bad: a restart knows none.
                torch.set_rng_state(drawn)
                try:
                    return self._item(clip)
                except DecodeError as error:
                    self._count_bad(clip, error)
        raise DecodeError(f'no clip of class {info["label"]} can be decoded; the last one tried was {clip["path"]!r}')

    def bad_clips(self) -> list[str]:
        """Return the paths of clips that this process and its workers could not decode so far."""
        infos = (super(ClipDataset, self).get_data_info(idx) for idx in range(len(self)))
        return [info['path'] for info in infos if self._bad[info['annotation']]]

    def _item(self, info: Results) -> Any:
        with self.whereabouts.on(info['sample_idx']):
            item = self.pipeline(info)
        if info.get('complaints') and not self._damaged[info['annotation']]:
            self._damaged[info['annotation']] = True
            self._report_damage(info['path'], info['complaints'], int(self._damaged.sum()))
        return item

    def _test_item(self, info: Results) -> Any:
        try:
            return self._item(dict(info))
        except DecodeError as error:
            if self.on_bad == 'error':
                raise
            self._note_bad(info, error, 'not scored')
            return self.pipeline({**info, 'unreadable': True})

    def _note_bad(self, info: Results, error: DecodeError, consequence: str) -> None:
        if self._bad[info['annotation']]:
            return
        self._bad[info['annotation']] = True
        print_log(f'{error}; {consequence} ({int(self._bad.sum())} bad so far)', 'current', logging.WARNING)
        if self._bad_list:
            with open(self._bad_list, 'a', encoding='utf-8', errors='surrogateescape') as file:
                file.write(f'{info["path"]}\t{error}\n')

    def _count_bad(self, info: Results, error: DecodeError) -> None:
        self._note_bad(info, error, 'replaced by another clip of its class')
        bad = int(self._bad.sum())
        if bad > self.max_bad * len(self):
            raise DecodeError(
                f'{bad} of {len(self)} clips of {self.ann_file} cannot be decoded, more than max_bad={self.max_bad}: '
                f'{_first(self.bad_clips(), 20)}{f" (all in {self._bad_list})" if self._bad_list else ""}; '
                f'the last one: {error}'
            ) from error

    def _others_of_class(self, label: int, drawn: Tensor) -> Iterator[Results]:
        """Yield the clips of a class, in the random order given by the state `drawn` of torch's generator."""
        if not self._by_label:
            for idx in range(len(self)):
                self._by_label.setdefault(super().get_data_info(idx)['label'], []).append(idx)
        torch.set_rng_state(drawn)
        clips = self._by_label[label]
        for place in torch.randperm(len(clips)).tolist():
            yield self.get_data_info(clips[place])

    def _load_manifest(self) -> dict[str, ManifestRow] | None:
        if self.manifest is None:
            return None
        if not os.path.exists(self.manifest):
            text = f'no manifest {self.manifest}'
            if self.missing == 'error':
                raise FileNotFoundError(text)
            print_log(f'{text}: frame counts are read from the files, unverified', 'current', logging.WARNING)
            return None
        folder = os.path.dirname(self.manifest)
        return {os.path.normpath(os.path.join(folder, row.path)): row for row in load_manifest(self.manifest)}

    def _look_up(self, clips: Sequence[Results], rows: Mapping[str, ManifestRow]) -> list[str]:
        """Return the status of each clip, and add its number of frames and its size to it."""
        reasons = []
        for clip in clips:
            row = rows.get(os.path.normpath(clip['path']))
            if row is None:
                reasons.append('not listed')
                continue
            if row.label not in (None, clip['label']):
                raise ValueError(
                    f'{clip["path"]!r} has label {clip["label"]} in {self.ann_file}, but {row.label} '
                    f'({row.class_name!r}) in {self.manifest}: prepare the data again'
                )
            if self.classes and row.class_name not in ('', self.classes[clip['label']]):
                raise ValueError(
                    f'label {clip["label"]} is {self.classes[clip["label"]]!r} in {self.class_file}, but '
                    f'{row.class_name!r} in {self.manifest}: prepare the data again'
                )
            reasons.append(row.status)
            clip.update(num_frames=row.frames, size=(row.height, row.width))
        return reasons

    def _report_missing(self, paths: list[str]) -> None:
        listed = self._metainfo['num_annotated']
        text = f'{len(paths)} of {listed} clips in {self.ann_file} have no file: {_first(map(repr, paths))}'
        if paths and (len(paths) == listed or self.missing == 'error'):
            raise FileNotFoundError(text)
        if paths:
            print_log(f'{text}; the other {listed - len(paths)} are used', 'current', logging.WARNING)

    def _report_unusable(self, clips: list[tuple[str, str]]) -> None:
        listed, usable = self._metainfo['num_annotated'], self._metainfo['num_annotated'] - len(clips)
        usable -= self._metainfo['num_missing']
        named = _first(f'{path!r} ({reason})' for path, reason in clips)
        text = f'{len(clips)} of {listed} clips in {self.ann_file} are unusable according to {self.manifest}: {named}'
        if clips and not usable:
            raise ValueError(text)
        if clips:
            print_log(f'{text}; the other {usable} are used', 'current', logging.WARNING)

    def _report_damage(self, path: str, complaints: list[str], count: int) -> None:
        if count <= 20 or count.bit_count() == 1:
            print_log(
                f'{path!r} is damaged; the decoder concealed the errors and the clip is used: {_first(complaints)} '
                f'({count} damaged clips so far)',
                'current',
                logging.WARNING,
            )

    def _refuse_plain_flip(self, transform: Any) -> None:
        if isinstance(transform, FlipClip) and transform.prob > 0 and not transform.swap_labels:
            without = unpaired(self.classes or ())
            remark = f'. No class is the mirror image of {_first(map(repr, without))}' if without else ''
            raise ValueError(
                f'{type(self).__name__} with FlipClip(swap_labels=False): some classes differ only by direction, so '
                f'mirrored clips need mirrored labels; use FlipClip(swap_labels=True) or remove the flip{remark}'
            )
        inner = getattr(transform, 'transforms', ())
        for one in inner if isinstance(inner, Sequence) else [inner]:
            self._refuse_plain_flip(one)


@DATASETS.register_module()
class KineticsDataset(ClipDataset):
    """Kinetics from lists of `path label` lines (mmaction2's format).

    Args:
        num_classes: Labels must be 0 to `num_classes - 1`; by default the number of names in `class_file`.
    """

    def __init__(self, *args: Any, num_classes: int | None = None, **kwargs: Any) -> None:
        self.num_classes = num_classes
        super().__init__(*args, **kwargs)

    def load_annotations(self) -> list[Annotation]:
        num_classes = self.num_classes or len(self.classes or ())
        if not num_classes:
            raise ValueError('KineticsDataset needs num_classes or class_file')
        if self.classes and len(self.classes) != num_classes:
            raise ValueError(
                f'num_classes={num_classes}: {len(self.classes)}, the number of names in {self.class_file}, is expected'
            )
        return load_path_label_lines(self.ann_file, num_classes)


class SomethingDataset(ClipDataset):
    """Common part of both versions: a class list, and lists of clips in CSV or JSON."""

    def load_annotations(self) -> list[Annotation]:
        if not self.classes:
            raise ValueError(f'{type(self).__name__} needs class_file, the official list of labels')
        load = load_something_json if self.ann_file.endswith('.json') else load_something_csv
        return load(self.ann_file, self.classes)


@DATASETS.register_module()
class SomethingV1Dataset(SomethingDataset):
    """Something-Something v1: a folder of JPEG frames per clip (decode with `backend='frames'`)."""


@DATASETS.register_module()
class SomethingV2Dataset(SomethingDataset):
    """Something-Something v2: one video per clip, `<id>.webm` as downloaded, or another `suffix`.

    Args:
        suffix: Suffix of the files, with the dot.
    """

    def __init__(self, *args: Any, suffix: str = '.webm', **kwargs: Any) -> None:
        self.suffix = suffix
        super().__init__(*args, **kwargs)

    def path_of(self, name: str) -> str:
        return name + self.suffix


def _look_for(clips: Sequence[Results]) -> list[str]:
    exists = _existing([clip['path'] for clip in clips])
    return [OK if clip['path'] in exists else NO_FILE for clip in clips]


def _first(texts: Iterable[str], number: int = 3) -> str:
    few = list(islice(texts, number + 1))
    return ', '.join(few[:number]) + (', ...' if len(few) > number else '')


def _existing(paths: Sequence[str]) -> set[str]:
    """Return the existing `paths`, listing each folder once: checking 240 000 files one by one takes minutes."""
    folders: dict[str, set[str]] = {}
    existing = set()
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
        if name in folders[folder]:
            existing.add(path)
    return existing
