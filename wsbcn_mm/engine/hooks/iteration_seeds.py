"""The model's random numbers as a function of seed, iteration and rank."""

from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..random_numbers import MODEL, seed_all, seed_of


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seed Python's, numpy's and torch's generators, on GPUs too, before every training iteration.

    Dropout and the like then draw the same numbers in an iteration whatever came before it: validation, another number
    of loader workers, or a kill and `--resume`. So checkpoints need not hold the generators' states. Ranks draw
    different numbers.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        seed_all(seed_of(MODEL, runner.seed, runner.iter, get_rank()))
