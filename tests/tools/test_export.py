"""tools/export.py on both tasks: files that agree with the checkpoint, a report, accuracy before and after."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from tests.tools.tiny_runs import METRIC, options, recipe, run_tool
from wsbcn_mm.layers import BatchChannelNorm
from wsbcn_mm.surgery.fingerprint import fingerprint

SIZES = {'segmentation': ['64x64', '33x50'], 'video': ['4x32x32', '5x33x40']}
TASKS = tuple(SIZES)


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """A checkpoint of each task whose norms have statistics, as if it had been trained."""
    folder = tmp_path_factory.mktemp('checkpoints')
    for task in TASKS:
        cfg = Config.fromfile(recipe(task))
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        for norm in model.modules():
            if isinstance(norm, BatchChannelNorm):
                torch.nn.init.normal_(norm.running_mean)
                torch.nn.init.uniform_(norm.running_var, 0.2, 2.0)
                torch.nn.init.normal_(norm.group_bias, 0.0, 0.5)
        torch.save(
            {'state_dict': model.state_dict(), 'meta': {'fingerprint': fingerprint(model)}}, folder / f'{task}.pth'
        )
    return folder


def export(task, checkpoints, data, work_dir, *arguments):
    run_tool(
        'export.py',
        *(recipe(task), checkpoints / f'{task}.pth', '--work-dir', work_dir, '--check-sizes', *SIZES[task]),
        *arguments,
        *options(task, data, 2),
    )


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_onnx_and_its_quantised_form(task, checkpoints, tiny_data, tmp_path, capsys):
    shape = {'segmentation': (2, 3, 40, 24), 'video': (2, 3, 3, 24, 40)}[task]
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / 'pixels.npy', pixels)
    export(task, checkpoints, tiny_data, tmp_path, '--int8', '--check-input', tmp_path / 'pixels.npy')

    printed = capsys.readouterr().out
    report = json.loads((tmp_path / f'{task}.json').read_text())
    assert report['input'] == 'RGB pixels from 0 to 255, float32'
    assert len(report['folding']['absorbed']) == len(report['folding']['baked']) > 10
    assert f'folded: {len(report["folding"]["baked"])} WS convolutions baked' in printed
    assert report['folding']['exact_difference'] <= 1e-10
    assert report['folding']['difference'] <= 1e-5 * max(1, report['folding']['scale'])

    onnx, int8 = report['comparisons']['onnx'], report['comparisons']['int8']
    assert [one['shape'] for one in onnx] == [one['shape'] for one in int8]
    assert len(onnx) == 5
    assert onnx[0]['shape'] == list(shape)
    assert all(one['difference'] <= 1e-5 * max(1, one['scale']) and one['agreement'] > 0.999 for one in onnx)
    assert all(one['difference'] < 0.2 * one['scale'] for one in int8)
    assert report['files']['int8']['bytes'] < 0.4 * report['files']['onnx']['bytes']

    metrics = report['metrics']
    assert metrics['onnx'] == pytest.approx(metrics['checkpoint'], abs=0.05)
    change = metrics['int8'][METRIC[task]] - metrics['checkpoint'][METRIC[task]]
    assert f'{METRIC[task]} {metrics["int8"][METRIC[task]]:.2f} ({change:+.2f})' in printed

    session = onnxruntime.InferenceSession(tmp_path / f'{task}.onnx')
    (given,), (logits,) = session.get_inputs(), session.get_outputs()
    names = {'segmentation': ['batch', 3, 'height', 'width'], 'video': ['batch', 3, 'frames', 'height', 'width']}
    assert (given.name, given.shape, logits.name) == ('input', names[task], 'logits')


@pytest.mark.slow
def test_exported_programs_run_where_this_package_is_not_installed(checkpoints, tiny_data, tmp_path):
    for task in TASKS:
        # The last feature map of the first size has two frames: torch.export takes a length of 1 for a constant.
        sizes = ['--check-sizes', '8x32x32', '5x33x40'] if task == 'video' else []
        export(task, checkpoints, tiny_data, tmp_path, '--to', 'torch_export', *sizes)
        report = json.loads((tmp_path / f'{task}.json').read_text())
        comparisons = report['comparisons']['torch_export']
        assert len(comparisons) == 4
        assert all(one['difference'] <= 1e-5 * max(1, one['scale']) for one in comparisons)
        assert report['metrics'] == {}
    program = """
import sys
sys.modules.update(dict.fromkeys(['wsbcn_mm', 'mmengine', 'mmcv', 'mmseg']))
import torch
segmentation = torch.export.load('segmentation.pt2').module()
assert segmentation(torch.rand(1, 3, 35, 66)).shape == (1, 4, 35, 66)
try:
    segmentation.train()
except NotImplementedError:
    video = torch.export.load('video.pt2').module()
    print(tuple(video(torch.rand(1, 3, 6, 35, 30)).shape))
"""
    done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == '(1, 8)\n', done.stderr


def test_a_file_that_is_not_the_model_ends_with_an_error(checkpoints, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr('wsbcn_mm.engine.export.load_exported', lambda path: lambda x: torch.ones(len(x), 8))
    with pytest.raises(
        SystemExit, match=r'video\.pt2 differs from the model by \d.*e.\d+ of its largest output, more than 1'
    ):
        export('video', checkpoints, tiny_data, tmp_path, '--to', 'torch_export', '--check-sizes', '8x32x32')
    report = json.loads((tmp_path / 'video.json').read_text())
    assert all(one['difference'] > 0.5 for one in report['comparisons']['torch_export'])


def test_a_checkpoint_of_other_classes_is_refused(checkpoints, tiny_data, tmp_path):
    content = torch.load(checkpoints / 'video.pth', weights_only=True)
    content['meta']['dataset_meta'] = {'classes': tuple('abcdefgh')}
    torch.save(content, tmp_path / 'video.pth')
    with pytest.raises(
        ValueError, match=r"another class list .*: class 0 is 'a' in the checkpoint and '.*' in the data\."
    ):
        export('video', tmp_path, tiny_data, tmp_path / 'work')


def test_bad_command_lines_stop_before_anything_is_built(checkpoints, tiny_data, tmp_path, monkeypatch, capsys):
    work_dir = tmp_path / 'work'
    with pytest.raises(SystemExit):
        export('video', checkpoints, tiny_data, work_dir, '--int8', '--to', 'torch_export')
    assert '--int8 quantises ONNX files, not --to torch_export' in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^--check-sizes '64x64' is not of the form TxHxW$"):
        export('video', checkpoints, tiny_data, work_dir, '--check-sizes', '64x64')
    np.save(tmp_path / 'pixels.npy', np.zeros((1, 4, 8, 8)))
    with pytest.raises(ValueError, match=r'has the shape \(1, 4, 8, 8\): \(N, 3, \*\) of 4 axes is expected$'):
        export('segmentation', checkpoints, tiny_data, work_dir, '--check-input', tmp_path / 'pixels.npy')
    with pytest.raises(FileNotFoundError, match=r"^checkpoint 'gone.pth' does not exist$"):
        run_tool('export.py', recipe('video'), 'gone.pth', '--work-dir', work_dir)
    monkeypatch.setattr('wsbcn_mm.engine.export.find_spec', lambda name: None if name == 'onnxscript' else name)
    with pytest.raises(
        ImportError, match=r'^ONNX needs onnxscript, which this environment lacks: pip install onnxscript==[\d.]+$'
    ):
        export('video', checkpoints, tiny_data, work_dir)
    assert not work_dir.exists()
