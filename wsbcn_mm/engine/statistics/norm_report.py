"""Report at the start of training which norms the config built, and reject models that would train wrongly."""

from collections.abc import Iterator
from functools import partial

from mmengine.hooks import Hook
from mmengine.model.utils import _BatchNormXd
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ...layers import BatchChannelNorm
from ...layers.batch_channel_norm import has_zeroed_batch_half
from ...surgery.census import census, summary
from ...surgery.kinds import count_convs, count_norms, unknown_statistics
from ...surgery.trace import Trace, trace_next_forward
from ..runner import effective_batch, unwrapped_model


@HOOKS.register_module()
class NormReportHook(Hook):
    """Log convolutions, norms and the effective batch before training, and the census of the first forward pass.

    The census lists which norms follow convolutions, how many values their statistics rest on, and what was left out
    and why; `tools/census.py` shows it layer by layer. Models with compiled parts are not traced.

    Raises:
        ValueError: If a module keeps running statistics that no rule of this package covers; if a BatchChannelNorm
            starts with a zero `weight`, is not frozen by a host's `norm_eval`, or is evaluated before its first batch.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        model = unwrapped_model(runner)
        runner.logger.info(describe_layers(model))
        runner.logger.info(describe_batch(runner))
        reverted = sum(isinstance(module, _BatchNormXd) for module in model.modules())
        if reverted:
            runner.logger.info(f'{reverted} SyncBN layers became BN: a single process has only its own batch')
        check_model(model)
        if not (runner.cfg.get('compile') or has_compiled_parts(model)):
            trace_next_forward(model, partial(log_census, runner))

    def before_val(self, runner: Runner) -> None:
        self._check_statistics(runner)

    def before_test(self, runner: Runner) -> None:
        self._check_statistics(runner)

    def _check_statistics(self, runner: Runner) -> None:
        model = unwrapped_model(runner)
        empty = [
            name
            for name, module in model.named_modules()
            if isinstance(module, BatchChannelNorm) and module.rate > 0 and at_start(module)
        ]
        if empty:
            raise ValueError(
                f'{len(empty)} BCN layers (the first: {empty[0]}) have never updated their statistics: evaluation '
                'would normalise with the 0/1 start; load a trained checkpoint'
            )


def at_start(norm: BatchChannelNorm) -> bool:
    """Whether the running statistics are still 0 and 1; a loaded checkpoint may lack `num_batches_tracked`."""
    return not (int(norm.num_batches_tracked) or norm.running_mean.any() or (norm.running_var != 1).any())


def has_compiled_parts(model: nn.Module) -> bool:
    """Whether a module of the model is compiled; hooks on its layers would trigger a recompilation."""
    return any(module._compiled_call_impl is not None or hasattr(module, '_orig_mod') for module in model.modules())


def describe_layers(model: nn.Module) -> str:
    """Return one line: convolutions and norms by kind, and the number of trainable parameters."""
    convs, norms = count_convs(model), count_norms(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return (
        f'convs: {", ".join(f"{n} {kind}" for kind, n in sorted(convs.items())) or "none"}; '
        f'norms: {", ".join(f"{n} {kind}" for kind, n in sorted(norms.items())) or "none"}; '
        f'{trainable / 1e6:.2f} M trainable parameters'
    )


def describe_batch(runner: Runner) -> str:
    """Return one line: how many samples an optimizer step sees."""
    return f'effective batch {effective_batch(runner)}'


def log_census(runner: Runner, seen: Trace) -> None:
    """Log the summary of the census of a training forward."""
    batch = effective_batch(runner)
    found = census(
        unwrapped_model(runner),
        seen,
        param_groups=runner.optim_wrapper.param_groups,
        accumulation=batch.accumulation,
        ranks=batch.devices,
    )
    for line in summary(found):
        runner.logger.info(line)


def check_model(model: nn.Module) -> None:
    """Raise ValueError for layers that would silently train wrongly."""
    unknown = unknown_statistics(model)
    if unknown:
        raise ValueError(
            f'{len(unknown)} modules keep running statistics and are of no known kind of norm (the first: '
            f'{unknown[0]}): weight decay, freezing and synchronisation would miss them'
        )
    zeroed = [name for name, module in model.named_modules() if has_zeroed_batch_half(module)]
    if zeroed:
        raise ValueError(
            f'{len(zeroed)} BCN layers (the first: {zeroed[0]}) start with weight 0, so that their channel half '
            'divides by sqrt(eps): set zero_init_residual=False, or zero group_weight '
            '(wsbcn_mm.layers.zero_init_last_norm_)'
        )
    missed = list(unfrozen_by_norm_eval(model))
    if missed:
        raise ValueError(
            f'norm_eval=True does not reach {len(missed)} BCN layers (the first: {missed[0]}), whose statistics would '
            'keep moving: set rate=0 in their norm_cfg to freeze them'
        )


def unfrozen_by_norm_eval(model: nn.Module) -> Iterator[str]:
    """Yield names of BCN layers that a host with `norm_eval`, which only knows BatchNorm, leaves in training mode."""
    for prefix, host in model.named_modules():
        if getattr(host, 'norm_eval', False) and host.training:
            host.train()
            for name, norm in host.named_modules(prefix=prefix):
                if isinstance(norm, BatchChannelNorm) and norm.training and norm.rate > 0:
                    yield name
