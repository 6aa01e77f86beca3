"""Let a recipe with WS and BCN go on from the weights of its BN counterpart."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ...surgery.calibration import calibrate
from ...surgery.fingerprint import Fingerprint, describe
from ...surgery.gradual import Gradual
from ...surgery.start_from_bn import adopt_bn_weights
from ..checkpoint.guards import fingerprint_in
from ..data.training_batches import losses, training_batches
from ..recipe.model import input_shape, run_all_parts
from ..runner import effective_batch, unwrapped_model

KEY = 'start_from_bn'
"""Entry of a checkpoint, there only while WS and the channel half are not yet in full."""


@HOOKS.register_module()
class BNStartHook(Hook):
    """Adopt BN weights before the first iteration, exactly but for the filter means and the live channel half.

        custom_hooks = [..., dict(type='BNStartHook', iters=1000)]
        load_from = 'bn.pth'            # or an init_cfg
        allow_norm_mismatch = True      # CheckpointGuardHook refuses BN weights otherwise

    With `iters` the change is gradual (`wsbcn_mm.surgery.gradual`): the first iteration's network, in evaluation, is
    the BN network, and alpha grows linearly to 1. A checkpoint from before that has the ordinary state of the model and
    one more entry; `--resume` goes on from there, and tools/test.py of a recipe with this hook evaluates the network
    as it was, and says so.

    Args:
        iters: Iterations over which WS and the channel half come in; 0 for all at once.
        calibration_batches: Batches, of each rank's share of the training set, on which running statistics are measured
            anew before the first iteration. Of use with iters=0; the statistics of a gradual start fit already.
        input_shape: Of what the model receives, to see which norm follows which convolution; by default the recipe's.

    Raises:
        ValueError: If the weights are none that were trained with BN, or if a run to resume has lost its place.
    """

    priority = 'HIGH'

    def __init__(self, iters: int = 0, calibration_batches: int = 0, input_shape: Sequence[int] | None = None) -> None:
        if iters < 0 or calibration_batches < 0:
            raise ValueError(f'iters={iters}, calibration_batches={calibration_batches}: 0 or more are expected')
        self.iters = iters
        self.calibration_batches = calibration_batches
        self.input_shape = input_shape
        self._gradual: Gradual | None = None
        self._loaded: dict[str, Any] | None = None
        self._kind: Fingerprint = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self._loaded = checkpoint.get(KEY)
        self._kind = fingerprint_in(checkpoint)

    def before_train(self, runner: Runner) -> None:
        model = unwrapped_model(runner)
        if runner.iter == 0:
            self._start(runner, model)
        elif self._loaded is not None:
            self._gradual = Gradual(model, **self._loaded)
        elif runner.iter < self.iters:
            raise ValueError(
                f'the checkpoint of iteration {runner.iter} does not say what remains of the BN network, which '
                f'iters={self.iters} would need: it was written without BNStartHook, or with fewer iters'
            )

    def _start(self, runner: Runner, model: nn.Module) -> None:
        if any(layer.get('conv') == 'WS' or layer.get('norm') == 'BCN' for layer in self._kind.values()):
            raise ValueError(
                'BNStartHook takes weights that were trained with BN and without WS; the checkpoint is '
                f'{describe(self._kind)}'
            )
        shape = tuple(self.input_shape or input_shape(runner.cfg))
        start = adopt_bn_weights(model, example=run_all_parts(model, shape))
        runner.logger.info(
            f'started from BN: {len(start.lost_means)} WS convolutions have handed their scale to the norm after them, '
            f'{len(start.norms)} BCN keep the statistics; filter means '
            + (f'fade over {self.iters} iterations' if self.iters else 'are lost')
        )
        if self.calibration_batches:
            samples = self.calibration_batches * effective_batch(runner).per_device * runner.world_size
            batches = training_batches(runner.train_dataloader, samples, rank=runner.rank, ranks=runner.world_size)
            found = calibrate(model, batches, forward=partial(losses, model))
            runner.logger.info(
                f'{len(found.statistics)} norms calibrated on {found.batches} batches, {len(found.unreached)} were not '
                f'reached; the last sweep moved their means by up to {found.change:.1e} standard deviations'
            )
        if self.iters:
            self._gradual = Gradual(model, start.lost_means, start.norms)

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self._gradual is None:
            return
        if runner.iter < self.iters:
            self._gradual.alpha = runner.iter / self.iters
        else:
            self._gradual.finish()
            self._gradual = None
            runner.logger.info('the model is one of WS and BCN alone now')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if self._gradual is not None:
            checkpoint[KEY] = self._gradual.state_dict()

    def before_val(self, runner: Runner) -> None:
        self._evaluate_as_it_was(runner)

    def before_test(self, runner: Runner) -> None:
        self._evaluate_as_it_was(runner)

    def _evaluate_as_it_was(self, runner: Runner) -> None:
        if self._gradual is None and self._loaded is not None and runner.iter == 0:
            self._gradual = Gradual(unwrapped_model(runner), **self._loaded)
            runner.logger.warning(
                f'this checkpoint is from the way from BN to WS and BCN: evaluated with alpha {self._gradual.alpha:.3f}'
            )
