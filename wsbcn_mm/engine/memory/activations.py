"""The config's `activation_memory`: which activations the blocks keep for the backward pass."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...microbatch.activation_memory import describe_blocks, set_activation_memory
from ..recipe.checks import requested_activation_memory
from ..runner import unwrapped_model


@HOOKS.register_module()
class ActivationMemoryHook(Hook):
    """Apply the config's `activation_memory` before training, and log the blocks that it applies to.

    `activation_memory` is a mode of `wsbcn_mm.microbatch.activation_memory.set_activation_memory`, or a dict of
    `mode` and `modules` to choose the blocks. The default is `all`.

    Raises:
        ValueError: As `set_activation_memory`; also together with mmengine's `activation_checkpointing` or `compile`.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        asked = requested_activation_memory(runner.cfg)
        model = unwrapped_model(runner)
        blocks = set_activation_memory(model, **asked)
        if blocks:
            runner.logger.info(f'activation_memory={asked["mode"]}: {describe_blocks(model, blocks)}')
