"""tools/publish.py on a checkpoint of a real run, and tools/test.py on what it published."""

import json
import re

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import load_file

from tests.tools.tiny_runs import METRIC, options, recipe, run_tool
from wsbcn_mm.engine.checkpoint.publishing import publish
from wsbcn_mm.engine.checkpoint.reading import read_checkpoint
from wsbcn_mm.engine.files import sha256


@pytest.fixture(scope='module')
def trained(tiny_data, tmp_path_factory):
    """The checkpoint of a segmentation run and the metrics of its validation."""
    folder = tmp_path_factory.mktemp('run')
    run_tool('train.py', recipe('segmentation'), '--work-dir', folder, *options('segmentation', tiny_data, 2))
    lines = [json.loads(line) for file in folder.glob('*/vis_data/scalars.json') for line in file.open()]
    (validated,) = [line for line in lines if METRIC['segmentation'] in line]
    metrics = folder / 'metrics.json'
    metrics.write_text(json.dumps({name: validated[name] for name in ('aAcc', 'mIoU', 'mAcc')}))
    return folder / 'iter_2.pth', metrics


def test_what_is_published_is_what_was_trained_and_evaluates_alike(trained, tiny_data, tmp_path, capsys):
    checkpoint, metrics = trained
    out = tmp_path / 'published' / 'digits.v1'
    run_tool('publish.py', checkpoint, metrics, out)
    assert capsys.readouterr().out.splitlines() == [f'{out}.safetensors', f'{out}.py', f'{out}.json']

    saved = torch.load(checkpoint, weights_only=True)
    state, meta, _ = read_checkpoint(f'{out}.safetensors')
    assert state.keys() == saved['state_dict'].keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in saved['state_dict'].items())
    alone = load_file(f'{out}.safetensors')  # without this package
    assert all(torch.equal(alone[key], tensor) for key, tensor in saved['state_dict'].items())
    assert meta['fingerprint'] == saved['meta']['fingerprint']

    card = json.loads((tmp_path / 'published' / 'digits.v1.json').read_text())
    assert card['metrics'] == json.loads(metrics.read_text())
    assert card['classes'] == list(saved['meta']['dataset_meta']['classes'])
    assert card['classes_sha256'] == saved['meta']['classes_sha256'] == meta['classes_sha256']
    assert card['norm_recipe'] == saved['meta']['fingerprint']
    assert card['sha256'] == sha256(f'{out}.safetensors')
    assert card['iterations'] == 2
    cfg = Config.fromfile(f'{out}.py')
    assert cfg.train_cfg.max_iters == 2
    assert not {'work_dir', 'load_from', 'resume', 'launcher'} & set(cfg)

    run_tool(
        *('test.py', f'{out}.py', f'{out}.safetensors', '--work-dir', tmp_path / 'test'),
        *options('segmentation', tiny_data, 2),
    )
    evaluated = json.loads((tmp_path / 'test' / 'metrics.json').read_text())
    assert {name: evaluated[name] for name in card['metrics']} == pytest.approx(card['metrics'])

    message = f'{out}.safetensors already exists and is not overwritten: remove it or choose another name'
    with pytest.raises(SystemExit, match=f'^not published: {re.escape(message)}$'):
        run_tool('publish.py', checkpoint, metrics, f'{out}.safetensors')


def test_what_says_too_little_is_not_published(tmp_path):
    metrics = tmp_path / 'metrics.json'
    torch.save({'state_dict': {'w': torch.ones(1)}, 'meta': {'cfg': 'a = 1'}}, tmp_path / 'foreign.pth')
    arguments = (tmp_path / 'foreign.pth', metrics, tmp_path / 'out')
    with pytest.raises(FileNotFoundError, match=r'metrics.json. do not exist: tools/test.py writes metrics.json'):
        publish(*arguments)
    for content, reason in (
        ('{', r'is not valid JSON: '),
        ('{}', r'contains \{\}: names and numbers are expected, as tools/test.py writes them$'),
        ('{"mIoU": "good"}', r"contains \{'mIoU': 'good'\}: names and numbers"),
    ):
        metrics.write_text(content)
        with pytest.raises(ValueError, match=f'^{re.escape(str(metrics))} {reason}'):
            publish(*arguments)
    metrics.write_text('{"mIoU": 70.0}')
    message = (
        f'{tmp_path}/foreign.pth lacks dataset_meta, fingerprint in its meta: a checkpoint of a run with '
        'SafeCheckpointHook and CheckpointGuardHook is expected, which the recipes use'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        publish(*arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['foreign.pth', 'metrics.json']
