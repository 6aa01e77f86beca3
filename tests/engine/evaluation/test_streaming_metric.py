"""Both metrics on one, two and three gloo processes, over loaders with mmengine's own sampler."""

import inspect
import logging
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.logging import MessageHub, MMLogger
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch.utils.data import DataLoader

import wsbcn_mm.segmentation
import wsbcn_mm.video  # noqa: F401
from wsbcn_mm.engine.evaluation.streaming_metric import evaluation_folder
from wsbcn_mm.layers import BatchChannelNorm
from wsbcn_mm.video.data.samples import ClipDataSample
from wsbcn_mm.video.evaluation.metrics import TopKAccuracy

SIZES = (7, 10, 21)
FEWER_THAN_RANKS = 1
WORLDS = (3, 2)
CLASSES = 5
METRICS = {
    'segmentation': dict(type='mmseg.StrictIoUMetric', iou_metrics=['mIoU', 'mDice', 'mFscore']),
    'video': dict(type='TopKAccuracy', topk=(1, 2)),
}
COLLECTIVES = [
    name
    for name, function in inspect.getmembers(dist, inspect.isfunction)
    if 'group' in inspect.signature(function).parameters
    and name.startswith(('all_', 'reduce', 'broadcast', 'gather', 'scatter', 'barrier', 'send', 'recv'))
]


def image(number: int) -> SegDataSample:
    generator = torch.Generator().manual_seed(number)
    label = torch.randint(CLASSES, (1, 4, 5), generator=generator).repeat_interleave(6, 1).repeat_interleave(6, 2)
    label[:, :3, :3] = 255
    prediction = label.where(torch.rand(label.shape, generator=generator) < 0.8, 0) % 255
    sample = SegDataSample(metainfo=dict(img_path=f'{number}.png'))
    sample.gt_sem_seg, sample.pred_sem_seg = PixelData(data=label.byte()), PixelData(data=prediction)
    return sample


def clip(number: int) -> ClipDataSample:
    generator = torch.Generator().manual_seed(number)
    sample = ClipDataSample(metainfo=dict(sample_idx=number, path=f'{number}.mp4'))
    sample.gt_label = torch.randint(CLASSES, (), generator=generator)
    sample.pred_score = torch.rand(CLASSES, generator=generator)
    return sample


SAMPLES = {'segmentation': image, 'video': clip}


def evaluator(task: str, **kwargs) -> Evaluator:
    built = Evaluator(METRICS[task] | kwargs)
    built.dataset_meta = dict(classes=tuple(f'class {index}' for index in range(CLASSES)))
    return built


def evaluate(task: str, size: int, *, round_up: bool = False, batch: int = 1, **kwargs) -> dict[str, float]:
    """Run this rank's part of a validation, like mmengine's loop."""
    data = [SAMPLES[task](number) for number in range(size)]
    sampler = DefaultSampler(data, shuffle=False, round_up=round_up)
    judge = evaluator(task, **kwargs)
    with pytest.MonkeyPatch.context() as patch:
        for name in COLLECTIVES:
            patch.setattr(dist, name, refuse)
            patch.setattr(dist.distributed_c10d, name, refuse)
        for samples in DataLoader(data, batch_size=batch, sampler=sampler, collate_fn=pseudo_collate):
            judge.process(samples)
    return judge.evaluate(size)


def refuse(*_, **__):
    raise AssertionError('a collective while batches are processed: ranks have different numbers of batches')


def worker(rank: int, folder: str) -> None:
    """Run the largest group first. Then its last process leaves, and the others form a new group."""
    torch.set_num_threads(1)
    for world in WORLDS:
        if rank < world:
            store = f'file://{folder}/store{world}'
            dist.init_process_group('gloo', init_method=store, rank=rank, world_size=world)
            results = {
                (task, size): evaluate(task, size, batch=1 + rank, out_dir=f'{folder}/{world}/{task}{size}')
                for task in METRICS
                for size in (*SIZES, FEWER_THAN_RANKS)
            }
            for task in METRICS:
                with pytest.raises(ValueError, match='more than once') as error:
                    evaluate(task, 7, round_up=True)
                results[task, 'padded'] = str(error.value)
            results['evaluation forward'] = forward_without_collectives()
            torch.save(results, f'{folder}/rank{rank}of{world}.pt')
            dist.barrier()
            dist.destroy_process_group()


def forward_without_collectives() -> list[bool]:
    with pytest.MonkeyPatch.context() as patch:
        for name in COLLECTIVES:
            patch.setattr(dist, name, refuse)
            patch.setattr(dist.distributed_c10d, name, refuse)
        layers = [BatchChannelNorm(4, 2, statistics=kind).eval() for kind in ('estimated', 'batch', 'sync')]
        return [bool(layer(torch.randn(2, 4, 3)).isfinite().all()) for layer in layers]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('gloo')
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=max(WORLDS))
    return folder


@pytest.fixture(params=WORLDS, ids='{} ranks'.format)
def ranks(request, folder):
    return [torch.load(folder / f'rank{rank}of{request.param}.pt') for rank in range(request.param)]


@pytest.mark.parametrize('task', METRICS)
@pytest.mark.parametrize('size', [*SIZES, FEWER_THAN_RANKS])
def test_any_number_of_ranks_gives_the_same_bits(ranks, task, size):
    one_rank = evaluate(task, size)
    assert one_rank == evaluate(task, size, batch=4)
    assert len(set(one_rank.values())) > 1
    for result in ranks:
        assert list(result[task, size].items()) == list(one_rank.items())


def test_padding_samplers_are_rejected_on_every_rank(ranks):
    repeated = {2: 1, 3: 2}[len(ranks)]
    first = {'segmentation': '0.png, 1.png', 'video': '0, 1'}
    for result in ranks:
        for task, unit in (('segmentation', 'images'), ('video', 'annotated clips')):
            assert result[task, 'padded'] == (
                f'{repeated} of 7 {unit} were scored more than once (the first: '
                f'{", ".join(first[task].split(", ")[:repeated])}). The sampler pads: set '
                "sampler=dict(type='DefaultSampler', shuffle=False, round_up=False) in val_dataloader and "
                'test_dataloader'
            )


def test_files_are_written_once_and_hold_every_rank(ranks, folder):
    for task in METRICS:
        evaluate(task, 21, out_dir=folder / 'one_rank' / task)
        for name in ('confusion.csv', 'per_class.csv', 'confusion.png'):
            file = folder / str(len(ranks)) / f'{task}21' / name
            assert file.read_bytes() == (folder / 'one_rank' / task / name).read_bytes()


def test_no_forward_pass_of_an_evaluation_communicates(ranks):
    assert {'all_reduce', 'all_gather', 'broadcast', 'barrier', 'all_gather_object'} <= set(COLLECTIVES)
    for result in ranks:
        assert result['evaluation forward'] == [True] * 3


@pytest.fixture
def log(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def process(judge: Evaluator, task: str, numbers) -> Evaluator:
    for number in numbers:
        judge.process([SAMPLES[task](number)])
    return judge


def test_missing_samples_are_an_error_unless_allowed(log):
    with pytest.raises(ValueError, match='were not scored') as error:
        process(evaluator('video'), 'video', [0, 3]).evaluate(7)
    assert str(error.value) == (
        '5 of 7 annotated clips were not scored (the first: 1, 2, 4, ...). Evaluate the whole dataset, or set '
        'allow_missing=True in the evaluator'
    )
    with pytest.raises(ValueError, match=r'^5 of 7 images were not scored\. Evaluate the whole dataset'):
        process(evaluator('segmentation'), 'segmentation', [0, 3]).evaluate(7)
    part = process(evaluator('segmentation', allow_missing=True), 'segmentation', [0, 3]).evaluate(7)
    assert part['mIoU'] > 0
    (record,) = [record for record in log.records if 'each once' in record.getMessage()]
    assert record.getMessage() == '2 of 7 images scored, each once; 5 not scored: the result is over those scored'
    assert record.levelno == logging.WARNING


def test_an_evaluation_leaves_nothing_for_the_next_one():
    judge = process(evaluator('video'), 'video', [0, 0, 1])
    with pytest.raises(ValueError, match=r'^1 of 2 annotated clips were scored more than once \(the first: 0\)'):
        judge.evaluate(2)
    assert process(judge, 'video', [0, 1]).evaluate(2)['acc/num_clips'] == 2
    with pytest.raises(ValueError, match=r'^none of 2 annotated clips was scored: the dataset or the loader is empty$'):
        judge.evaluate(2)
    with pytest.raises(ValueError, match=r'^2 annotated clips were evaluated, but the dataset has 1$'):
        process(judge, 'video', [0, 1]).evaluate(1)


def test_the_folder_follows_the_run_and_the_iteration(tmp_path, monkeypatch):
    logger = MMLogger('folder_of_a_run', log_file=str(tmp_path / 'run.log'))
    hub = MessageHub('folder_of_a_run')
    monkeypatch.setattr(MMLogger, 'get_current_instance', lambda: logger)
    monkeypatch.setattr(MessageHub, 'get_current_instance', lambda: hub)
    assert evaluation_folder(None) == tmp_path / 'evaluation'
    hub.update_info('iter', 1999)
    assert evaluation_folder(None) == tmp_path / 'evaluation' / 'iter_2000'
    assert evaluation_folder('elsewhere') == Path('elsewhere/iter_2000')


def test_a_full_disk_loses_the_files_but_not_the_result(log, tmp_path):
    (tmp_path / 'file').touch()
    assert evaluate('video', 7, out_dir=tmp_path / 'file' / 'folder')['acc/num_clips'] == 7
    assert 'the files of the evaluation are incomplete: ' in log.text


def test_totals_stay_on_the_device_of_the_counts():
    metric = TopKAccuracy()
    metric.add('pairs', torch.ones(3, dtype=torch.int64, device='meta'))
    metric.add('pairs', torch.ones(3, dtype=torch.int64, device='meta'))
    assert metric.totals['pairs'].device.type == 'meta'
