"""Class lists in checkpoints, and checkpoints that are rejected with other data, with real Runners and files."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from wsbcn_mm.engine.checkpoint.class_guard import class_list
from wsbcn_mm.engine.hooks import ClassGuardHook

CLASSES = ('road', 'wall', 'fence')
SHORT = {names: class_list(names).sha256[:12] for names in (CLASSES, ('road', 'fence', 'wall'), CLASSES[:2])}


class Points(Dataset):
    def __init__(self, classes):
        self.metainfo = {'classes': classes} if classes else {}

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {'inputs': torch.ones(3)}


class Model(BaseModel):
    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(3, classes)

    def forward(self, inputs, mode='tensor'):
        out = self.fc(inputs)
        return {'loss': out.square().mean()} if mode == 'loss' else [out]


RUNS = iter(range(1000))


def run(folder, classes, load_from=None, resume=False, **cfg):
    loader = {
        'batch_size': 2,
        'dataset': Points(classes),
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'collate_fn': {'type': 'default_collate'},
    }
    return Runner(
        Model(len(classes or CLASSES)),
        str(folder),
        train_dataloader=loader,
        train_cfg={'by_epoch': False, 'max_iters': 1},
        test_dataloader=loader,
        test_cfg={},
        test_evaluator=[],
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1}},
        default_hooks={'checkpoint': {'type': 'SafeCheckpointHook', 'by_epoch': False, 'interval': 1}},
        custom_hooks=[ClassGuardHook()],
        log_processor={'by_epoch': False},
        experiment_name=f'classes{next(RUNS)}',
        cfg={'load_from': load_from, 'resume': resume} | cfg,
        load_from=load_from,
        resume=resume,
    )


def log_of(runner):
    return ''.join(file.read_text() for file in Path(runner.work_dir).glob('*/*.log'))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    with DefaultScope.overwrite_default_scope('mmengine'):
        run(folder, CLASSES).train()
    return str(folder / 'iter_1.pth')


def changed(file, folder, change):
    content = torch.load(file, weights_only=True)
    change(content['meta'])
    path = folder / 'changed.pth'
    torch.save(content, path)
    return str(path)


def test_the_list_and_its_hash_are_in_the_checkpoint(trained):
    meta = torch.load(trained, weights_only=True)['meta']
    assert tuple(meta['dataset_meta']['classes']) == CLASSES
    assert meta['classes_sha256'] == hashlib.sha256(b'road\nwall\nfence').hexdigest()
    assert meta['num_classes'] == 3


def test_the_hash_is_of_the_order_and_not_of_the_form_of_unicode():
    assert class_list(['a', 'b']).sha256 != class_list(['b', 'a']).sha256
    assert class_list(['caf\u00e9']) == class_list(['cafe\u0301'])


@pytest.mark.parametrize('resume', [False, True])
def test_the_same_list_is_accepted(trained, tmp_path, resume):
    runner = run(tmp_path, list(CLASSES), trained, resume)
    runner.train()
    assert f'the checkpoint has the classes of the data: 3 classes, sha256 {SHORT[CLASSES]}' in log_of(runner)


def test_another_order_is_rejected_with_the_first_class_that_differs(trained, tmp_path):
    other = ('road', 'fence', 'wall')
    message = (
        f'the checkpoint was trained with another class list (3 classes, sha256 {SHORT[CLASSES]}) than the data have '
        f"(3 classes, sha256 {SHORT[other]}): class 1 is 'wall' in the checkpoint and 'fence' in the data. "
    )
    meant = 'If this is intended, as for a new head: --cfg-options allow_class_mismatch=True'
    with pytest.raises(ValueError, match=f'^{re.escape(message + meant)}$'):
        run(tmp_path / 'train', other, trained).train()
    with pytest.raises(ValueError, match=f'^{re.escape(message + meant)}$'):
        run(tmp_path / 'test', other, trained).test()
    resumed = (
        'A resumed run must keep its class list. To start a new run from its weights, use --cfg-options load_from=FILE '
        'allow_class_mismatch=True instead of --resume'
    )
    for allowed in (False, True):
        with pytest.raises(ValueError, match=f'^{re.escape(message + resumed)}$'):
            run(tmp_path / 'resume', other, trained, True, allow_class_mismatch=allowed).train()
    assert not list(tmp_path.rglob('*.pth'))


def test_a_new_head_is_allowed_on_request(trained, tmp_path):
    with pytest.raises(ValueError, match=r"class 2 is 'fence' in the checkpoint and missing in the data\. If this"):
        run(tmp_path / 'fewer', CLASSES[:2], trained).train()
    with pytest.raises(ValueError, match=r"class 3 is missing in the checkpoint and 'car' in the data\. If this"):
        run(tmp_path / 'more', (*CLASSES, 'car'), trained).train()
    runner = run(tmp_path / 'meant', CLASSES[:2], trained, allow_class_mismatch=True)
    runner.train()
    assert 'Loaded anyway (allow_class_mismatch=True)' in log_of(runner)
    assert torch.load(tmp_path / 'meant/iter_1.pth', weights_only=True)['meta']['num_classes'] == 2


def test_a_checkpoint_without_the_hash_is_compared_by_its_list_and_a_missing_list_is_logged(trained, tmp_path):
    old = changed(trained, tmp_path, lambda meta: meta.pop('classes_sha256'))
    with pytest.raises(ValueError, match=r"class 1 is 'wall' in the checkpoint and 'fence' in the data"):
        run(tmp_path / 'other', ('road', 'fence', 'wall'), old).train()
    former = changed(trained, tmp_path, lambda meta: meta.update(CLASSES=meta.pop('dataset_meta')['classes']))
    with pytest.raises(ValueError, match=r"class 1 is 'wall' in the checkpoint and 'fence' in the data"):
        run(tmp_path / 'former', ('road', 'fence', 'wall'), former).train()
    older = changed(trained, tmp_path, lambda meta: meta.pop('dataset_meta'))
    runner = run(tmp_path / 'none', ('road', 'fence', 'wall'), older)
    runner.train()
    assert 'the checkpoint has no class names to compare' in log_of(runner)
    runner = run(tmp_path / 'unnamed', None, trained)
    runner.train()
    assert 'the data have no class names to compare' in log_of(runner)


def test_weights_loaded_before_the_data_are_compared_before_the_test(trained, tmp_path):
    runner = run(tmp_path, ('road', 'fence', 'wall'))
    runner.load_checkpoint(trained)
    with pytest.raises(ValueError, match=r"class 1 is 'wall' in the checkpoint and 'fence' in the data"):
        runner.test()


def test_weights_loaded_without_data_are_compared_with_the_recipes_test_set(trained, tmp_path):
    dataset = {'type': BaseDataset, 'ann_file': 'gone.json', 'metainfo': {'classes': ('road', 'fence', 'wall')}}
    with pytest.raises(
        ValueError, match=r"class 1 is 'wall' in the checkpoint and 'fence' in the data\. .*: --cfg-options allow_class"
    ):
        run(tmp_path / 'other', CLASSES, test_dataloader={'dataset': dataset}).load_checkpoint(trained)
    dataset['metainfo']['classes'] = CLASSES
    runner = run(tmp_path / 'same', CLASSES, test_dataloader={'dataset': dataset})
    runner.load_checkpoint(trained)
    assert 'the checkpoint has the classes of the data: 3 classes' in log_of(runner)
    runner = run(tmp_path / 'unknown', CLASSES, test_dataloader={'dataset': {'type': 'Nowhere'}})
    runner.load_checkpoint(trained)
    assert 'class names are not compared yet, because the test set cannot be built: ' in log_of(runner)
