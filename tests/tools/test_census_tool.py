"""tools/census.py and `tools/train.py --norm` as a user runs them."""

import json
import re

import pytest

from tests.tools.tiny_runs import logs, options, recipe, run_tool


def run_census(*arguments):
    with pytest.raises(SystemExit) as ended:
        run_tool('census.py', *arguments)
    return ended.value.code


def test_the_census_of_a_recipe(tmp_path, capsys):
    assert (
        run_census(recipe('segmentation'), '--expect', 'bcn-ws', '--devices', '4', '--json', tmp_path / 'c.json') == 0
    )
    printed = capsys.readouterr().out
    assert re.search(
        r'backbone\.layer1\.0\.conv1 +WSConv2d \(jhu\) +16, 16 +3x3 +1 +144 +0\.0001 +backbone\S+bn1', printed
    )
    assert 'input 1 x 3 x 64 x 64, 4 device(s)\n' in printed
    assert '24 of 26 convolutions have a norm after them, seen in the forward pass, WS variant jhu\n' in printed
    assert 'statistics of 24 BCN: samples 4, positions 64 to 1024, values per group 256 to 2048, rate 0.1' in printed
    assert 'left out: decode_head.conv_seg: no norm follows: its output leaves the model\n' in printed
    report = json.loads((tmp_path / 'c.json').read_text())
    assert (len(report['convs']), len(report['norms'])) == (26, 24)
    assert report['breaches'] == []
    assert report['norms'][0]['convs'] == ['backbone.conv1']


def test_a_model_that_is_not_as_expected_ends_with_1(tmp_path, capsys):
    assert run_census(recipe('video', 'gn'), '--expect', 'gn-ws', '--json', tmp_path / 'c.json') == 1
    breach = '15 convolutions have a norm after them but no Weight Standardization (the first: backbone.conv1.conv)'
    assert f'not gn-ws: {breach}\n' in capsys.readouterr().out
    assert json.loads((tmp_path / 'c.json').read_text())['breaches'] == [breach]


def test_input_shape_and_options_reach_the_census(capsys):
    shape = ['--input-shape', '2', '1', '3', '4', '32', '32']
    assert run_census(recipe('video'), *shape, '--cfg-options', 'optim_wrapper.accumulative_counts=3') == 0
    printed = capsys.readouterr().out
    assert 'input 2 x 1 x 3 x 4 x 32 x 32, 1 device(s)\n' in printed
    assert 'statistics of 15 BCN: samples 6, ' in printed


def test_bad_arguments_are_refused_before_anything_is_built():
    with pytest.raises(ValueError, match=r"^norm policy 'ws': one of "):
        run_tool('census.py', recipe('video'), '--expect', 'ws')
    with pytest.raises(FileNotFoundError, match=r"^checkpoint 'gone\.pth' does not exist$"):
        run_tool('census.py', recipe('video'), 'gone.pth')
    with pytest.raises(SystemExit):
        run_tool('train.py', recipe('video'), '--norm-groups', '8')


def test_a_run_with_another_norm_and_the_census_of_its_checkpoint(tiny_data, tmp_path, capsys):
    settings = options('segmentation', tiny_data, 2)
    start = [recipe('segmentation', 'bn'), '--norm', 'bcn-ws', '--norm-groups', '8']
    run_tool('train.py', *start, '--work-dir', tmp_path, *settings)
    printed = capsys.readouterr().out
    assert 'norms: 24 BN -> 24 BCN\nconvolutions: 26 plain -> 24 WS, 2 plain\n' in printed
    (log,) = logs(tmp_path)
    assert 'convs: 24 WS, 2 plain; norms: 24 BCN; ' in log
    seen = '24 of 26 convolutions have a norm after them, seen in the forward pass, WS variant jhu'
    assert log.index('effective batch 1') < log.index(seen) < log.index('Iter(train)')
    assert 'statistics of 24 BCN: samples 1, positions 64 to 1024, values per group 256 to 2048, rate' in log
    # In training the loss interpolates its output.
    assert 'left out: decode_head.conv_seg: no norm follows: its output goes to interpolate()' in log

    # The folder has the config of the run, so --norm is not needed again.
    (config,) = tmp_path.glob('*.py')
    assert run_census(config, tmp_path / 'iter_2.pth', '--expect', 'bcn-ws') == 0
    assert re.search(r'backbone\.bn1 +BCN +16 +8 +1 +1024 +2048 +0\.1 +2 +0\.0001', capsys.readouterr().out)


def test_a_run_of_another_norm_has_a_folder_of_its_own(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_tool('train.py', recipe('video', 'gn'), '--norm', 'gn-ws', *options('video', tiny_data, 2))
    (folder,) = (tmp_path / 'work_dirs').iterdir()
    assert folder.name.endswith('_motion-8x40x40_gn-ws')
