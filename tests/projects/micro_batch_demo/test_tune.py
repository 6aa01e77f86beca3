"""The search for learning rates trains the same recipes in a plain loop."""

import csv
import itertools
import math

import pytest
from mmengine.registry import DATASETS, init_default_scope

from projects.micro_batch_demo.tune import (
    COLUMNS,
    append,
    batches,
    evaluate,
    known_trials,
    samples_in_memory,
    train,
    trial_recipe,
)
from projects.toy_data import data
from wsbcn_mm.layers import BatchChannelNorm


def test_batches_pass_over_the_data_before_they_repeat():
    got = list(batches(5, 2, 5, seed=0))
    flat = list(itertools.chain.from_iterable(got))
    assert [len(batch) for batch in got] == [2] * 5
    assert sorted(flat[:5]) == sorted(flat[5:]) == list(range(5))
    assert flat[:5] != flat[5:]
    assert got == list(batches(5, 2, 5, seed=0)) != list(batches(5, 2, 5, seed=1))


@pytest.mark.parametrize('task', ['segmentation', 'video'])
def test_trial_recipe_changes_rates_in_every_part(task):
    cfg = trial_recipe(task, 'bcn-ws', '1xb1-acc16', lr=0.3, rate=0.01)
    assert cfg.optim_wrapper.optimizer.lr == 0.3
    assert cfg.optim_wrapper.accumulative_counts == 16
    parts = [part for part in cfg.model.values() if isinstance(part, dict) and 'norm_cfg' in part]
    assert [part.norm_cfg.rate for part in parts] == [0.01] * {'segmentation': 2, 'video': 1}[task]
    assert all(part.norm_cfg.warmup for part in parts)
    assert 'rate' not in trial_recipe(task, 'gn', '1xb1-acc1', lr=0.1, rate=0.01).model.backbone.norm_cfg


def test_a_trial_in_the_file_is_known(tmp_path):
    path = tmp_path / 'tuning.csv'
    assert known_trials(path) == set()
    trial = dict(task='video', norm='bcn-ws', setting='1xb1-acc1', lr=0.05, rate=0.1, warmup=True, decay=False, seed=0)
    append(path, {**trial, 'metric': 50.0, 'last_loss': 1.0, 'seconds': 2.0})
    append(path, {**trial, 'seed': 1, 'metric': 51.0, 'last_loss': 1.0, 'seconds': 2.0})
    assert known_trials(path) == {tuple(str(v) for v in {**trial, 'seed': seed}.values()) for seed in (0, 1)}
    with path.open() as file:
        assert tuple(next(csv.reader(file))) == COLUMNS


@pytest.mark.parametrize('task', ['segmentation', 'video'])
def test_a_short_trial_trains_and_is_evaluated(task, tmp_path):
    if task == 'segmentation':
        data.build_segmentation(
            tmp_path, n_train=4, n_val=2, size=64, digit_size=(28, 52), digits_per_scene=(2, 3), digits=(0, 1, 4)
        )
    else:
        data.build_video(tmp_path, n_train=8, n_val=8, size=40)
    cfg = trial_recipe(task, 'bcn-ws', '1xb1-acc1', lr=0.01)
    cfg.train_cfg.max_iters = 3
    folder = {'segmentation': 'seg', 'video': 'video'}[task]
    init_default_scope(cfg.default_scope)
    loaded = {}
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.data_root = f'{tmp_path}/{folder}/'
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        loaded[split] = samples_in_memory(dataset, split), dataset.metainfo
    model, loss = train(cfg, loaded['train'][0], seed=0)
    assert math.isfinite(loss)
    _, same = train(cfg, loaded['train'][0], seed=0)
    assert same == loss
    decayed, _ = train(cfg, loaded['train'][0], seed=0, decay=True)
    rates = {norm.rate for norm in decayed.modules() if isinstance(norm, BatchChannelNorm)}
    assert len(rates) == 1
    assert 0 < rates.pop() < 0.1
    metric = evaluate(model, cfg, *loaded['val'], {'segmentation': 'mIoU', 'video': 'acc/top1'}[task])
    assert 0 <= metric <= 100
