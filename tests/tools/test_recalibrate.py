"""tools/recalibrate.py on the demo's recipes: new statistics, the same weights, and the same file when done again."""

import json

import pytest
import torch

from tests.tools.tiny_runs import METRIC, options, recipe, run_tool
from wsbcn_mm.engine.checkpoint.reading import read_checkpoint

TASKS = ('segmentation', 'video')


@pytest.fixture(scope='module', params=TASKS)
def trained(request, tiny_data, tmp_path_factory):
    """A task, its options, and a checkpoint of BatchNorm after two iterations of one sample."""
    task, work_dir = request.param, tmp_path_factory.mktemp(request.param)
    settings = options(task, tiny_data, 2)
    run_tool('train.py', recipe(task, 'bn'), '--work-dir', work_dir, *settings)
    return task, settings, work_dir / 'iter_2.pth'


def recalibrate(task, checkpoint, out, settings, *more):
    run_tool('recalibrate.py', recipe(task, 'bn'), checkpoint, out, '--work-dir', out.parent / 'logs', *more, *settings)


def test_statistics_are_new_and_all_else_is_the_old(trained, tmp_path, capsys):
    task, settings, checkpoint = trained
    recalibrate(task, checkpoint, tmp_path / 'new.pth', settings, '--samples', 6, '--rows', 2)
    printed = capsys.readouterr().out
    old, new = (torch.load(path, weights_only=True) for path in (checkpoint, tmp_path / 'new.pth'))
    assert set(new) == {'meta', 'state_dict'}
    assert new['meta']['recalibrated'] == dict(samples=6, sweeps=3, unreached=[])
    assert {name: value for name, value in new['meta'].items() if name != 'recalibrated'}.keys() == old['meta'].keys()
    assert new['meta']['fingerprint'] == old['meta']['fingerprint']
    changed = {name for name, value in old['state_dict'].items() if not torch.equal(value, new['state_dict'][name])}
    norms = {name.removesuffix('.running_mean') for name in old['state_dict'] if name.endswith('running_mean')}
    assert {name.rpartition('.')[0] for name in changed} == norms
    assert {name.rpartition('.')[2] for name in changed} <= {'running_mean', 'running_var', 'num_batches_tracked'}

    table = printed[printed.index('norm ') :].splitlines()
    rows = [line.split() for line in table[1:3]]
    assert all(row[0] in norms and float(row[1]) > 0 for row in rows)
    assert table[3] == f'... and {len(norms) - 2} more, with smaller gaps'
    assert table[4].startswith(f'{len(norms)} norms measured, 0 received nothing and stay as they were; the last sweep')
    assert table[5].startswith('not in the new file, which is for evaluation: ')
    assert 'optimizer' in table[5]
    assert table[6] == f'-> {tmp_path / "new.pth"}'


def test_doing_it_again_gives_the_same_file(trained, tmp_path):
    task, settings, checkpoint = trained
    recalibrate(task, checkpoint, tmp_path / 'once.pth', settings, '--samples', 6)
    recalibrate(task, tmp_path / 'once.pth', tmp_path / 'twice.pth', settings, '--samples', 6)
    assert (tmp_path / 'once.pth').read_bytes() == (tmp_path / 'twice.pth').read_bytes()
    if task == 'segmentation':
        recalibrate(task, checkpoint, tmp_path / 'once.safetensors', settings, '--samples', 6)
        file = read_checkpoint(tmp_path / 'once.safetensors')
        state = torch.load(tmp_path / 'once.pth', weights_only=True)['state_dict']
        assert all(torch.equal(file.state[name], value) for name, value in state.items())
        assert file.meta['recalibrated']['samples'] == 6
        run_tool('test.py', recipe(task, 'bn'), tmp_path / 'once.pth', '--work-dir', tmp_path / 'test', *settings)
        assert METRIC[task] in json.loads((tmp_path / 'test' / 'metrics.json').read_text())


def test_what_it_refuses(trained, tmp_path):
    task, settings, checkpoint = trained
    taken = tmp_path / 'taken.pth'
    taken.touch()
    with pytest.raises(SystemExit, match=r'not recalibrated: .*taken.pth already exists and is not overwritten'):
        recalibrate(task, checkpoint, taken, settings)
    with pytest.raises(SystemExit, match='not recalibrated: samples=0: at least one is needed'):
        recalibrate(task, checkpoint, tmp_path / 'new.pth', settings, '--samples', 0)
    with pytest.raises(SystemExit, match=r"not recalibrated: checkpoint '.*none.pth' does not exist"):
        recalibrate(task, tmp_path / 'none.pth', tmp_path / 'new.pth', settings)
    assert not (tmp_path / 'new.pth').exists()
