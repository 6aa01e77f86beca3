"""From a recipe to a Runner at work: `train` and `evaluate`, each one list of steps in the order that they need."""

# ruff: noqa: E402 - the environment is judged before anything of mmengine is imported
from .environment import require_openmmlab

require_openmmlab()

from collections.abc import Callable, Sequence

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from . import hooks as _hooks  # noqa: F401 - registers what recipes and guards name
from .data.label_pairs import check_label_pairs
from .launch.launch import prepare_launch
from .launch.unused_parameters import refuse_unused_parameters
from .memory.out_of_memory import explaining_out_of_memory
from .recipe.batch_plan import world_size
from .recipe.checks import check_recipe
from .recipe.hooks import add_guards, save_pictures
from .recipe.load import changes_of, load_checkpoint_into, load_recipe, resume_from
from .recipe.norms import check_layer_configs, switch_norm
from .recipe.precision import use_amp
from .recipe.task import require_segmentation
from .recipe.tree import drop_pretrained
from .resume.batch import plan_batch_as_before
from .resume.seeded_samples import seed_samples

__all__ = ['evaluate', 'is_main_process', 'require_segmentation', 'train']


def train(
    recipe: str | Config,
    *,
    options: Sequence[str] | None = None,
    work_dir: str | None = None,
    norm: str | None = None,
    norm_groups: int | None = None,
    resume: str | None = None,
    from_scratch: bool = False,
    amp: str | None = None,
    launcher: str = 'auto',
    local_rank: int | None = None,
    global_batch: int | None = None,
    per_device: int | None = None,
    print_config: bool = False,
    hooks: Sequence[Hook] = (),
) -> None:
    """Train a recipe.

    Every step before the Runner changes the config or rejects it, so nothing is lost to a mistake in a recipe. What the
    steps changed is printed.

    Args:
        recipe: File of a recipe or of any mmengine config, or a config in memory.
        options: 'KEY=VALUE' changes of the file.
        work_dir: Folder of logs and checkpoints; by default work_dirs/<recipe name>, with the norm if it is switched.
        norm: Norm to train with in place of the recipe's, such as 'gn-ws'.
        norm_groups: Number of groups of that norm.
        resume: Checkpoint to continue from, or 'auto' for the last one in `work_dir`.
        from_scratch: Start from random weights in place of pretrained ones.
        amp: 'bf16', 'fp16', or 'best' for the faster of them on this device.
        launcher: 'none', 'pytorch', 'slurm', or 'auto' to read it from the environment.
        local_rank: Local rank of this process where LOCAL_RANK is not set.
        global_batch: Samples per optimizer step over all devices.
        per_device: Samples per forward pass on each device.
        print_config: Print the resolved config and its changes, and do not train.
        hooks: Hooks to register in addition to those of the recipe.

    Raises:
        FileNotFoundError: If the recipe, a checkpoint or pretrained weights do not exist.
        ValueError: If the recipe or an argument contradicts another, before the Runner is built.
    """
    cfg = recipe if isinstance(recipe, Config) else load_recipe(recipe, work_dir=work_dir, options=options)
    check_layer_configs(cfg)
    changes = []
    if norm:
        changes += switch_norm(cfg, norm, num_groups=norm_groups)
        if not work_dir:
            cfg.work_dir += f'_{norm}'
    resume_from(cfg, resume)
    if from_scratch:
        drop_pretrained(cfg)
    if amp:
        changes += use_amp(cfg, None if amp == 'best' else amp)
    check_recipe(cfg)
    changes += add_guards(cfg)
    prepare_launch(cfg, launcher, local_rank=local_rank)
    changes += plan_batch_as_before(cfg, world_size(cfg), global_batch=global_batch, per_device=per_device)
    seed_samples(cfg)
    print_once(changes)
    if print_config:
        print_once([cfg.pretty_text, changes_of(cfg, str(cfg.filename))])
        return
    check_label_pairs(cfg)
    refuse_unused_parameters(cfg)
    with explaining_out_of_memory(cfg, str(cfg.filename)):
        runner = Runner.from_cfg(cfg)
        for hook in hooks:
            runner.register_hook(hook)
        runner.train()


def evaluate(
    recipe: str | Config,
    checkpoint: str,
    *,
    options: Sequence[str] | None = None,
    work_dir: str | None = None,
    change: Callable[[Config], None] | None = None,
    show_dir: str | None = None,
    show_max: int = 20,
    launcher: str = 'auto',
    local_rank: int | None = None,
) -> tuple[dict[str, float], Config]:
    """Evaluate a checkpoint on the test data of its recipe.

    Args:
        recipe: File of a recipe or of any mmengine config, or a config in memory.
        checkpoint: Checkpoint file; it must have every weight of the model.
        options: 'KEY=VALUE' changes of the file.
        work_dir: Folder of logs and metrics; by default work_dirs/<recipe name>.
        change: Function that changes the config before the Runner is built, as test-time augmentation does.
        show_dir: Folder for pictures of predictions beside the truth.
        show_max: Number of pictures.
        launcher: 'none', 'pytorch', 'slurm', or 'auto' to read it from the environment.
        local_rank: Local rank of this process where LOCAL_RANK is not set.

    Returns:
        Metrics by name, the same on every process, and the config as it ran.

    Raises:
        FileNotFoundError: If the recipe or the checkpoint does not exist.
        ValueError: If the checkpoint is one of another norm or class list.
    """
    cfg = recipe if isinstance(recipe, Config) else load_recipe(recipe, work_dir=work_dir, options=options)
    load_checkpoint_into(cfg, checkpoint)
    if change is not None:
        change(cfg)
    if show_dir:
        save_pictures(cfg, show_dir, show_max)
    added = add_guards(cfg)
    prepare_launch(cfg, launcher, local_rank=local_rank)
    print_once(added)
    check_label_pairs(cfg, ('test_dataloader',))
    runner = Runner.from_cfg(cfg)
    # The data come first, since the guards compare the checkpoint with them. Strict, since the Runner itself only warns
    # of weights that the checkpoint lacks and evaluates random ones.
    _ = runner.test_dataloader
    runner.load_checkpoint(checkpoint, strict=True)
    with explaining_out_of_memory(cfg, str(cfg.filename)):
        return runner.test(), cfg


def print_once(lines: Sequence[str]) -> None:
    """Print lines on the first of the processes that train together."""
    if lines and is_main_process():
        print('\n'.join(lines))
