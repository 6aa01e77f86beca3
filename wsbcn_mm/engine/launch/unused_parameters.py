"""Find trainable parameters that receive no gradient, before DistributedDataParallel waits for them."""

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope

from ...microbatch.memory_plan import fake_tensors
from ..memory.plan import batch_of
from ..recipe.model import build_model, input_shape

SHOWN = 10
"""Number of parameters that the error names."""


def refuse_unused_parameters(cfg: Config) -> None:
    """Reject a run of several processes whose second step would fail. Call before the Runner is built.

    Runs of one process, and recipes whose wrapper looks for unused parameters, are not checked. If a model cannot run
    on tensors without values, a log line says that it was not checked.

    Raises:
        ValueError: If any trainable parameter receives no gradient, with the names.
    """
    wrapper = cfg.get('model_wrapper_cfg') or {}
    allowed = cfg.get('find_unused_parameters') or wrapper.get('find_unused_parameters') or wrapper.get('static_graph')
    if cfg.get('launcher', 'none') == 'none' or allowed or 'DataParallel' not in wrapper.get('type', 'DataParallel'):
        return
    try:
        unused = unused_parameters(cfg)
    except Exception as error:  # a check that a model does not support must not stop its training
        if is_main_process():
            print_log(f'the model was not checked for parameters without a gradient: {type(error).__name__}: {error}')
        return
    if unused:
        listed = ', '.join(unused[:SHOWN]) + (f' and {len(unused) - SHOWN} more' if len(unused) > SHOWN else '')
        raise ValueError(
            f'{len(unused)} trainable parameters receive no gradient from the loss: {listed}. DistributedDataParallel '
            'would wait for their gradients and stop in the second step. Remove them from the model, freeze them '
            '(requires_grad=False), or let each step search for them, which costs time: --cfg-options '
            'find_unused_parameters=True'
        )


def unused_parameters(cfg: Config) -> list[str]:
    """Return the names of the parameters that require a gradient and receive none from a recipe's loss.

    This runs one forward and backward pass of a separate model, on tensors without memory. It does not touch the
    weights, running statistics, random numbers or order of samples of the run to come.

    Args:
        cfg: A recipe of segmentation or video.

    Raises:
        ValueError: If the recipe does not give the size of its inputs.
    """
    shape = input_shape(cfg)
    with fake_tensors(), DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = revert_sync_batchnorm(build_model(cfg, 'cpu')).train()
        data = model.data_preprocessor(batch_of(shape), training=True)
        losses = model(**data, mode='loss')
        model.parse_losses(losses)[0].backward()
        return [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
