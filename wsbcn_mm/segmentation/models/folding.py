"""Convert a recipe and its model to a config and a checkpoint that mmseg runs without this package."""

import copy
import inspect
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from torch import Tensor, nn

from ...engine.recipe.tree import dicts_in
from ...engine.registration import CONVS
from ...layers import BatchChannelNorm
from ...surgery.fold import FoldReport, fold
from ..data.label_map import LABEL_LOADERS
from . import folded_segmentor
from .deployment import Network

HEADS = {'DeepLabV3Head': 'ASPPHead', 'DeepLabV3PlusHead': 'DepthwiseSeparableASPPHead'}
"""Heads of this package, and the heads of mmseg that have the same layers without `conv_cfg`."""

OWN_ARGUMENTS = {'bottleneck_kernel_size': 3, 'image_pool_norm': True}
"""Arguments that mmseg's heads lack, and the values that match mmseg's heads."""


def fold_for_mmseg(cfg: Config, model: nn.Module, meta: dict[str, Any], example: Tensor, folder: Path) -> FoldReport:
    """Write `folded.py` and `folded.pth` for `mmseg.apis.init_model`, and `folded_segmentor.py` if the config needs it.

    The config has the model and the test pipeline. Before anything is written, the model built from it is checked to
    give the outputs of `model`.

    Args:
        cfg: The recipe.
        model: Its trained model.
        meta: Metadata saved beside the weights; `dataset_meta` has classes and palette.
        example: Pixels (N, 3, H, W) from 0 to 255.
        folder: Folder for the files, created if missing.

    Raises:
        AssertionError: If the outputs differ.
        ValueError: If mmseg's layers cannot express the folded model.
    """
    network = Network(model).eval()
    folded, report = fold(network, example)
    if report.separate:
        name, reason = next(iter(report.separate.items()))
        raise ValueError(f'mmseg has no layer for BCN `{name}`, whose batch half cannot be folded: {reason}')
    config = folded_config(cfg, model, biased_convs=list(report.absorbed.values()))
    with DefaultScope.overwrite_default_scope('mmseg'):
        stock = MODELS.build(copy.deepcopy(config.model)).eval()
    copy_state(folded, Network(stock))
    with torch.no_grad():
        torch.testing.assert_close(Network(stock)(example), folded(example))

    folder.mkdir(parents=True, exist_ok=True)
    config.dump(folder / 'folded.py')
    meta = meta | {'folded': True, 'cfg': config.pretty_text}
    torch.save({'state_dict': stock.state_dict(), 'meta': meta}, folder / 'folded.pth')
    if 'custom_imports' in config:
        (folder / 'folded_segmentor.py').write_text(inspect.getsource(folded_segmentor))
    return report


def folded_config(cfg: Config, model: nn.Module, biased_convs: list[str]) -> Config:
    """Return the model and the test pipeline of a recipe in mmseg's own types, without the loading of labels.

    Raises:
        ValueError: For an argument that mmseg does not have.
    """
    pipeline = cfg.test_dataloader.dataset.pipeline
    config = Config(
        dict(
            default_scope='mmseg',
            model=copy.deepcopy(cfg.model.to_dict()),
            test_pipeline=[copy.deepcopy(step) for step in pipeline if step['type'] not in LABEL_LOADERS],
            visualizer=dict(type='SegLocalVisualizer'),
        )
    )
    # MMSegInferencer looks for the pipeline here, `inference_model` under `test_pipeline`.
    config.test_dataloader = dict(dataset=dict(pipeline=copy.deepcopy(config.test_pipeline)))
    config.model.update(auxiliary_head=None, train_cfg=None)
    for node in dicts_in(config.model):
        kind = node.get('type')
        if kind in CONVS:
            use_only(node, type=kind.removeprefix('WS'))
        elif kind == 'BCN':
            use_only(node, **group_norm_of(node))
        elif kind in HEADS:
            for name, stock in OWN_ARGUMENTS.items():
                if node.pop(name, stock) != stock:
                    raise ValueError(
                        f'mmseg has no {HEADS[kind]} with a {name} other than {stock}: use tools/export.py'
                    )
            node['type'] = HEADS[kind]
    if biased_convs:
        config.custom_imports = dict(imports=['folded_segmentor'], allow_failed_imports=False)
        config.model.update(type='FoldedEncoderDecoder', biased_convs=biased_convs)
    return config


def use_only(node: dict[str, Any], **values: Any) -> None:
    node.clear()
    node.update(values)


def group_norm_of(norm_cfg: dict[str, Any]) -> dict[str, Any]:
    """Return the norm_cfg of the GroupNorm that remains of a folded BCN.

    Raises:
        ValueError: If the number of groups depends on the width (`channels_per_group`).
    """
    if norm_cfg.get('channels_per_group') is not None:
        raise ValueError("norm_cfg with channels_per_group has no counterpart in mmseg's GN: use tools/export.py")
    defaults = inspect.signature(BatchChannelNorm).parameters
    return dict(type='GN') | {name: norm_cfg.get(name, defaults[name].default) for name in ('num_groups', 'eps')}


def copy_state(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and buffers by the order of the layers, since mmseg names a folded norm differently.

    Raises:
        ValueError: If the layers do not match.
    """
    pairs = zip(source.state_dict().items(), target.state_dict().items(), strict=True)
    for (old_name, old), (new_name, new) in pairs:
        if old_name.rpartition('.')[2] != new_name.rpartition('.')[2] or old.shape != new.shape:
            raise ValueError(
                f'{old_name} {tuple(old.shape)} of the folded model does not fit {new_name} {tuple(new.shape)}'
            )
        new.copy_(old)
