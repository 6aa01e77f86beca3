"""Checkpoints with the names and shapes of other projects and random weights, for the importer's tests."""

import re

import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]


def randomize_(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Randomise weights and statistics, so that no two layers can be confused."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith('num_batches_tracked'):
            tensor.fill_(7)
        elif name.endswith('running_var') or (tensor.ndim == 1 and name.endswith('weight')):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.ndim == 1:
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
        else:
            scale = (2 / tensor[0].numel()) ** 0.5
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator) + 0.1 * scale)
    return model


def authors_bcn(state: State, *, child: str = 'pbn') -> State:
    """A ResNet with BCN (mmseg's names) as the BCN authors' code saves it: a nested batch half, (1, G, 1) affine."""
    theirs = {}
    for key, tensor in state.items():
        layer, _, entry = key.rpartition('.')
        if entry in ('group_weight', 'group_bias'):
            theirs[f'module.{layer}.{entry.removeprefix("group_")}'] = tensor.view(1, -1, 1)
        elif f'{layer}.group_weight' in state:
            theirs[f'module.{layer}.{child}.{entry}'] = tensor
        else:
            theirs[f'module.{key}'] = tensor
    return theirs


def authors_aspp(state: State) -> State:
    """The ASPP of the authors' DeepLabV3 from mmseg's: other names, and the pooled branch concatenated last."""
    theirs = {}
    pooled = state['decode_head.image_pool.1.conv.weight'].shape[0]
    for key, tensor in state.items():
        name = re.sub(r'^decode_head\.aspp_modules\.(\d)\.conv', lambda m: f'aspp.aspp{int(m[1]) + 1}', key)
        name = re.sub(r'^decode_head\.aspp_modules\.(\d)\.bn', lambda m: f'aspp.aspp{int(m[1]) + 1}_bn', name)
        name = re.sub(r'^decode_head\.image_pool\.1\.conv', 'aspp.aspp5', name)
        name = re.sub(r'^decode_head\.image_pool\.1\.bn', 'aspp.aspp5_bn', name)
        name = re.sub(r'^decode_head\.bottleneck\.conv', 'aspp.conv2', name)
        name = re.sub(r'^decode_head\.bottleneck\.bn', 'aspp.bn2', name)
        name = re.sub(r'^decode_head\.conv_seg', 'aspp.conv3', name)
        theirs[name.removeprefix('backbone.')] = tensor.roll(-pooled, 1) if name == 'aspp.conv2.weight' else tensor
    return theirs


def deep_stem_of_timm(state: State) -> State:
    """mmseg's ResNetV1c by the names of timm's ResNet-C."""
    theirs = {}
    for key, tensor in state.items():
        name = re.sub(r'^stem\.7\.', 'bn1.', key)
        theirs[re.sub(r'^stem\.(\d)\.', r'conv1.\1.', name)] = tensor
    return theirs


def mmaction2_recognizer(state: State, num_classes: int = 5) -> State:
    """One of our backbones inside a recognizer of mmaction2."""
    width = next(reversed([t for t in state.values() if t.ndim == 5])).shape[0]
    head = {'cls_head.fc_cls.weight': torch.randn(num_classes, width), 'cls_head.fc_cls.bias': torch.randn(num_classes)}
    return {f'backbone.{key}': tensor for key, tensor in state.items()} | head


def bit_arrays(widths: tuple[int, ...] = (4, 8), blocks: int = 2, num_classes: int = 3) -> dict[str, np.ndarray]:
    """A small BiT file: HWIO filters, three per unit, each after its norm."""
    random = np.random.default_rng(0)

    def filters(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    arrays = {'resnet/root_block/standardized_conv2d/kernel': filters(7, 7, 3, widths[0])}
    channels = widths[0]
    for i, width in enumerate(widths, 1):
        for j in range(1, blocks + 1):
            unit = f'resnet/block{i}/unit{j:02d}'
            shapes = dict(a=(1, channels, width), b=(3, width, width), c=(1, width, 4 * width))
            for letter, (size, inputs, outputs) in shapes.items():
                arrays[f'{unit}/{letter}/group_norm/gamma'] = filters(inputs)
                arrays[f'{unit}/{letter}/group_norm/beta'] = filters(inputs)
                arrays[f'{unit}/{letter}/standardized_conv2d/kernel'] = filters(size, size, inputs, outputs)
            if j == 1:
                arrays[f'{unit}/a/proj/standardized_conv2d/kernel'] = filters(1, 1, channels, 4 * width)
            channels = 4 * width
    arrays['resnet/group_norm/gamma'], arrays['resnet/group_norm/beta'] = filters(channels), filters(channels)
    arrays['resnet/head/conv2d/kernel'] = filters(1, 1, channels, num_classes)
    arrays['resnet/head/conv2d/bias'] = filters(num_classes)
    return arrays
