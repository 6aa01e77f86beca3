"""tools/convert_checkpoint.py on files of other projects' naming, and training from what it wrote."""

import re
import runpy
import sys

import numpy as np
import pytest
import torch

from tests.tools.tiny_runs import ROOT, options, recipe, run_tool
from wsbcn_mm.engine.checkpoint.reading import read_checkpoint
from wsbcn_mm.engine.files import sha256


def convert(*arguments):
    """`python tools/convert_checkpoint.py <arguments>`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['tools/convert_checkpoint.py', *map(str, arguments)])
        runpy.run_path(str(ROOT / 'tools' / 'convert_checkpoint.py'), run_name='__main__')


def tiny_resnet(norm):
    """The state of a tiny recipe's 2D backbone, with statistics that moved."""
    from mmengine.registry import MODELS, init_default_scope

    from wsbcn_mm.engine.recipe.load import load_recipe

    cfg = load_recipe(recipe('segmentation', norm))
    init_default_scope('mmseg')
    backbone = MODELS.build(cfg.model.backbone)
    torch.manual_seed(0)
    for name, tensor in backbone.state_dict().items():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand_like(tensor))
        elif name.endswith('num_batches_tracked'):
            tensor.fill_(5)
    return backbone.state_dict()


def authors_file(path, state):
    """A BCN state as the authors' training script saves it."""
    theirs = {'module.fc.weight': torch.zeros(5, 128), 'module.fc.bias': torch.zeros(5)}
    for key, tensor in state.items():
        layer, _, entry = key.rpartition('.')
        if entry.startswith('group_'):
            theirs[f'module.{layer}.{entry.removeprefix("group_")}'] = tensor.view(1, -1, 1)
        else:
            half = '.pbn' if f'{layer}.group_weight' in state else ''
            theirs[f'module.{layer}{half}.{entry}'] = tensor
    torch.save({'epoch': 90, 'state_dict': theirs, 'optimizer': {'state': {}}}, path)
    return path


VARIANT = ('--cfg-options', 'model.backbone.conv_cfg.variant=bcn')


def test_an_authors_file_is_converted_and_trained_from(tiny_data, tmp_path, capsys):
    state = tiny_resnet('bcn-ws')
    file = authors_file(tmp_path / 'rn18_bcn_ws.pth', state)
    out = tmp_path / 'pretrained' / 'resnet18_bcn_ws.pth'
    capsys.readouterr()  # what OpenMMLab prints when it is imported
    convert(file, out, recipe('segmentation'), *VARIANT)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{file}: the BCN authors' ImageNet files (bcn-ws) -> bcn-ws"
    assert 'other entries, not converted: epoch, optimizer' in printed
    assert re.match(r'stage +matched  missing  misshapen  left over', printed[2])
    assert 'left over in the file: fc.weight, fc.bias' in printed
    assert printed[-1] == f'-> {out}: {len(state)} entries, 100 % of the backbone'

    read = read_checkpoint(out)
    assert all(torch.equal(read.state[key], tensor) for key, tensor in state.items())
    assert read.meta['imported']['source'] == 'bcn-imagenet'
    assert read.meta['imported']['variant'] == 'bcn'
    assert read.meta['imported']['sha256'] == sha256(file)
    assert read.meta['imported']['coverage']['fc'] == {'left over': 2}
    assert read.meta['fingerprint']['conv1'] == {'conv': 'WS', 'variant': 'bcn', 'eps': 1e-5}

    init = [f'model.backbone.init_cfg.{key}' for key in ('type=Pretrained', f'checkpoint={out}')]
    init += ['optim_wrapper.optimizer.lr=0']
    short = options('segmentation', tiny_data, 1, *init)
    with pytest.raises(ValueError, match=r'is bcn-ws, the model bcn-ws: 20 x variant bcn in the checkpoint, jhu in'):
        run_tool('train.py', recipe('segmentation'), '--work-dir', tmp_path / 'refused', *short)
    run_tool('train.py', recipe('segmentation'), '--work-dir', tmp_path / 'run', *short, VARIANT[1])
    trained = torch.load(tmp_path / 'run' / 'iter_1.pth', weights_only=False)['state_dict']
    assert torch.equal(trained['backbone.layer3.0.conv1.weight'], state['layer3.0.conv1.weight'])


def test_a_2d_file_enters_a_3d_recipe_as_2d_weights_that_it_inflates(tiny_data, tmp_path, capsys):
    state = {key: t for key, t in tiny_resnet('bn').items() if not key.startswith('layer4')}
    torch.save(state, tmp_path / 'resnet18.pth')
    out = tmp_path / 'out.pth'
    cut = ('--cfg-options', 'model.backbone.conv1_kernel=(3,7,7)')
    with pytest.raises(SystemExit, match=r'^not converted: the keys of this file \(norm: BN\) do not show where'):
        convert(tmp_path / 'resnet18.pth', out, recipe('video', 'bn'), *cut)
    assert not out.exists()
    convert(tmp_path / 'resnet18.pth', out, recipe('video', 'bn'), '--source', 'torchvision', *cut)
    assert "2D weights: start from them with init_cfg type 'Inflated2d'" in capsys.readouterr().out
    read = read_checkpoint(out)
    assert torch.equal(read.state['layer1.0.conv1.conv.weight'], state['layer1.0.conv1.weight'])

    init = [f'model.backbone.init_cfg.{key}' for key in ('type=Inflated2d', f'checkpoint={out}')]
    short = options('video', tiny_data, 1, *init, cut[1])
    run_tool('train.py', recipe('video', 'bn'), '--work-dir', tmp_path / 'run', *short)
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert f'{out}: bn; the model: bn' in log.read_text()


class Code:
    """What a pickle cannot be read without."""


def test_a_checkpoint_of_ours_with_code_in_it_becomes_one_without(tmp_path, capsys):
    file, out = tmp_path / 'iter_2.pth', tmp_path / 'out.pth'
    state, meta = {'conv1.weight': torch.ones(2)}, {'fingerprint': {'conv1': {'conv': 'WS'}}, 'iter': 2}
    torch.save({'state_dict': state, 'meta': meta | {'who': Code()}}, file)
    with pytest.raises(SystemExit, match=r'^not converted: .* needs code to be read'):
        convert(file, out, recipe('segmentation'))
    convert(file, out, recipe('segmentation'), '--trust')
    assert capsys.readouterr().out.splitlines()[-1] == (
        f'{file} -> {out}: 1 entries unchanged; left out: meta.who ({Code.__module__}.Code)'
    )
    read = read_checkpoint(out)
    assert torch.equal(read.state['conv1.weight'], state['conv1.weight'])
    assert read.meta == meta


def test_refusals_are_one_line_and_write_nothing(tmp_path):
    out = tmp_path / 'out.safetensors'
    with pytest.raises(SystemExit, match=r"^not converted: checkpoint 'gone.pth' does not exist$"):
        convert('gone.pth', out, recipe('segmentation'))
    state = tiny_resnet('bn')
    torch.save(state | {'fc.weight': torch.zeros(5, 128)}, tmp_path / 'bn.pth')
    with pytest.raises(
        SystemExit, match=r"^not converted: the file \(torchvision's and timm's ResNets\) is bn, the model"
    ):
        convert(tmp_path / 'bn.pth', out, recipe('segmentation', 'gn-ws'))
    np.savez(
        tmp_path / 'bit.npz', **{'resnet/root_block/standardized_conv2d/kernel': np.zeros((7, 7, 3, 16), np.float32)}
    )
    with pytest.raises(SystemExit, match=r'^not converted: BiT networks have norm and ReLU before each convolution'):
        convert(tmp_path / 'bit.npz', out, recipe('segmentation', 'gn-ws'))
    assert not out.exists()
    convert(tmp_path / 'bn.pth', out, recipe('segmentation', 'bn'))
    assert read_checkpoint(out).meta['fingerprint']['bn1'] == {'norm': 'BN', 'eps': 1e-5}
    with pytest.raises(SystemExit, match=r'already exists and is not overwritten: remove it or choose another name$'):
        convert(tmp_path / 'bn.pth', out, recipe('segmentation', 'bn'))
    message = f'not converted: {out} already records the norm and WS of its layers: it needs no conversion'
    with pytest.raises(SystemExit, match=f'^{re.escape(message)}$'):
        convert(out, tmp_path / 'again.pth', recipe('segmentation', 'bn'))
