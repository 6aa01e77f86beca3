"""Record in checkpoints which norms and classes they were trained with, and reject weights of another kind."""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, TypeVar

from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import BaseLoop, CheckpointLoader, Runner
from torch import Tensor, nn

from ...surgery.checkpoint_import import Match, match, match_by_key, refuse_partial, strip_prefix, without_time
from ...surgery.fingerprint import Fingerprint, compare, fingerprint, fingerprint_of_state
from ..recipe.tree import pretrained_parts
from ..runner import unwrapped_model

T = TypeVar('T')


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Write a model's fingerprint into its checkpoints, and compare it wherever weights are loaded.

    It checks the files of `load_from` and `--resume`, the checkpoint that tools/test.py evaluates, and the files of
    every `init_cfg`. Without a fingerprint, keys and shapes reveal the norm, but not whether the filters were trained
    with Weight Standardization; a model with WS rejects such a file.

    `allow_norm_mismatch=True` in the config loads what fits and logs a warning instead.

    Raises:
        ValueError: If the file's layers are of another kind, if less than 90 % of the backbone would be loaded, or if
            the run to resume had another model.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._replaced = False
        """Whether a checkpoint replaced the weights that init_cfgs had loaded."""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint['meta']['fingerprint'] = fingerprint(unwrapped_model(runner))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self._replaced = True
        model = unwrapped_model(runner)
        state = strip_prefix(checkpoint.get('state_dict', checkpoint))
        self._check_kind(runner, 'the checkpoint', fingerprint_in(checkpoint), model)
        if runner.cfg.get('resume'):
            check_same_model(model, state)
        else:
            self._check_coverage(runner, 'the checkpoint', match_by_key(state, model.state_dict()))

    def before_train(self, runner: Runner) -> None:
        if self._replaced:
            return
        for part, init in pretrained_parts(unwrapped_model(runner)):
            name, prefix = init['checkpoint'], init.get('prefix') or ''
            checkpoint = CheckpointLoader.load_checkpoint(name, map_location='cpu')
            state = without_prefix(strip_prefix(checkpoint.get('state_dict', checkpoint)), prefix)
            self._check_kind(runner, name, fingerprint_in(checkpoint, prefix), part)
            if init['type'] == 'Inflated2d':
                self._check_coverage(runner, name, match(state, without_time(part.state_dict())))
            else:
                self._check_coverage(runner, name, match_by_key(state, part.state_dict()))

    def _check_kind(self, runner: Runner, name: str, layers: Fingerprint, model: nn.Module) -> None:
        found = compare(layers, fingerprint(model))
        if found.verdict == 'mismatch':
            message = (
                f'{name} is {found.theirs}, the model {found.ours}: {"; ".join(found.differences)}. Weights do '
                'not work with another norm or another WS: use the recipe they come from, or weights of the same kind '
                '(docs/pretrained.md)'
            )
        elif found.verdict == 'unknown' and found.ours.endswith('-ws'):
            message = (
                f'{name} ({found.theirs}) does not say whether its filters were trained with Weight Standardization, '
                f'as the model ({found.ours}) needs: tools/convert_checkpoint.py writes a file that does '
                '(docs/pretrained.md)'
            )
        else:
            assumed = ', assumed to be trained without WS' if found.verdict == 'unknown' else ''
            runner.logger.info(f'{name}: {found.theirs}{assumed}; the model: {found.ours}')
            return
        refuse_norm_mismatch(runner, message)

    def _check_coverage(self, runner: Runner, name: str, found: Match) -> None:
        try:
            refuse_partial(found)
        except ValueError as error:
            refuse_norm_mismatch(runner, f'{name}: {error}')
            return
        log = runner.logger.warning if found.missing or found.misshapen else runner.logger.info
        log(f'{name}: {len(found.state)} entries fit\n{found.describe()}')


@HOOKS.register_module()
class ClassGuardHook(Hook):
    """Write the hash of the class list into checkpoints, and compare class lists wherever a checkpoint is loaded.

    It checks the files of `load_from` and `--resume`, and the checkpoint that tools/test.py evaluates, against the
    class names of the data set in use. For tools that load weights without data, such as tools/export.py, it takes the
    class names of the recipe's test set without its samples. If either side has no names, the log says that nothing was
    compared. The list is `dataset_meta` of mmengine's checkpoints, the hash `classes_sha256` in their `meta`.

    `allow_class_mismatch=True` in the config allows another list, as for a new head. A resumed run must keep its list.

    Raises:
        ValueError: If the lists differ; the message names the first difference.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        """`meta` of a checkpoint that was loaded before the data were known."""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        meta = checkpoint['meta']
        classes = class_list_in(meta.get('dataset_meta'))
        if classes:
            meta['classes_sha256'], meta['num_classes'] = classes.sha256, len(classes.names)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self._loaded = checkpoint.get('meta') or {}
        # Private: the public properties would build the data, which tools that only load weights do not have.
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
        """Compare the checkpoint that was loaded last with the classes of a data set, once."""
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


def refuse_norm_mismatch(runner: Runner, message: str) -> None:
    """Raise ValueError, or log the message if the config allows the mismatch."""
    if not runner.cfg.get('allow_norm_mismatch', False):
        raise ValueError(f'{message}. To load what fits anyway: --cfg-options allow_norm_mismatch=True')
    runner.logger.warning(f'{message}. Loaded anyway (allow_norm_mismatch=True)')


def fingerprint_in(checkpoint: Mapping[str, Any], prefix: str = '') -> Fingerprint:
    """Return the fingerprint in a checkpoint, or that of its keys and shapes, for the layers under a prefix."""
    said = (checkpoint.get('meta') or {}).get('fingerprint')
    if said is None:
        said = fingerprint_of_state(strip_prefix(checkpoint.get('state_dict', checkpoint)))
    return without_prefix(said, prefix)


def without_prefix(named: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return the entries whose names begin with a prefix, without the prefix."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def check_same_model(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a resumed run would reinitialise some layers, of which the Runner only warns."""
    ours, theirs = set(model.state_dict()), set(state)
    if ours != theirs:
        missing, others = sorted(ours - theirs) or ['none'], sorted(theirs - ours) or ['none']
        raise ValueError(
            f'the checkpoint to resume from is of another model: it lacks {len(ours - theirs)} entries of the '
            f"recipe's (the first: {missing[0]}) and has {len(theirs - ours)} others (the first: {others[0]}). "
            'To start from the weights that fit, use --cfg-options load_from=FILE instead of --resume'
        )


class ClassList(NamedTuple):
    """Class names in label order."""

    names: tuple[str, ...]
    sha256: str

    def __str__(self) -> str:
        return f'{len(self.names)} classes, sha256 {self.sha256[:12]}'


def class_list(names: Sequence[str]) -> ClassList:
    """Return the class list of these names in Unicode's composed form (NFC); the hash is over one line per name."""
    composed = tuple(unicodedata.normalize('NFC', name) for name in names)
    return ClassList(composed, hashlib.sha256('\n'.join(composed).encode()).hexdigest())


def class_list_in(meta: Mapping[str, Any] | None) -> ClassList | None:
    """Return the class list in a data set's `metainfo` or a checkpoint's `dataset_meta`, if there is one.

    Older checkpoints of OpenMMLab call it `CLASSES`.
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
    """Return the recipe's test set with its class names but without samples; log and return None if it fails."""
    dataset = (runner.cfg.get('test_dataloader') or {}).get('dataset')
    if not isinstance(dataset, dict):
        return dataset
    try:
        return DATASETS.build({**dataset, 'lazy_init': True})
    except Exception as error:
        # The files may be elsewhere, and the data set of any kind: loading weights needs neither.
        runner.logger.info(f'class names are not compared yet, as the test set cannot be built: {error}')
        return None


def refuse_class_mismatch(runner: Runner, theirs: ClassList, ours: ClassList, differs: str) -> None:
    """Raise ValueError, or log the difference if the config allows it."""
    message = f'the checkpoint was trained with another class list ({theirs}) than the data have ({ours}): {differs}'
    if runner.cfg.get('resume'):
        raise ValueError(
            f'{message}. A resumed run must keep its list; to start from its weights, use --cfg-options load_from=FILE '
            'allow_class_mismatch=True instead of --resume'
        )
    if not runner.cfg.get('allow_class_mismatch', False):
        raise ValueError(f'{message}. If this is intended, as for a new head: --cfg-options allow_class_mismatch=True')
    runner.logger.warning(f'{message}. Loaded anyway (allow_class_mismatch=True)')
