"""Reject, before the first iteration, a model whose norms are undefined at its batch size."""

import warnings
from collections.abc import Iterator

from mmcv.cnn import ConvModule
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from ...engine.runner import unwrapped_model
from ...layers import BatchChannelNorm

FEWEST_CHANNELS_PER_GROUP = 8


@HOOKS.register_module()
class NormCheckHook(Hook):
    """Run `check_norms` before training, with the smallest batch and the number of devices of the run."""

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        model = unwrapped_model(runner)
        check_norms(model, smallest_batch(runner.train_dataloader), runner.world_size)


def check_norms(model: nn.Module, samples_per_device: int, world_size: int = 1) -> None:
    """Check the norms on 1x1 maps after global pooling, and that a norm follows every standardised convolution.

    Args:
        model: The model to train; global pooling is an `nn.Sequential` that begins with `AdaptiveAvgPool2d(1)`.
        samples_per_device: Smallest batch of one device.
        world_size: Number of devices; norms with synchronised statistics see the samples of all of them.

    Raises:
        ValueError: For batch statistics of a single value, for groups of a single channel on a 1x1 map, and for a
            Weight Standardization convolution without a norm.
    """
    for name, module in model.named_modules():
        if isinstance(module, ConvModule) and hasattr(module.conv, 'standardized_weight') and not module.with_norm:
            raise ValueError(
                f'convolution `{name}.conv` is a {type(module.conv).__name__} without a norm after it: its output '
                'would be about sqrt(fan-in) times too large. Give it a norm_cfg or leave out its conv_cfg'
            )
    for name, norm in norms_at_1x1(model):
        _check_norm_at_1x1(name, norm, samples_per_device, world_size)


def norms_at_1x1(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield names and modules of the norms after global average pooling."""
    kinds = (_BatchNorm, nn.GroupNorm, BatchChannelNorm)
    for name, branch in model.named_modules():
        if isinstance(branch, nn.Sequential) and len(branch) and _pools_to_1x1(branch[0]):
            for inner, module in branch.named_modules(prefix=name):
                if isinstance(module, kinds):
                    yield inner, module


def smallest_batch(loader: DataLoader) -> int:
    """Return the number of samples in the smallest batch of `loader`: the last one, if it is partial and kept."""
    batches = loader.batch_sampler
    if batches.drop_last or isinstance(batches.sampler, InfiniteSampler):
        return batches.batch_size
    return len(batches.sampler) % batches.batch_size or batches.batch_size


def _pools_to_1x1(module: nn.Module) -> bool:
    return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))


def _check_norm_at_1x1(name: str, norm: nn.Module, samples_per_device: int, world_size: int) -> None:
    statistics = getattr(norm, 'statistics', 'batch' if isinstance(norm, _BatchNorm) else None)
    synchronised = statistics == 'sync' or isinstance(norm, nn.SyncBatchNorm)
    batch = samples_per_device * world_size if synchronised else samples_per_device
    if statistics in ('batch', 'sync') and batch == 1:
        raise ValueError(
            f'norm `{name}` sees a 1x1 map at batch 1: BatchNorm is undefined there. '
            f"Use type='BCN' or 'GN' with >={FEWEST_CHANNELS_PER_GROUP} channels per group, or leave the image pooling "
            'branch without a norm (image_pool_norm=False in the decode head)'
        )
    if isinstance(norm, _BatchNorm):
        return
    channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    per_group = channels // norm.num_groups
    if per_group == 1:
        raise ValueError(
            f'norm `{name}` sees a 1x1 map with 1 channel per group: every output is its bias there. '
            f'Use >={FEWEST_CHANNELS_PER_GROUP} channels per group, or leave the image pooling branch without a norm '
            '(image_pool_norm=False in the decode head)'
        )
    if per_group < FEWEST_CHANNELS_PER_GROUP:
        warnings.warn(
            f'norm `{name}` sees a 1x1 map with {per_group} channels per group: '
            f'fewer than {FEWEST_CHANNELS_PER_GROUP} leave little of the signal',
            stacklevel=2,
        )
