"""Stop at the first NaN or infinite loss, and report where it comes from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ...diagnostics.non_finite import (
    NormState,
    all_finite,
    describe_norms,
    first_non_finite,
    state_that_is_not_finite,
    tensors_in,
)
from ...layers import BatchChannelNorm
from ...layers.ws_conv import _WSConv
from ..runner import unwrapped_model

NAMES = ('img_path', 'path', 'filename')
"""Fields of a sample that may hold the name of its file."""


class NonFiniteError(RuntimeError):
    """A loss, or a weight to be saved, is infinite or NaN."""


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stop training at the first infinite or NaN loss, before its backward pass.

    The check runs between the forward and the backward pass, so weights, optimizer and last checkpoint are those of the
    step before. The error names the iteration, the files of the batch, and the first module that fails when the batch
    is run again. A compiled model is checked after the step, so its weights are lost.

    With a gradient scaler, as in float16, an overflow of the forward pass is tolerated `tolerance` times in a row: its
    gradients are not finite either, so the scaler skips the step, and the running statistics are restored. Overflowing
    gradients after a finite loss are normal for a scaler. They stop the run only after `skipped_steps` skipped steps in
    a row: by then the scale has dropped a millionfold and would keep dropping. (A fused optimizer hides skipped steps.)

    A checkpoint with weights or statistics that are not finite is not written.

    The check waits for the device once per iteration; mmengine waits anyway, to log the loss.

    Args:
        tolerance: Non-finite losses in a row that are tolerated with a gradient scaler.
        skipped_steps: Skipped optimizer steps in a row that are tolerated.

    Raises:
        NonFiniteError: For such a loss, too many skipped steps, or such a checkpoint.
        ValueError: For a negative number.
    """

    priority = 'HIGH'
    """Above StepStatisticsHook: statistics of an overflow are restored before they are shared."""

    def __init__(self, tolerance: int = 3, skipped_steps: int = 20) -> None:
        for name, value, of in (('tolerance', tolerance, 'iterations'), ('skipped_steps', skipped_steps, 'steps')):
            if value < 0:
                raise ValueError(f'{name}={value}: 0 or more {of} are expected')
        self.tolerance = tolerance
        self.skipped_steps = skipped_steps
        self._in_a_row = 0
        self._skipped = 0
        self._batch: Any = None
        self._before: NormState | None = None
        self._overflowed = False
        self._handle: Any = None
        self._step_handle: Any = None

    def before_train(self, runner: Runner) -> None:
        if scales_gradients(runner):
            self._step_handle = runner.optim_wrapper.optimizer.register_step_post_hook(self._stepped)
        if runner.cfg.get('compile'):
            return
        model = unwrapped_model(runner)

        def look(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if module.training and kwargs.get('mode') == 'loss' and isinstance(out, dict):
                self._look_at(runner, losses_in(out), lambda: module.forward(*args, **kwargs))

        self._handle = model.register_forward_hook(look, with_kwargs=True)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._batch = data_batch
        self._before = NormState(unwrapped_model(runner)) if scales_gradients(runner) else None

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        if self._handle is None:
            self._look_at(runner, losses_in(outputs or {}), None)
        if self._overflowed and self._before is not None:
            # Not before the backward pass, which may have kept the statistics and would find them changed.
            self._before.put_back()
        self._overflowed = False
        if self._step_handle is not None and runner.optim_wrapper.should_update():
            self._look_at_step(runner)

    def after_train(self, runner: Runner) -> None:
        for handle in (self._handle, self._step_handle):
            if handle is not None:
                handle.remove()
        self._handle = self._step_handle = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get('state_dict', {})
        bad = [] if all_finite(state.values()) else [name for name, t in state.items() if not all_finite([t])]
        if bad:
            raise NonFiniteError(
                f'the checkpoint of iteration {runner.iter + 1} is not written: {len(bad)} of its {len(state)} entries '
                f'are not finite (the first: {bad[0]}). {last_checkpoint(runner)}'
            )

    def _stepped(self, *_: Any) -> None:
        self._skipped = -1

    def _look_at_step(self, runner: Runner) -> None:
        self._skipped += 1
        if self._skipped > self.skipped_steps:
            message = (
                f'iteration {runner.iter + 1}: the gradient scaler skipped {self._skipped} optimizer steps in a '
                f'row ({self.skipped_steps} are tolerated), the last at a scale of '
                f'{runner.optim_wrapper.loss_scaler.get_scale():.3g}: some gradients are not finite at any scale. '
                f'--amp bf16 needs no scaler. {last_checkpoint(runner)}'
            )
            runner.logger.error(message)
            raise NonFiniteError(message)

    def _look_at(self, runner: Runner, losses: dict[str, Tensor], run: Any) -> None:
        if all_finite(losses.values()):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._before is not None and self._in_a_row <= self.tolerance:
            self._overflowed = True
            runner.logger.warning(
                f'iteration {runner.iter + 1}: {told(losses)}; the gradient scaler skips the step '
                f'({self._in_a_row} in a row, {self.tolerance} are tolerated)'
            )
            return
        message = '\n'.join(self._report(runner, losses, run))
        runner.logger.error(message)
        raise NonFiniteError(message)

    def _report(self, runner: Runner, losses: dict[str, Tensor], run: Any) -> Iterator[str]:
        model = unwrapped_model(runner)
        rank = f' on rank {get_rank()}' if get_world_size() > 1 else ''
        row = f', {self._in_a_row} in a row' if self._in_a_row > 1 else ''
        yield f'iteration {runner.iter + 1}{rank}: {told(losses)}{row}'
        yield f'samples: {", ".join(sample_names(self._batch)) or "unknown"}'
        # Whole parameters of a sharded model would need the other ranks, which do not run this.
        bad = [] if is_sharded(model) else state_that_is_not_finite(model)
        weights = [name for name in bad if name in dict(model.named_parameters())]
        if weights:
            yield (
                f'{len(weights)} weights were not finite before this iteration (the first: {weights[0]}): the '
                'gradients of the step before were not'
            )
        inputs = tensors_in(self._batch)
        if not all_finite(inputs):
            yield 'the batch itself has values that are not finite'
        yield from self._first_bad_module(model, run)
        yield describe_norms(model)
        yield last_checkpoint(runner)

    def _first_bad_module(self, model: nn.Module, run: Any) -> Iterator[str]:
        if run is None:
            yield 'the model is compiled: run it without compile to find the first such module'
            return
        if is_sharded(model):
            yield 'not run again: its shards would wait for the other ranks; a run on one process finds the module'
            return
        if get_world_size() > 1 and any(waits_for_ranks(module) for module in model.modules()):
            yield 'not run again: its norms would wait for the other ranks; a run on one process finds the module'
            return
        if self._before is not None:
            self._before.put_back()
        found = first_non_finite(model, run)
        if found is None:
            yield 'the batch gives finite values when it is run again: the cause is a random part, or the loss'
            return
        yield str(found)
        layer = model.get_submodule(found.name)
        overflow = found.inputs is not None and not found.inputs.bad and found.outputs.dtype == 'float16'
        if overflow and isinstance(layer, _WSConv) and layer.gain is None:
            yield "  float16 ends at 65504: --amp bf16 does not, and gain='fan_in' in its conv_cfg keeps outputs small"


def losses_in(outputs: dict[str, Any]) -> dict[str, Tensor]:
    """Return the entries of a model's output, or of its log, that mmengine adds to the loss."""
    found = {name: tensors_in(value) for name, value in outputs.items() if 'loss' in name}
    return {f'{name}.{i}' if i else name: t for name, tensors in found.items() for i, t in enumerate(tensors)}


def told(losses: dict[str, Tensor]) -> str:
    """Return the losses that are not finite, such as 'loss_ce is nan'."""
    bad = [f'{name} is {float(t.detach().float().mean())}' for name, t in losses.items() if not all_finite([t])]
    return ', '.join(bad)


def scales_gradients(runner: Runner) -> bool:
    """Whether a gradient scaler skips steps whose gradients are not finite."""
    scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
    return scaler is not None and scaler.is_enabled()


def is_sharded(model: nn.Module) -> bool:
    """Whether this model's parameters are sharded over the ranks."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def waits_for_ranks(module: nn.Module) -> bool:
    """Whether a forward pass of this module takes part in a collective."""
    return isinstance(module, nn.SyncBatchNorm) or (
        isinstance(module, BatchChannelNorm) and module.statistics == 'sync'
    )


def sample_names(batch: Any) -> list[str]:
    """Return the files of a batch, each with its sample number if it has one."""
    samples = (batch.get('data_samples') if isinstance(batch, dict) else None) or []
    names = []
    for sample in samples:
        meta = getattr(sample, 'metainfo', {})
        name = next((str(meta[key]) for key in NAMES if key in meta), None)
        index = meta.get('sample_idx')
        names.append(' '.join(filter(None, [name, None if index is None else f'(sample {index})'])) or 'unnamed')
    return names


def last_checkpoint(runner: Runner) -> str:
    """Return one sentence that names the checkpoint to continue from."""
    pointer = Path(runner.work_dir) / 'last_checkpoint'
    if not pointer.is_file():
        return 'There is no checkpoint in its work_dir yet'
    return f'The last good checkpoint is {pointer.read_text().strip()}'
