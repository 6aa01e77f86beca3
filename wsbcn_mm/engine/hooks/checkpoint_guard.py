"""Keep in every checkpoint what it was trained with, and load no other kind of weights by accident."""

from collections.abc import Mapping
from typing import Any, TypeVar

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor, nn

from ...surgery.checkpoint_import import Match, match, match_by_key, refuse_partial, strip_prefix, without_time
from ...surgery.fingerprint import Fingerprint, compare, fingerprint, fingerprint_of_state
from ..pretrained import pretrained_parts
from ..runner_model import unwrapped_model

T = TypeVar('T')


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Write a model's fingerprint into its checkpoints, and compare it wherever weights are loaded.

    Checked are the file of `load_from` and of `--resume`, the checkpoint that tools/test.py evaluates, and the files
    that an `init_cfg` starts parts of the model from. Of a file without a fingerprint, keys and shapes tell the norm,
    but not whether its filters were trained with Weight Standardization; a model with WS refuses such a file.

    `allow_norm_mismatch=True` in the config takes what fits and says it as a warning instead.

    Raises:
        ValueError: If the file's layers are of another kind, if less than 90 % of the backbone would be loaded, or if a
            run to resume was one of another model.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._replaced = False
        """Whether a checkpoint took the place of what init_cfgs had loaded."""

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
                f'{name} is {found.theirs}, the model {found.ours}: {"; ".join(found.differences)}. Weights do not do '
                'under another norm or another WS what they learned: use the recipe they come from, or start from '
                'weights of the same kind (docs/pretrained.md)'
            )
        elif found.verdict == 'unknown' and found.ours.endswith('-ws'):
            message = (
                f'{name} ({found.theirs}) does not say whether its filters were trained with Weight Standardization, '
                f'as the model ({found.ours}) needs: tools/convert_checkpoint.py writes a file that does '
                '(docs/pretrained.md)'
            )
        else:
            assumed = ', taken as trained without WS' if found.verdict == 'unknown' else ''
            runner.logger.info(f'{name}: {found.theirs}{assumed}; the model: {found.ours}')
            return
        refuse_or_warn(runner, message)

    def _check_coverage(self, runner: Runner, name: str, found: Match) -> None:
        try:
            refuse_partial(found)
        except ValueError as error:
            refuse_or_warn(runner, f'{name}: {error}')
            return
        log = runner.logger.warning if found.missing or found.misshapen else runner.logger.info
        log(f'{name}: {len(found.state)} entries fit\n{found.describe()}')


def refuse_or_warn(runner: Runner, message: str) -> None:
    """Raise ValueError, or log the message where the config allows what it refuses."""
    if not runner.cfg.get('allow_norm_mismatch', False):
        raise ValueError(f'{message}. To take what fits all the same: --cfg-options allow_norm_mismatch=True')
    runner.logger.warning(f'{message}. Taken all the same (allow_norm_mismatch=True)')


def fingerprint_in(checkpoint: Mapping[str, Any], prefix: str = '') -> Fingerprint:
    """What a checkpoint says it was trained with, or what its keys and shapes tell, for the layers under a prefix."""
    said = (checkpoint.get('meta') or {}).get('fingerprint')
    if said is None:
        said = fingerprint_of_state(strip_prefix(checkpoint.get('state_dict', checkpoint)))
    return without_prefix(said, prefix)


def without_prefix(named: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Entries whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def check_same_model(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a run that goes on would start some layers anew, which the Runner only warns of."""
    ours, theirs = set(model.state_dict()), set(state)
    if ours != theirs:
        missing, others = sorted(ours - theirs) or ['none'], sorted(theirs - ours) or ['none']
        raise ValueError(
            f'the checkpoint to resume from is that of another model: it lacks {len(ours - theirs)} entries of the '
            f"recipe's (the first: {missing[0]}) and has {len(theirs - ours)} others (the first: {others[0]}). "
            'To start from what weights fit, use --cfg-options load_from=FILE in place of --resume'
        )
