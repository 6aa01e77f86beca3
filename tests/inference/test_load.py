"""Checkpoints, folded and exported files as callables: bit-equal to the test, and named errors for all else."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from tests.tools.tiny_runs import options, recipe, run_tool
from wsbcn_mm.engine.checkpoint.publishing import publish
from wsbcn_mm.engine.run import evaluate
from wsbcn_mm.inference import load

TASKS = ('segmentation', 'video')
OPTIONS = {
    # A head that mmseg has too, so that it can be folded.
    'segmentation': ['model.decode_head.bottleneck_kernel_size=3', 'model.decode_head.image_pool_norm=True'],
    'video': [],
}
SEEN = {}


@METRICS.register_module()
class RecordPredictions(BaseMetric):
    """Keep what the test predicts for each file."""

    default_prefix = None

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            found = sample['pred_sem_seg']['data'][0] if 'pred_sem_seg' in sample else sample['pred_score']
            SEEN[sample.get('img_path') or sample['path']] = found.numpy()
            self.results.append(0)

    def compute_metrics(self, results):
        return dict(seen=len(results))


@pytest.fixture(scope='module')
def trained(tiny_data, tmp_path_factory):
    """A checkpoint of each task after four iterations."""
    files = {}
    for task in TASKS:
        folder = tmp_path_factory.mktemp(task)
        run_tool('train.py', recipe(task), '--work-dir', folder, *options(task, tiny_data, 4, *OPTIONS[task]))
        files[task] = folder / 'iter_4.pth'
    return files


@pytest.fixture(scope='module')
def exported(trained, tiny_data, tmp_path_factory):
    """ONNX files of both, and the folded files of the segmentation model."""
    folder = tmp_path_factory.mktemp('exported')
    for task, size in (('segmentation', '64x64'), ('video', '8x40x40')):
        run_tool(
            *('export.py', recipe(task), trained[task], '--out', folder / f'{task}.onnx', '--check-sizes', size),
            *('--work-dir', folder, *options(task, tiny_data, 4, *OPTIONS[task])),
        )
    run_tool(
        *('fold.py', recipe('segmentation'), trained['segmentation'], '--out-dir', folder / 'folded'),
        *('--work-dir', folder, *options('segmentation', tiny_data, 4, *OPTIONS['segmentation'])),
    )
    return folder


def of_test(task, file, data, work_dir):
    """What tools/test.py scores, by file."""
    SEEN.clear()
    changes = options(task, data, 4, *OPTIONS[task], f'experiment_name=record{len(os.listdir(work_dir))}_{task}')[1:]

    def record(cfg):
        cfg.test_evaluator = dict(type='RecordPredictions')

    evaluate(recipe(task), str(file), options=changes, work_dir=str(work_dir), change=record)
    return dict(SEEN)


def prediction(result):
    return result.class_map if hasattr(result, 'class_map') else result.scores


@pytest.mark.parametrize('task', TASKS)
def test_predictions_are_those_that_the_test_scores(task, trained, tiny_data, tmp_path):
    expected = of_test(task, trained[task], tiny_data, tmp_path)
    assert len(expected) == 5
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = load(trained[task], device='cpu')
    assert model.notes == []
    results = model(list(expected))
    for (file, found), result in zip(expected.items(), results, strict=True):
        assert result.source == file
        assert np.array_equal(prediction(result), found)
    batched = model(list(expected), batch_size=4)
    for result, other in zip(results, batched, strict=True):
        assert prediction(result) == pytest.approx(prediction(other), abs=1e-5 if task == 'video' else 0)


@pytest.mark.parametrize('task', TASKS)
def test_arrays_give_what_their_files_give(task, trained, tiny_data):
    model = load(trained[task], device='cpu')
    pattern = {'segmentation': 'seg/leftImg8bit/val/*/*.png', 'video': 'video/videos/*.mp4'}[task]
    file = next(tiny_data.glob(pattern))
    expected = model(file)
    if task == 'segmentation':
        array = expected.image
    else:
        frames = model.open(file)
        array = frames.read(torch.arange(frames.total)).numpy()
    for result in (model(array), *model([array, array])):
        assert result.source is None
        assert np.array_equal(prediction(result), prediction(expected))


@pytest.mark.parametrize('task', TASKS)
def test_an_onnx_file_with_its_json_is_a_model(task, trained, exported, tiny_data, tmp_path):
    expected = of_test(task, trained[task], tiny_data, tmp_path)
    model = load(exported / f'{task}.onnx')
    assert model.classes == load(trained[task], device='cpu').classes
    for result, found in zip(model(list(expected)), expected.values(), strict=True):
        if task == 'segmentation':
            assert (result.class_map == found).mean() > 0.999
        else:
            assert result.scores == pytest.approx(found, abs=1e-5)
    facts = json.loads((exported / f'{task}.json').read_text())
    assert facts['classes'] == list(model.classes)
    assert 'auxiliary_head' not in facts['inference']


def test_an_exported_file_without_its_json_needs_the_recipe(exported, trained, tiny_data, tmp_path):
    file = tmp_path / 'moved.onnx'
    file.write_bytes((exported / 'segmentation.onnx').read_bytes())
    with pytest.raises(
        ValueError,
        match=r'moved\.onnx needs the recipe that it was exported from: moved\.json, which tools/export\.py writes '
        r'beside it, or --recipe FILE \(recipe= in Python\)$',
    ):
        load(file)
    Config.fromfile(recipe('segmentation')).dump(tmp_path / 'recipe.py')
    model = load(file, recipe=tmp_path / 'recipe.py')
    # The names are those of the recipe's test data.
    assert model.classes == ('background', 'digit 0', 'digit 1', 'digit 4')


def test_folded_files_are_models(exported, trained, tiny_data):
    original = load(trained['segmentation'], device='cpu')
    folder = tiny_data / 'seg' / 'leftImg8bit' / 'val'
    for arguments in ({}, dict(recipe=exported / 'folded' / 'folded.py')):
        model = load(exported / 'folded' / 'folded.pth', device='cpu', **arguments)
        assert model.classes == original.classes
        assert model.notes == []
        for one, other in zip(model(folder), original(folder), strict=True):
            assert one.confidence == pytest.approx(other.confidence, abs=1e-3)


def test_published_weights_need_the_recipe_beside_them(trained, tmp_path):
    (tmp_path / 'metrics.json').write_text('{"acc/top1": 12.5}')
    weights, config, _ = publish(trained['video'], tmp_path / 'metrics.json', tmp_path / 'public')
    with pytest.raises(
        ValueError,
        match=r'public\.safetensors has no recipe in it, as checkpoints of tools/train\.py have: give it with --recipe '
        r'\S*public\.py \(recipe= in Python\)$',
    ):
        load(weights)
    model = load(weights, recipe=config, device='cpu')
    assert model.classes == load(trained['video'], device='cpu').classes
    assert model.notes == []


def test_weights_alone_say_what_is_missing(trained, tmp_path):
    content = torch.load(trained['segmentation'], weights_only=True)
    torch.save(content['state_dict'], tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match=r'weights\.pth has no recipe in it, .*: give it with --recipe FILE \(recipe='):
        load(tmp_path / 'weights.pth')
    cfg = Config.fromfile(recipe('segmentation'))
    cfg.model.decode_head.update(bottleneck_kernel_size=3, image_pool_norm=True)
    cfg.test_dataloader.dataset.pop('metainfo')
    cfg.dump(tmp_path / 'recipe.py')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = load(tmp_path / 'weights.pth', recipe=tmp_path / 'recipe.py', device='cpu')
    assert model.notes == [
        f'{tmp_path / "weights.pth"} does not say whether its filters were trained with Weight Standardization; its '
        'recipe has it',
        'the file has no class names: classes are numbered',
    ]


def test_a_recipe_of_another_model_is_refused(trained, tmp_path):
    remedy = r'; give the recipe that it was trained with: --recipe FILE \(recipe= in Python\)$'
    with pytest.raises(ValueError, match=rf'iter_4\.pth is bcn-ws, the recipe gn: \d+ x conv WS in .*{remedy}'):
        load(trained['segmentation'], recipe=recipe('segmentation', 'gn'))
    with pytest.raises(ValueError, match=rf'1 x conv WS in the checkpoint, plain in the model \(the first: .*{remedy}'):
        load(trained['segmentation'], recipe=recipe('segmentation'))
    cfg = Config.fromfile(recipe('video'))
    cfg.model.head.num_classes = 9
    cfg.dump(tmp_path / 'nine.py')
    with pytest.raises(
        ValueError,
        match=rf"iter_4\.pth does not fit its recipe's model: 2 weights have another shape "
        rf'\(head\.fc\.weight, head\.fc\.bias\){remedy}',
    ):
        load(trained['video'], recipe=tmp_path / 'nine.py')
    with pytest.raises(ValueError, match=remedy):
        load(trained['segmentation'], recipe=recipe('video'))


def test_what_is_no_checkpoint_is_named(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"iter_5\.pth' does not exist; nearest existing name: .*iter_4\.pth$"):
        load(trained['video'].with_name('iter_5.pth'))
    with pytest.raises(ValueError, match=r'a file is expected, this is a folder; one of iter_2\.pth, iter_4\.pth$'):
        load(trained['video'].parent)
    with pytest.raises(ValueError, match=r'a file is expected, this is a folder; it has no \.pth file$'):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'gone\.py does not exist; nearest existing'):
        load(trained['video'], recipe=tmp_path / 'gone.py')


def test_code_in_a_checkpoint_does_not_run(trained, tmp_path):
    content = torch.load(trained['video'], weights_only=True)
    content['meta']['cfg'] += f"\nopen({str(tmp_path / 'harm')!r}, 'w')\n"
    torch.save(content, tmp_path / 'c.pth')
    with pytest.raises(ValueError, match=r'c\.pth is not plain data .*, and code in a checkpoint does not run'):
        load(tmp_path / 'c.pth')
    assert not (tmp_path / 'harm').exists()


def test_a_type_in_a_checkpoint_does_not_name_a_function(trained, tmp_path):
    content = torch.load(trained['video'], weights_only=True)
    harm = f'touch {tmp_path / "harm"}'
    content['meta']['cfg'] += f"\nmodel = dict(type='os.system', command={harm!r})\n"
    torch.save(content, tmp_path / 'c.pth')
    with pytest.raises(ValueError, match=r"has type='os\.system': the name of a layer or a transform is expected"):
        load(tmp_path / 'c.pth')
    assert not (tmp_path / 'harm').exists()


@pytest.fixture
def picture(tiny_data):
    return str(sorted((tiny_data / 'seg' / 'leftImg8bit' / 'val').glob('*/*.png'))[0])


@pytest.mark.parametrize('config', ['recipe', 'dumped', 'none', 'folded'])
def test_the_functions_of_mmseg_work_on_our_recipes(
    config, trained, exported, tiny_data, picture, tmp_path, monkeypatch
):
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    checkpoint = trained['segmentation']
    expected = load(checkpoint, device='cpu')(picture).class_map
    if config == 'recipe':
        cfg = Config.fromfile(recipe('segmentation'))
        cfg.model.decode_head.update(bottleneck_kernel_size=3, image_pool_norm=True)
        cfg.dump(tmp_path / 'recipe.py')
        file = tmp_path / 'recipe.py'
    elif config == 'dumped':
        (file,) = checkpoint.parent.glob('*.py')
    elif config == 'folded':
        file, checkpoint = exported / 'folded' / 'folded.py', exported / 'folded' / 'folded.pth'
        monkeypatch.syspath_prepend(exported / 'folded')
    else:
        file = None
    if file is not None:
        model = init_model(str(file), str(checkpoint), device='cpu')
        for image in (picture, load(trained['segmentation'], device='cpu')(picture).image[:, :, ::-1].copy()):
            found = inference_model(model, image).pred_sem_seg.data[0].numpy()
            assert (found == expected).mean() > (0.999 if config == 'folded' else 0.999999)
    inferencer = MMSegInferencer(file and str(file), str(checkpoint), device='cpu', show_progress=False)
    found = inferencer(picture, out_dir=str(tmp_path / 'out'))['predictions']
    assert (found == expected).mean() > (0.999 if config == 'folded' else 0.999999)
    assert len(list((tmp_path / 'out' / 'vis').iterdir())) == 1


def test_recipes_have_what_the_functions_of_mmseg_need():
    from mmseg.registry import VISUALIZERS
    from mmseg.visualization import SegLocalVisualizer

    fragments = Path(recipe('segmentation')).parents[1] / '_base_'
    checked = 0
    for file in sorted(fragments.glob('datasets/*.py')):
        cfg = Config.fromfile(file)
        steps = cfg.test_dataloader.dataset.pipeline
        if steps[-1]['type'] == 'PackSegInputs':
            assert cfg.test_pipeline == steps, file
            assert steps[0] == dict(type='LoadImageFromFile'), file
            checked += 1
    assert checked >= 4
    visualizer = Config.fromfile(fragments / 'default_runtime.py').visualizer
    assert issubclass(VISUALIZERS.get(visualizer.type), SegLocalVisualizer)


def test_the_config_of_a_run_with_another_norm_is_read_by_mmseg(tiny_data, picture, tmp_path):
    from mmseg.apis import inference_model, init_model

    cfg = Config.fromfile(recipe('segmentation', 'bn'))
    cfg.pop('custom_imports')
    cfg.model.decode_head.type = 'ASPPHead'
    for key in ('bottleneck_kernel_size', 'image_pool_norm'):
        cfg.model.decode_head.pop(key)
    for key in ('train_dataloader', 'test_dataloader', 'val_dataloader'):
        cfg[key].sampler = dict(
            type='InfiniteSampler' if key == 'train_dataloader' else 'DefaultSampler', shuffle=False
        )
    cfg.test_evaluator = cfg.val_evaluator = dict(type='IoUMetric')
    hook = dict(type='CheckpointHook', by_epoch=False, interval=2)
    cfg.default_hooks = dict(checkpoint=hook, logger=dict(type='LoggerHook'))
    cfg.visualizer = dict(type='SegLocalVisualizer')
    cfg.param_scheduler = []
    cfg.dump(tmp_path / 'stock.py')
    run_tool(
        *('train.py', tmp_path / 'stock.py', '--norm', 'bcn-ws', '--norm-groups', 8, '--work-dir', tmp_path / 'run'),
        *options('segmentation', tiny_data, 2),
    )
    (dumped,) = (tmp_path / 'run').glob('*.py')
    model = init_model(str(dumped), str(tmp_path / 'run' / 'iter_2.pth'), device='cpu')
    assert any('wsbcn_mm' in name for name in Config.fromfile(dumped).custom_imports.imports)
    found = inference_model(model, picture).pred_sem_seg.data[0].numpy()
    assert np.array_equal(found, load(tmp_path / 'run' / 'iter_2.pth', device='cpu')(picture).class_map)
