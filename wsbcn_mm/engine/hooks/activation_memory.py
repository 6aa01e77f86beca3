"""The recipe's `activation_memory`: which activations its blocks keep for the backward pass."""

from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...microbatch.activation_memory import MODES, describe_blocks, set_activation_memory
from ..runner_model import unwrapped_model


@HOOKS.register_module()
class ActivationMemoryHook(Hook):
    """Apply the config's `activation_memory` before training and log to which blocks.

    `activation_memory` is a mode of `wsbcn_mm.microbatch.activation_memory.set_activation_memory`, or a dict of its
    `mode` and `modules` for blocks of one's own choice; `all` where the config has none.

    Raises:
        ValueError: As `set_activation_memory`, and together with the Runner's own ways to recompute or compile.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        asked = requested_activation_memory(runner.cfg)
        model = unwrapped_model(runner)
        blocks = set_activation_memory(model, **asked)
        if blocks:
            runner.logger.info(f'activation_memory={asked["mode"]}: {describe_blocks(model, blocks)}')


def requested_activation_memory(cfg: Config) -> dict[str, Any]:
    """Arguments of `set_activation_memory` from a recipe.

    Raises:
        ValueError: For an unknown mode or key, or beside `compile` or `activation_checkpointing`.
    """
    value = cfg.get('activation_memory', 'all')
    asked = dict(value) if isinstance(value, dict) else dict(mode=value)
    if 'mode' not in asked or not set(asked) <= {'mode', 'modules'}:
        raise ValueError(f"activation_memory={value!r}: a mode or a dict of 'mode' and 'modules' is expected")
    if asked['mode'] not in MODES:
        raise ValueError(f'activation_memory={asked["mode"]!r} is unknown: choose one of {", ".join(MODES)}')
    for other in ('compile', 'activation_checkpointing'):
        if asked['mode'] != 'all' and cfg.get(other):
            raise ValueError(
                f'activation_memory={asked["mode"]!r} does not go with {other}={cfg[other]!r}, which decides on its '
                'own what is recomputed: leave one of them out'
            )
    return asked
