"""Save the class list in checkpoints, and reject weights that were trained with another one."""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import BaseLoop, Runner


@HOOKS.register_module()
class ClassGuardHook(Hook):
    """Save the hash of the class list in checkpoints, and compare the lists whenever weights are loaded.

    The hook compares the file of `load_from` and of `--resume`, and the checkpoint that tools/test.py evaluates, with
    the class names of the data set for training or test. For tools that load weights without data, such as
    tools/export.py, it builds the recipe's test set without samples and compares the names of that. If either side has
    no names, the log says that nothing was compared. The list is in `dataset_meta` of mmengine's checkpoints, the hash
    is `classes_sha256` in their `meta`.

    `allow_class_mismatch=True` in the config allows another list, as for a new head. A resumed run must keep its list.

    Raises:
        ValueError: If the lists differ, with the first class that differs.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        """`meta` of a checkpoint that was loaded before the data existed to compare it with."""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        meta = checkpoint['meta']
        classes = class_list_in(meta.get('dataset_meta'))
        if classes:
            meta['classes_sha256'], meta['num_classes'] = classes.sha256, len(classes.names)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self._loaded = checkpoint.get('meta') or {}
        # Private attributes: the public properties would build the loops of tools that load weights without data.
        loops = [runner._train_loop, runner._val_loop, runner._test_loop]
        built = next((loop for loop in loops if isinstance(loop, BaseLoop)), None)
        if built:
            self._compare(runner, built.dataloader.dataset)
            return
        dataset = test_set_without_samples(runner)
        if dataset is not None:
            self._compare(runner, dataset)

    def before_val(self, runner: Runner) -> None:
        self._compare(runner, runner.val_loop.dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        self._compare(runner, runner.test_loop.dataloader.dataset)

    def _compare(self, runner: Runner, dataset: Any) -> None:
        """Compare the classes of the last loaded checkpoint with those of a data set, once."""
        if self._loaded is None:
            return
        meta, self._loaded = self._loaded, None
        theirs = class_list_in(meta.get('dataset_meta')) or class_list_in(meta)
        ours = class_list_in(getattr(dataset, 'metainfo', None))
        if not theirs or not ours:
            runner.logger.info(f'{"the data have" if theirs else "the checkpoint has"} no class names to compare')
            return
        differs = difference(theirs, ours)
        if differs:
            refuse_class_mismatch(runner, theirs, ours, differs)
        else:
            runner.logger.info(f'the checkpoint has the classes of the data: {ours}')


class ClassList(NamedTuple):
    """Class names in label order, and their hash."""

    names: tuple[str, ...]
    sha256: str

    def __str__(self) -> str:
        return f'{len(self.names)} classes, sha256 {self.sha256[:12]}'


def class_list(names: Sequence[str]) -> ClassList:
    """Return the list of these names in Unicode's composed form (NFC), with the hash of one line per name."""
    composed = tuple(unicodedata.normalize('NFC', name) for name in names)
    return ClassList(composed, hashlib.sha256('\n'.join(composed).encode()).hexdigest())


def class_list_in(meta: Mapping[str, Any] | None) -> ClassList | None:
    """Return the class list in a data set's `metainfo` or a checkpoint's `dataset_meta`; None without one.

    OpenMMLab's older checkpoints store it as `CLASSES`.
    """
    meta = meta or {}
    names = meta.get('classes') or meta.get('CLASSES')
    return class_list(names) if names else None


def difference(theirs: ClassList, ours: ClassList) -> str | None:
    """Describe the first difference of two lists; None if they are equal."""
    for label, (one, other) in enumerate(zip_longest(theirs.names, ours.names)):
        if one != other:
            named = [repr(name) if name is not None else 'missing' for name in (one, other)]
            return f'class {label} is {named[0]} in the checkpoint and {named[1]} in the data'
    return None


def test_set_without_samples(runner: Runner) -> Any:
    """Build the recipe's test set with its class names but without samples. On failure, log it and return None."""
    dataset = (runner.cfg.get('test_dataloader') or {}).get('dataset')
    if not isinstance(dataset, dict):
        return dataset
    try:
        return DATASETS.build({**dataset, 'lazy_init': True})
    except Exception as error:
        # The files may be missing and the data set may be of any kind: tools without data need neither.
        runner.logger.info(f'class names are not compared yet, because the test set cannot be built: {error}')
        return None


def refuse_class_mismatch(runner: Runner, theirs: ClassList, ours: ClassList, differs: str) -> None:
    """Raise ValueError, or log the difference if the config allows it."""
    message = f'the checkpoint was trained with another class list ({theirs}) than the data have ({ours}): {differs}'
    if runner.cfg.get('resume'):
        raise ValueError(
            f'{message}. A resumed run must keep its class list. To start a new run from its weights, use '
            '--cfg-options load_from=FILE allow_class_mismatch=True instead of --resume'
        )
    if not runner.cfg.get('allow_class_mismatch', False):
        raise ValueError(f'{message}. If this is intended, as for a new head: --cfg-options allow_class_mismatch=True')
    runner.logger.warning(f'{message}. Loaded anyway (allow_class_mismatch=True)')
