"""Start a recipe with WS and BCN from the weights of its BN counterpart."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...surgery.calibration import calibrate
from ...surgery.fingerprint import Fingerprint, describe
from ...surgery.start_from_bn import adopt_bn_weights
from ..checkpoint.norm_guard import fingerprint_in
from ..data.training_batches import losses, training_batches
from ..recipe.model import input_shape, run_all_parts
from ..runner import effective_batch, unwrapped_model


@HOOKS.register_module()
class BNStartHook(Hook):
    """Adopt BN weights before the first iteration, exactly except for the filter means and the live channel half.

        custom_hooks = [dict(type='BNStartHook')]
        load_from = 'bn.pth'            # or an init_cfg
        allow_norm_mismatch = True      # CheckpointGuardHook rejects BN weights otherwise

    Args:
        calibration_batches: Batches of each rank's share of the training set on which running statistics are measured
            before the first iteration; 0 keeps those of BN.
        input_shape: Shape of the model's input, to see which norm follows which convolution; by default the recipe's.

    Raises:
        ValueError: If the weights were not trained with BN.
    """

    priority = 'HIGH'

    def __init__(self, calibration_batches: int = 0, input_shape: Sequence[int] | None = None) -> None:
        if calibration_batches < 0:
            raise ValueError(f'calibration_batches={calibration_batches}: 0 or more is expected')
        self.calibration_batches = calibration_batches
        self.input_shape = input_shape
        self._kind: Fingerprint = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self._kind = fingerprint_in(checkpoint)

    def before_train(self, runner: Runner) -> None:
        if runner.iter > 0:
            return
        if any(layer.get('conv') == 'WS' or layer.get('norm') == 'BCN' for layer in self._kind.values()):
            raise ValueError(
                'BNStartHook takes weights that were trained with BN and without WS; the checkpoint is '
                f'{describe(self._kind)}'
            )
        model = unwrapped_model(runner)
        shape = tuple(self.input_shape or input_shape(runner.cfg))
        start = adopt_bn_weights(model, example=run_all_parts(model, shape))
        runner.logger.info(
            f'started from BN: {len(start.lost_means)} WS convolutions handed their scale to the norm after them, '
            f'{len(start.norms)} BCN keep the statistics; filter means are lost'
        )
        if self.calibration_batches:
            samples = self.calibration_batches * effective_batch(runner).per_device * runner.world_size
            batches = training_batches(runner.train_dataloader, samples, rank=runner.rank, ranks=runner.world_size)
            found = calibrate(model, batches, forward=partial(losses, model))
            runner.logger.info(
                f'{len(found.statistics)} norms calibrated on {found.batches} batches, {len(found.unreached)} were not '
                f'reached; the last sweep moved their means by up to {found.change:.1e} standard deviations'
            )
