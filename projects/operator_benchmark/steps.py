"""Training steps of the recipes' models at batch 1."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

import wsbcn_mm.segmentation
import wsbcn_mm.video  # noqa: F401
from wsbcn_mm.engine.recipe.norms import switch_norm
from wsbcn_mm.engine.recipe.tree import dicts_in
from wsbcn_mm.layers import standardize_once
from wsbcn_mm.microbatch.activation_memory import set_activation_memory
from wsbcn_mm.microbatch.step_statistics import StepStatistics
from wsbcn_mm.video.data.samples import ClipDataSample

CONFIGS = Path(__file__).parents[2] / 'configs'


@dataclass(frozen=True)
class Source:
    """A model.

    Attributes:
        recipe: Recipe of the model.
        norm: Norm to switch the recipe to; '' for its own.
        instead: Types of layers to replace, such as (('WSConv2d', 'ConvWS'),).
        activation_memory: As in `set_activation_memory`.
    """

    recipe: str
    norm: str = ''
    instead: tuple[tuple[str, str], ...] = ()
    activation_memory: str = 'all'


@dataclass(frozen=True)
class StepCase:
    """A model and an input.

    Attributes:
        name: Model and input, for people.
        task: 'segmentation', 'video' or 'classification' (the backbone of a segmentation recipe before 1000 classes).
        size: (H, W) or (T, H, W) of the sample.
        sources: Side -> model.
        accumulation: Forward and backward passes of one optimizer step.
    """

    name: str
    task: str
    size: tuple[int, ...]
    sources: dict[str, Source]
    accumulation: int = 1


SEGMENTATION = 'deeplabv3/deeplabv3_r50-d8_{}_1xb1-acc8-80k_cityscapes-512x1024'
VIDEO = 'resnet3d/r3d-50_{}_1xb1-acc64-188k_kinetics400-16x4x1-112x112'
TINY_SEGMENTATION = 'tiny/deeplabv3_r18-tiny_{}_1xb1-acc1-2.4k_digits-64x64'
TINY_VIDEO = 'tiny/r3d-18-tiny_{}_1xb1-acc1-2.4k_motion-8x40x40'
MMCV_WS = (('WSConv2d', 'ConvWS'),)

IN_2D = {
    'bn': Source(SEGMENTATION.format('gn-ws'), norm='bn'),
    'gn': Source(SEGMENTATION.format('gn-ws'), norm='gn'),
    'gn-ws': Source(SEGMENTATION.format('gn-ws')),
    'gn-ws-mmcv': Source(SEGMENTATION.format('gn-ws'), instead=MMCV_WS),
    'bcn-ws': Source(SEGMENTATION.format('bcn-ws')),
    'bcn-ws-save-conv': Source(SEGMENTATION.format('bcn-ws'), activation_memory='save_conv'),
}
IN_3D = {
    'bn': Source(VIDEO.format('gn-ws'), norm='bn'),
    'gn': Source(VIDEO.format('gn-ws'), norm='gn'),
    'gn-ws': Source(VIDEO.format('gn-ws')),
    'bcn-ws': Source(VIDEO.format('bcn-ws')),
    'bcn-ws-save-conv': Source(VIDEO.format('bcn-ws'), activation_memory='save_conv'),
}
CASES = (
    StepCase('DeepLabV3-R50 512x512', 'segmentation', (512, 512), IN_2D),
    StepCase('ResNet-50 224x224', 'classification', (224, 224), IN_2D),
    StepCase('R3D-50 16x112x112', 'video', (16, 112, 112), IN_3D),
    StepCase(
        '8 accumulated, ResNet-50 224x224',
        'classification',
        (224, 224),
        {side: IN_2D[side] for side in ('bn', 'gn', 'gn-ws', 'gn-ws-mmcv', 'bcn-ws')},
        accumulation=8,
    ),
)
QUICK_CASES = (
    StepCase(
        'tiny DeepLabV3 64x64',
        'segmentation',
        (64, 64),
        {norm: Source(TINY_SEGMENTATION.format(norm)) for norm in ('bn', 'gn', 'gn-ws', 'bcn-ws')},
    ),
    StepCase(
        '2 accumulated, tiny R3D 4x24x24',
        'video',
        (4, 24, 24),
        {
            'bn': Source(TINY_VIDEO.format('bn')),
            'bcn-ws': Source(TINY_VIDEO.format('bcn-ws')),
            'bcn-ws-save-conv': Source(TINY_VIDEO.format('bcn-ws'), activation_memory='save_conv'),
        },
        accumulation=2,
    ),
)


def model_config(source: Source) -> ConfigDict:
    """Return the model config of a recipe, without pretrained weights."""
    recipe = Config.fromfile(CONFIGS / f'{source.recipe}.py')
    if source.norm:
        switch_norm(recipe, source.norm, CONFIGS / '_base_' / 'norms')
    cfg = recipe.model
    if source.norm == 'bn' and 'decode_head' in cfg:
        cfg.decode_head.image_pool_norm = False  # BN of one image is undefined there
    replacements = dict(source.instead)
    for node in dicts_in(cfg):
        if node.get('type') in replacements:
            node['type'] = replacements[node['type']]
    cfg.backbone.init_cfg = None
    return cfg


class Classifier(nn.Module):
    """A backbone, global average pooling, a linear layer."""

    def __init__(self, backbone: nn.Module, channels: int = 2048, num_classes: int = 1000) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of images (N, 3, H, W) with labels (N,)."""
        return F.cross_entropy(self.fc(self.backbone(x)[-1].mean((2, 3))), labels)


def build(
    case: StepCase, side: str, device: torch.device, dtype: torch.dtype, layout: str
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return a model in training mode and its loss on one random sample that is on the device."""
    torch.manual_seed(0)
    cfg = model_config(case.sources[side])
    if case.task == 'segmentation':
        model, loss = segmentor(cfg, case.size)
    elif case.task == 'classification':
        model, loss = classifier(cfg, case.size)
    else:
        model, loss = recognizer(cfg, case.size)
    if layout == 'channels_last':
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                module.to(memory_format=torch.channels_last if module.weight.ndim == 4 else torch.channels_last_3d)
    set_activation_memory(model, case.sources[side].activation_memory)
    return model.to(device).train(), in_precision(loss(device), dtype, device)


def in_precision(loss: Callable[[], Tensor], dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """Return the loss under autocast, or unchanged for float32."""

    def under_autocast() -> Tensor:
        with torch.autocast(device.type, dtype):
            return loss()

    return loss if dtype == torch.float32 else under_autocast


Loss = Callable[[torch.device], Callable[[], Tensor]]


def segmentor(cfg: ConfigDict, size: tuple[int, ...]) -> tuple[nn.Module, Loss]:
    init_default_scope('mmseg')
    from mmseg.registry import MODELS as SEGMENTORS

    cfg.data_preprocessor.size = size
    model = SEGMENTORS.build(cfg)
    label = torch.randint(0, cfg.decode_head.num_classes, (1, *size))
    sample = SegDataSample(gt_sem_seg=PixelData(data=label))
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)

    def loss(device: torch.device) -> Callable[[], Tensor]:
        batch = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), training=True)
        return lambda: model.parse_losses(model(**batch, mode='loss'))[0]

    return model, loss


def recognizer(cfg: ConfigDict, size: tuple[int, ...]) -> tuple[nn.Module, Loss]:
    init_default_scope('mmengine')
    model = MODELS.build(cfg)
    clip = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    sample = ClipDataSample(gt_label=torch.tensor(1))

    def loss(device: torch.device) -> Callable[[], Tensor]:
        batch = model.data_preprocessor(dict(inputs=[clip], data_samples=[sample]), training=True)
        return lambda: model.parse_losses(model(**batch, mode='loss'))[0]

    return model, loss


def classifier(cfg: ConfigDict, size: tuple[int, ...]) -> tuple[nn.Module, Loss]:
    init_default_scope('mmseg')
    from mmseg.registry import MODELS as SEGMENTORS

    model = Classifier(SEGMENTORS.build(cfg.backbone | dict(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1))))
    image = torch.randn(1, 3, *size)

    def loss(device: torch.device) -> Callable[[], Tensor]:
        x, labels = image.to(device), torch.tensor([1], device=device)
        return lambda: model(x, labels)

    return model, loss


def training_step(model: nn.Module, loss: Callable[[], Tensor], accumulation: int = 1) -> Callable[[], Tensor]:
    """Return forward, backward, SGD with momentum, and the commit of BCN's statistics.

    The learning rate is small, so that the weights hardly change while the step is repeated. Accumulating steps
    standardise each weight once, as in the recipes.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, weight_decay=1e-4)
    statistics = StepStatistics(model)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with standardize_once(model) if accumulation > 1 else nullcontext():
            for _ in range(accumulation):
                value = loss()
                (value / accumulation).backward()
        optimizer.step()
        statistics.commit()
        return value.detach()

    return step


def in_cuda_graph(step: Callable[[], object], warmup: int = 3) -> Callable[[], object]:
    """Return the replay of a CUDA graph of the step."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmup):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
