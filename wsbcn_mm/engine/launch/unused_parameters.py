"""Find parameters that train and that no gradient reaches, before DistributedDataParallel waits for them in vain."""

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope

from ...microbatch.memory_plan import fake_tensors
from ..memory.plan import batch_of
from ..recipe.model import build_model, input_shape

SHOWN = 10


def unused_parameters(cfg: Config) -> list[str]:
    """Names of the parameters that require a gradient and receive none from a recipe's loss.

    One forward and backward pass of a model of its own, on tensors without memory: nothing of the run to come, its
    weights, running statistics, random numbers or order of samples, is touched.

    Args:
        cfg: A recipe of segmentation or video.

    Raises:
        ValueError: If the recipe does not say the size of its inputs.
    """
    shape = input_shape(cfg)
    with fake_tensors(), DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = revert_sync_batchnorm(build_model(cfg, 'cpu')).train()
        data = model.data_preprocessor(batch_of(shape), training=True)
        losses = model(**data, mode='loss')
        model.parse_losses(losses)[0].backward()
        return [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]


def refuse_unused_parameters(cfg: Config) -> None:
    """Stop a run of several processes whose second step would fail; call it before the Runner is built.

    Nothing is done where one process trains, or where the recipe lets the wrapper look for such parameters. A model
    that cannot run on tensors without values is left unchecked, which is said.

    Raises:
        ValueError: If there are any, with their names.
    """
    wrapper = cfg.get('model_wrapper_cfg') or {}
    allowed = cfg.get('find_unused_parameters') or wrapper.get('find_unused_parameters') or wrapper.get('static_graph')
    if cfg.get('launcher', 'none') == 'none' or allowed or 'DataParallel' not in wrapper.get('type', 'DataParallel'):
        return
    try:
        unused = unused_parameters(cfg)
    except Exception as error:  # whatever a user's model does not support must not stop its training
        if is_main_process():
            print_log(f'not checked for parameters without a gradient: {type(error).__name__}: {error}')
        return
    if unused:
        listed = ', '.join(unused[:SHOWN]) + (f' and {len(unused) - SHOWN} more' if len(unused) > SHOWN else '')
        raise ValueError(
            f'{len(unused)} parameters are trained, but the loss does not reach them: {listed}. '
            'DistributedDataParallel would wait for their gradients and stop in the second step. Take them out of the '
            'model, freeze them (requires_grad=False), or have them looked for in every step, which costs time: '
            '--cfg-options find_unused_parameters=True'
        )
