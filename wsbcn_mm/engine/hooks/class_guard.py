"""Keep the class list in every checkpoint, and use none with data whose label ids mean other classes."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import BaseLoop, Runner

from ..class_list import ClassList, class_list_in, difference


@HOOKS.register_module()
class ClassGuardHook(Hook):
    """Write the hash of the class list beside the list into checkpoints, and compare lists wherever one is loaded.

    Checked are the file of `load_from` and of `--resume`, and the checkpoint that tools/test.py evaluates, against the
    class names of the data set that is trained on or tested. Tools that load weights without data, such as
    tools/export.py, have them compared with the names that the recipe's test set has without its samples. Where either
    has no names, the log says that nothing was compared. The list is that of `dataset_meta` in mmengine's checkpoints,
    the hash `classes_sha256` in their `meta`.

    `allow_class_mismatch=True` in the config says that another list is meant, as for a new head; a run to resume has
    the list that it began with.

    Raises:
        ValueError: If the lists differ, naming the first class that does.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        """`meta` of a checkpoint that was loaded before there were data to compare it with."""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        meta = checkpoint['meta']
        classes = class_list_in(meta.get('dataset_meta'))
        if classes:
            meta['classes_sha256'], meta['num_classes'] = classes.sha256, len(classes.names)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self._loaded = checkpoint.get('meta') or {}
        # Private: the public properties would build what is not there yet, for tools that load weights without data.
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
        """Compare what was loaded last with the classes of a data set, once."""
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
            refuse_or_warn(runner, theirs, ours, differs)
        else:
            runner.logger.info(f'the checkpoint has the classes of the data: {ours}')


def test_set_without_samples(runner: Runner) -> Any:
    """The recipe's test set with its class names alone; None, which is logged, where these cannot be had."""
    dataset = (runner.cfg.get('test_dataloader') or {}).get('dataset')
    if not isinstance(dataset, dict):
        return dataset
    try:
        return DATASETS.build({**dataset, 'lazy_init': True})
    except Exception as error:
        # The files may be elsewhere, and the data set may be of any kind: what the weights are for needs neither.
        runner.logger.info(f'class names are not compared yet, the test set cannot be made: {error}')
        return None


def refuse_or_warn(runner: Runner, theirs: ClassList, ours: ClassList, differs: str) -> None:
    """Raise ValueError, or log the difference where the config allows it."""
    message = f'the checkpoint was trained with another class list ({theirs}) than the data have ({ours}): {differs}'
    if runner.cfg.get('resume'):
        raise ValueError(
            f'{message}. A run goes on with the list it began with; to start from its weights, use --cfg-options '
            'load_from=FILE allow_class_mismatch=True in place of --resume'
        )
    if not runner.cfg.get('allow_class_mismatch', False):
        raise ValueError(f'{message}. If that is meant, as for a new head: --cfg-options allow_class_mismatch=True')
    runner.logger.warning(f'{message}. Taken all the same (allow_class_mismatch=True)')
