"""Save the kind of every layer in checkpoints, and reject weights that were trained with another norm or WS."""

from collections.abc import Mapping
from typing import Any, TypeVar

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor, nn

from ...surgery.checkpoint_import import Match, match, match_by_key, refuse_partial, strip_prefix, without_time
from ...surgery.fingerprint import Fingerprint, compare, fingerprint, fingerprint_of_state
from ..recipe.tree import pretrained_parts
from ..runner import unwrapped_model

T = TypeVar('T')


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Save a model's fingerprint in its checkpoints, and compare it whenever weights are loaded.

    The hook checks the file of `load_from` and of `--resume`, the checkpoint that tools/test.py evaluates, and files
    that an `init_cfg` loads into parts of the model. In a file without a fingerprint, keys and shapes reveal the norm,
    but not whether the filters were trained with Weight Standardization. A model with WS rejects such a file.

    `allow_norm_mismatch=True` in the config loads the matching entries and logs a warning instead.

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
                f'{name} is {found.theirs}, the model {found.ours}: {"; ".join(found.differences)}. Weights do not '
                'work under another norm or another WS than in training: use the recipe of the checkpoint, or start '
                'from weights of the same kind (docs/pretrained.md)'
            )
        elif found.verdict == 'unknown' and found.ours.endswith('-ws'):
            message = (
                f'{name} ({found.theirs}) does not record whether its filters were trained with Weight '
                f'Standardization, as the model ({found.ours}) requires: convert it with tools/convert_checkpoint.py '
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
        log(f'{name}: {len(found.state)} entries match\n{found.describe()}')


def refuse_norm_mismatch(runner: Runner, message: str) -> None:
    """Raise ValueError, or log the message if the config allows the mismatch."""
    if not runner.cfg.get('allow_norm_mismatch', False):
        raise ValueError(f'{message}. To load the matching entries anyway: --cfg-options allow_norm_mismatch=True')
    runner.logger.warning(f'{message}. Loaded anyway (allow_norm_mismatch=True)')


def fingerprint_in(checkpoint: Mapping[str, Any], prefix: str = '') -> Fingerprint:
    """Return the fingerprint of the layers under `prefix`: as recorded, or else derived from keys and shapes."""
    layers = (checkpoint.get('meta') or {}).get('fingerprint')
    if layers is None:
        layers = fingerprint_of_state(strip_prefix(checkpoint.get('state_dict', checkpoint)))
    return without_prefix(layers, prefix)


def without_prefix(named: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return the entries whose names begin with `prefix`, without the prefix."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def check_same_model(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a resumed run would reinitialise some layers. The Runner only warns about that."""
    ours, theirs = set(model.state_dict()), set(state)
    if ours != theirs:
        missing, others = sorted(ours - theirs) or ['none'], sorted(theirs - ours) or ['none']
        raise ValueError(
            f'the checkpoint to resume from belongs to another model: it lacks {len(ours - theirs)} entries of the '
            f"recipe's (the first: {missing[0]}) and has {len(theirs - ours)} others (the first: {others[0]}). "
            'To start from the matching weights, use --cfg-options load_from=FILE instead of --resume'
        )
