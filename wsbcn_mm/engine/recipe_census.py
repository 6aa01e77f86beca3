"""The census of a recipe's model, before anything is trained."""

from collections.abc import Sequence

from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint

from ..surgery.census import Census, census
from ..surgery.trace import trace
from .config_tree import hooks_in
from .recipe_model import build_model, input_shape, run_all_parts

STEPWISE_HOOK = 'StepStatisticsHook'


def census_of_recipe(
    cfg: Config, checkpoint: str | None = None, *, shape: Sequence[int] | None = None, devices: int = 1
) -> tuple[Census, tuple[int, ...]]:
    """Build a recipe's model, run it once and take its census; returns it with the shape of the input.

    Args:
        cfg: A recipe.
        checkpoint: File whose weights and statistics the model shall have, all of them; without it nothing is computed.
        shape: Of the input; by default the recipe's, with its batch per device.
        devices: Processes that train together.
    """
    shape = tuple(shape or input_shape(cfg))
    model = build_model(cfg)
    seen = trace(model, run_all_parts(model, shape))
    if checkpoint is not None:
        model = build_model(cfg, 'cpu')
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    wrapper = cfg.get('optim_wrapper') or {}
    param_groups = []
    if wrapper:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            param_groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    return census(
        model,
        seen,
        param_groups=param_groups,
        accumulation=wrapper.get('accumulative_counts', 1),
        ranks=devices,
        stepwise=any(hook.get('type') == STEPWISE_HOOK for hook in hooks_in(cfg)),
    ), shape
