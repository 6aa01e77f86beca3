"""tools/train.py and tools/test.py on a few scenes and clips: train, evaluate, draw, continue, refuse."""

import json
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

from projects.toy_data.data import CLIPS, SCENES
from tests.tools.tiny_runs import METRIC, ROOT, iterations_in, logs, options, recipe, run_tool
from wsbcn_mm.engine.checkpoint.class_guard import class_list

TASKS = ('segmentation', 'video')


@pytest.fixture(scope='module', params=TASKS)
def trained(request, tiny_data, tmp_path_factory):
    """A task and the work_dir of a run of four iterations."""
    work_dir = tmp_path_factory.mktemp(request.param)
    run_tool('train.py', recipe(request.param), '--work-dir', work_dir, *options(request.param, tiny_data, 4))
    return request.param, work_dir


def checkpoint(path):
    return torch.load(path, map_location='cpu', weights_only=False)


def test_training_logs_what_it_does_and_saves_checkpoints(trained):
    task, work_dir = trained
    (log,) = logs(work_dir)
    assert iterations_in(log) == [1, 2, 3, 4]
    assert re.search(r'convs: (2 plain, )?\d+ WS(, 2 plain)?; norms: \d+ BCN; 0\.\d\d M trainable parameters', log)
    assert 'effective batch 1 = 1 device(s) x 1 x accumulation 1' in log
    assert f'{METRIC[task]}: ' in log
    assert sorted(path.name for path in work_dir.glob('*.pth')) == ['iter_2.pth', 'iter_4.pth']
    assert (work_dir / 'last_checkpoint').read_text().strip() == str(work_dir / 'iter_4.pth')
    assert list(work_dir.glob('*/vis_data/scalars.json'))


def test_evaluation_agrees_with_validation_and_leaves_metrics_table_and_pictures(trained, tiny_data, tmp_path, capsys):
    task, work_dir = trained
    run_tool(
        'test.py',
        *(recipe(task), work_dir / 'iter_4.pth', '--work-dir', tmp_path / 'test'),
        *('--show-dir', tmp_path / 'pictures', '--show-max', 3),
        *options(task, tiny_data, 4),
    )
    metrics = json.loads((tmp_path / 'test' / 'metrics.json').read_text())
    value = metrics[METRIC[task]]
    assert 0 <= value <= 100
    printed = capsys.readouterr().out.splitlines()[-1]
    assert f'{METRIC[task]} {value:.2f}' in printed
    assert printed.endswith(f' -> {tmp_path / "test" / "metrics.json"}')

    (log,) = logs(tmp_path / 'test')
    if task == 'segmentation':
        for name in ('background', *(f'digit {digit}' for digit in SCENES['digits'])):
            assert re.search(rf'\| +{name} +\| +([\d.]+|absent) +\|', log), name
    else:
        assert metrics['acc/num_clips'] == 5
        assert set(metrics) >= {'acc/top1', 'acc/top5', 'acc/mean_class'}

    lines = [json.loads(line) for path in work_dir.glob('*/vis_data/scalars.json') for line in path.open()]
    (validated,) = [line for line in lines if METRIC[task] in line]
    assert {name: validated[name] for name in metrics} == pytest.approx(metrics)

    pictures = sorted((tmp_path / 'pictures').glob('*.png'))
    assert [path.name[:5] for path in pictures] == ['0000_', '0001_', '0002_']
    width, height = Image.open(pictures[0]).size
    if task == 'segmentation':
        assert (width, height) == (3 * SCENES['size'] + 2 * 4, SCENES['size'])
    else:
        assert width >= 8 * (CLIPS['size'] + 4) - 4
        assert height == CLIPS['size'] + 2 * 16


def test_a_checkpoint_of_another_norm_is_neither_evaluated_nor_resumed(trained, tiny_data, tmp_path):
    task, work_dir = trained
    work = ('--work-dir', tmp_path)
    short = options(task, tiny_data, 6)
    with pytest.raises(ValueError, match=r'^the checkpoint is bcn-ws, the model gn: \d+ x conv WS in the checkpoint'):
        run_tool('test.py', recipe(task, 'gn'), work_dir / 'iter_4.pth', *work, *short)
    with pytest.raises(ValueError, match=r'^the checkpoint is bcn-ws, the model gn-ws: \d+ x norm BCN in'):
        run_tool('train.py', recipe(task, 'gn-ws'), '--resume', work_dir / 'iter_4.pth', *work, *short)
    assert not (tmp_path / 'metrics.json').exists()
    assert not list(tmp_path.glob('*.pth'))


def test_a_resumed_run_is_the_run_that_was_never_stopped(trained, tiny_data, tmp_path):
    """Segmentation continues from a file in another folder, video from the last one of its own."""
    task, straight = trained
    first = tmp_path / 'first'
    run_tool('train.py', recipe(task), '--work-dir', first, *options(task, tiny_data, 2))
    work_dir = first if task == 'video' else tmp_path / 'second'
    resume = ['--resume'] if task == 'video' else ['--resume', first / 'iter_2.pth']
    run_tool('train.py', recipe(task), '--work-dir', work_dir, *resume, *options(task, tiny_data, 4))
    log = ''.join(logs(work_dir))
    assert iterations_in(log) == ([1, 2, 3, 4] if task == 'video' else [3, 4])
    assert f'Load checkpoint from {first / "iter_2.pth"}' in log

    whole, resumed = checkpoint(straight / 'iter_4.pth'), checkpoint(work_dir / 'iter_4.pth')
    assert whole['state_dict'].keys() == resumed['state_dict'].keys()
    for name, tensor in whole['state_dict'].items():
        assert torch.equal(tensor, resumed['state_dict'][name]), name
    momenta = [state['optimizer']['state'] for state in (whole, resumed)]
    assert momenta[0].keys() == momenta[1].keys()
    assert len(momenta[0]) > 20
    for key, state in momenta[0].items():
        assert torch.equal(state['momentum_buffer'], momenta[1][key]['momentum_buffer'])
    assert whole['meta']['iter'] == resumed['meta']['iter'] == 4


def test_format_only_writes_label_files_and_evaluates_nothing(trained, tiny_data, tmp_path, capsys):
    task, work_dir = trained
    arguments = ['test.py', recipe(task), work_dir / 'iter_4.pth', '--work-dir', tmp_path]
    arguments += ['--format-only', tmp_path / 'labels', *options(task, tiny_data, 4)]
    if task == 'video':
        with pytest.raises(
            ValueError, match=r'^--format-only with a recipe of video \(.*\): only segmentation has it$'
        ):
            run_tool(*arguments)
        return
    run_tool(*arguments)
    assert capsys.readouterr().out.endswith(f'saved 5.00 -> {tmp_path / "labels"}\n')
    assert not list(tmp_path.glob('metrics*'))
    for file in (tmp_path / 'labels').iterdir():
        assert set(Image.open(file).tobytes()) <= {0, 1, 2, 3}
    assert 'per class results' not in logs(tmp_path)[0]


def test_a_checkpoint_of_other_classes_is_refused(trained, tiny_data, tmp_path):
    """The classes of the saved list change places, as if the run had had another order."""
    task, work_dir = trained
    content = checkpoint(work_dir / 'iter_4.pth')
    names = list(content['meta']['dataset_meta']['classes'])
    assert content['meta']['classes_sha256'] == class_list(names).sha256
    swapped = [names[1], names[0], *names[2:]]
    content['meta']['dataset_meta']['classes'] = swapped
    content['meta']['classes_sha256'] = class_list(swapped).sha256
    other = tmp_path / 'other.pth'
    torch.save(content, other)
    differs = re.escape(f'class 0 is {names[1]!r} in the checkpoint and {names[0]!r} in the data. ')
    short = options(task, tiny_data, 2)
    with pytest.raises(ValueError, match=differs + 'If this is intended'):
        run_tool('test.py', recipe(task), other, '--work-dir', tmp_path / 'test', *short)
    with pytest.raises(ValueError, match=differs + 'If this is intended'):
        run_tool('train.py', recipe(task), '--work-dir', tmp_path / 'load', *short, f'load_from={other}')
    with pytest.raises(ValueError, match=differs + 'A resumed run must keep its class list'):
        run_tool('train.py', recipe(task), '--resume', other, '--work-dir', tmp_path / 'resume', *short)
    meant = options(task, tiny_data, 2, 'allow_class_mismatch=True')
    run_tool('test.py', recipe(task), other, '--work-dir', tmp_path / 'meant', *meant)
    assert 'Loaded anyway (allow_class_mismatch=True)' in logs(tmp_path / 'meant')[0]


@pytest.mark.parametrize('task', TASKS)
def test_both_tasks_train_in_bfloat16_on_a_cpu(task, tiny_data, tmp_path, capsys):
    run_tool('train.py', recipe(task), '--amp', 'bf16', '--work-dir', tmp_path, *options(task, tiny_data, 2))
    assert 'amp: forward passes in bfloat16, losses not scaled\n' in capsys.readouterr().out
    (log,) = logs(tmp_path)
    assert "type='Bf16OptimWrapper'" in log
    assert iterations_in(log) == [1, 2]
    state = checkpoint(tmp_path / 'iter_2.pth')['state_dict']
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_scales_mirror_images_and_windows_are_for_segmentation(trained, tiny_data, tmp_path):
    task, work_dir = trained
    arguments = ['test.py', recipe(task), work_dir / 'iter_4.pth', '--work-dir', tmp_path, '--tta', 0.5, 1]
    arguments += ['--sliding-window', 48, '16x24', *options(task, tiny_data, 4)]
    if task == 'video':
        with pytest.raises(
            ValueError, match=r'^--sliding-window with a recipe of video \(.*\): only segmentation has it$'
        ):
            run_tool(*arguments)
        return
    run_tool(*arguments)
    assert [file.name for file in tmp_path.glob('metrics*')] == ['metrics-tta-sliding-window.json']
    metrics = json.loads((tmp_path / 'metrics-tta-sliding-window.json').read_text())
    (folder,) = tmp_path.glob('*/evaluation')
    assert {file.name for file in folder.iterdir()} == {'confusion.csv', 'confusion.png', 'per_class.csv'}
    (log,) = logs(tmp_path)
    assert '5 of 5 images scored, each once' in log
    assert re.search(rf'aAcc {metrics["aAcc"]:.2f}, mIoU {metrics["mIoU"]:.2f} \(\d/4 classes\)', log)


def test_bad_command_lines_stop_before_anything_is_built(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    work_dir = tmp_path / 'work'
    short = options('video', tiny_data, 2)
    start = ['train.py', recipe('video'), '--work-dir', work_dir]
    message = r'^--amp fp16: a GPU is needed, and none was found; --amp bf16 also runs on CPUs$'
    with pytest.raises(ValueError, match=message):
        run_tool(*start, '--amp', 'fp16', *short)
    with pytest.raises(ValueError, match=r"has 'train_cfgg'; did you mean 'train_cfg'\?$"):
        run_tool(*start, *short, 'train_cfgg.max_iters=2')
    with pytest.raises(FileNotFoundError, match=r"^checkpoint 'gone.pth' does not exist$"):
        run_tool(*start, '--resume', 'gone.pth', *short)
    with pytest.raises(FileNotFoundError, match=r"^recipe 'configs/tiny/gone.py' does not exist"):
        run_tool('train.py', 'configs/tiny/gone.py')
    with pytest.raises(FileNotFoundError, match=r"^checkpoint 'gone.pth' does not exist$"):
        run_tool('test.py', recipe('video'), 'gone.pth', '--work-dir', work_dir)
    with pytest.raises(ValueError, match=r'^sync_bn=\'torch\' does not reach BCN'):
        run_tool(*start, *short, 'sync_bn=torch')
    assert not work_dir.exists()


def test_missing_pretrained_weights_are_refused_or_left_out(tiny_data, tmp_path):
    init = 'model.backbone.init_cfg'
    short = options('video', tiny_data, 2, f'{init}.type=Pretrained', f'{init}.checkpoint=gone.pth')
    with pytest.raises(FileNotFoundError, match=r"^the recipe starts from pretrained weights 'gone.pth'"):
        run_tool('train.py', recipe('video'), '--work-dir', tmp_path, *short)
    run_tool('train.py', recipe('video'), '--work-dir', tmp_path, '--from-scratch', *short)
    run_tool('test.py', recipe('video'), tmp_path / 'iter_2.pth', '--work-dir', tmp_path / 'test', *short)
    assert (tmp_path / 'test' / 'metrics.json').is_file()


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_help_comes_at_once(tool):
    command = [sys.executable, '-X', 'importtime', str(ROOT / 'tools' / tool), '--help']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    for option in ('--work-dir', '--launcher {auto,none,pytorch,slurm}', '--cfg-options KEY=VALUE'):
        assert option in done.stdout
    imported = {line.split('|')[-1].strip() for line in done.stderr.splitlines()}
    assert 'argparse' in imported
    assert not imported & {'torch', 'mmengine', 'wsbcn_mm'}
