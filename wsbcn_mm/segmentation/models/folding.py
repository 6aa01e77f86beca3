"""Turn a recipe and its model into a config and a checkpoint for mmseg without this package."""

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
"""Heads of this package, and those of mmseg that have the same layers once `conv_cfg` is gone."""

OWN_ARGUMENTS = {'bottleneck_kernel_size': 3, 'image_pool_norm': True}
"""Arguments that mmseg's heads lack, and the values that are as theirs."""


def fold_for_mmseg(cfg: Config, model: nn.Module, meta: dict[str, Any], example: Tensor, folder: Path) -> FoldReport:
    """Write `folded.py` and `folded.pth` for `mmseg.apis.init_model`, and `folded_segmentor.py` if the config needs it.

    The config has the model and the test pipeline. What was built from it answers as `model` does, or nothing is
    written.

    Args:
        cfg: The recipe.
        model: Its model, trained.
        meta: What is saved beside the weights; `dataset_meta` has classes and palette.
        example: Pixels (N, 3, H, W) from 0 to 255.
        folder: Where the files go.

    Raises:
        ValueError: If mmseg's layers cannot express the folded model.
    """
    network = Network(model).eval()
    folded, report = fold(network, example)
    if report.separate:
        name, reason = next(iter(report.separate.items()))
        raise ValueError(f'mmseg has no layer for BCN `{name}`, which keeps its batch half: {reason}')
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
    """Model and test pipeline of a recipe, without the labels that inference has not, in mmseg's own types.

    Raises:
        ValueError: For an argument or a type that mmseg does not have.
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
                        f'mmseg has no {HEADS[kind]} with another {name} than {stock}: use tools/export.py'
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
    """norm_cfg of the GroupNorm that is left of a BCN.

    Raises:
        ValueError: For a number of groups that depends on the width.
    """
    if norm_cfg.get('channels_per_group') is not None:
        raise ValueError("norm_cfg with channels_per_group has no counterpart in mmseg's GN: use tools/export.py")
    defaults = inspect.signature(BatchChannelNorm).parameters
    return dict(type='GN') | {name: norm_cfg.get(name, defaults[name].default) for name in ('num_groups', 'eps')}


def copy_state(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and buffers in the order of their layers, since a folded norm goes by another name in mmseg.

    Raises:
        ValueError: If the layers do not match.
    """
    pairs = zip(source.state_dict().items(), target.state_dict().items(), strict=True)
    for (old_name, old), (new_name, new) in pairs:
        if old_name.rpartition('.')[2] != new_name.rpartition('.')[2] or old.shape != new.shape:
            raise ValueError(f'{old_name} {tuple(old.shape)} of the folded model meets {new_name} {tuple(new.shape)}')
        new.copy_(old)
