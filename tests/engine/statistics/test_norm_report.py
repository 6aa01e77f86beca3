"""What NormReportHook says and refuses, through a real Runner that trains a toy model."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from wsbcn_mm.engine.hooks import NormReportHook
from wsbcn_mm.engine.statistics.norm_report import check_model
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d


class Points(Dataset):
    """Twelve random images."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return dict(inputs=torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(index)))


class Toy(BaseModel):
    """Two convolutions with a BCN, a GN and whatever else a test adds."""

    def __init__(self, **extra):
        super().__init__()
        self.net = nn.Sequential(WSConv2d(3, 8, 3), BatchChannelNorm(8, 4), nn.Conv2d(8, 4, 1), nn.GroupNorm(2, 4))
        for name, module in extra.items():
            self.add_module(name, module)

    def forward(self, inputs, mode='tensor'):
        out = self.net(inputs)
        return dict(loss=(out**2 - out).mean()) if mode == 'loss' else [dict(out=one) for one in out]


class Count(nn.Module):
    """Keeps running statistics and is no known norm."""

    def __init__(self):
        super().__init__()
        self.register_buffer('running_mean', torch.zeros(3))


class CountSamples(BaseMetric):
    """How many samples were evaluated."""

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(seen=len(results))


def run(tmp_path, model, *, batch_size=2, accumulation=1, validate=False, test=False, train=True):
    """A Runner of four iterations."""
    loader = dict(
        batch_size=batch_size,
        dataset=Points(),
        sampler=dict(type='InfiniteSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    once = loader | dict(sampler=dict(type='DefaultSampler', shuffle=False))
    settings = {}
    if train:
        settings |= dict(
            train_dataloader=loader,
            train_cfg=dict(by_epoch=False, max_iters=4, val_interval=4),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=accumulation),
        )
    if validate:
        settings |= dict(val_dataloader=once, val_cfg=dict(), val_evaluator=Evaluator(CountSamples()))
    if test:
        settings |= dict(test_dataloader=once, test_cfg=dict(), test_evaluator=Evaluator(CountSamples()))
    return Runner(
        model,
        str(tmp_path),
        **settings,
        default_hooks=dict(checkpoint=None, logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='NormReportHook')],
        log_processor=dict(by_epoch=False),
        experiment_name=tmp_path.name,
    )


def log_of(runner):
    (file,) = Path(runner.work_dir).glob('*/*.log')
    return file.read_text()


def test_sync_bn_on_one_process_is_said_to_be_bn(tmp_path):
    runner = run(tmp_path, Toy(bn=nn.SyncBatchNorm(4), more=nn.Sequential(nn.SyncBatchNorm(2))))
    runner.train()
    assert '2 SyncBN layers became BN: a single process has only its own batch\n' in log_of(runner)


def test_layers_and_effective_batch_are_logged_before_the_first_iteration(tmp_path):
    runner = run(tmp_path, Toy(), batch_size=3, accumulation=2)
    runner.train()
    log = log_of(runner)
    # 3 x 8 x 9 + 8 of the first convolution, 2 x (8 + 4) of BCN, 8 x 4 + 4 of the second, 2 x 4 of GN
    parameters = (216 + 8) + 24 + 36 + 8
    layers = f'convs: 1 WS, 1 plain; norms: 1 BCN, 1 GN; {parameters / 1e6:.2f} M trainable parameters'
    batch = 'effective batch 6 = 1 device(s) x 3 x accumulation 2'
    assert layers in log
    assert batch in log
    assert log.index(layers) < log.index(batch) < log.index('Iter(train)')
    assert [m.num_batches_tracked for m in runner.model.modules() if isinstance(m, BatchChannelNorm)] == [4]


def test_the_first_forward_gives_the_census(tmp_path):
    runner = run(tmp_path, Toy(), batch_size=3, accumulation=2)
    runner.train()
    log = log_of(runner)
    lines = [
        '2 of 2 convolutions have a norm after them, seen in the forward pass, WS variant jhu',
        'statistics of 1 BCN: samples 3, positions 16, values per group 32, rate 0.1, weight decay 0',
        'statistics of 1 GN: samples 1, positions 16, values per group 32, weight decay 0',
    ]
    assert [log.count(line) for line in lines] == [1, 1, 1]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in runner.model.modules())


def test_a_compiled_part_is_not_traced(tmp_path):
    model = Toy()
    model.net.compile(backend='eager')
    runner = run(tmp_path, model)
    runner.train()
    assert 'norms: 1 BCN, 1 GN' in log_of(runner)
    assert 'seen in the forward pass' not in log_of(runner)


def test_a_model_without_layers_says_none(tmp_path):
    model = Toy()
    model.net = nn.Flatten()
    model.scale = nn.Linear(1, 1)
    model.forward = lambda inputs, mode: dict(loss=model.scale.weight.mean())
    runner = run(tmp_path, model)
    runner.train()
    assert 'convs: none; norms: none; 0.00 M trainable parameters' in log_of(runner)


def test_a_zeroed_batch_half_stops_the_run(tmp_path):
    model = Toy()
    nn.init.zeros_(model.net[1].weight)
    message = (
        '1 BCN layers (the first: net.1) start with weight 0, so that their channel half divides by sqrt(eps): '
        'set zero_init_residual=False, or zero group_weight (wsbcn_mm.layers.zero_init_last_norm_)'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        run(tmp_path, model).train()
    assert model.net[1].num_batches_tracked == 0


def test_a_zeroed_channel_half_is_a_start_as_the_identity(tmp_path):
    model = Toy()
    nn.init.zeros_(model.net[1].group_weight)
    run(tmp_path, model).train()
    assert model.net[1].group_weight.abs().max() > 0


def test_running_statistics_of_no_known_norm_stop_the_run(tmp_path):
    message = (
        '2 modules keep running statistics and are of no known kind of norm (the first: odd): '
        'weight decay, freezing and synchronisation would miss them'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        run(tmp_path, Toy(odd=Count(), even=Count())).train()


NEVER_UPDATED = (
    '1 BCN layers (the first: net.1) have never updated their statistics: evaluation would normalise with the 0/1 '
    'start; load a trained checkpoint'
)


def test_testing_a_model_that_never_trained_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f'^{re.escape(NEVER_UPDATED)}$'):
        run(tmp_path, Toy(), train=False, test=True).test()


def test_validating_a_model_that_never_trained_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f'^{re.escape(NEVER_UPDATED)}$'):
        run(tmp_path, Toy(), train=False, validate=True).val()


def test_a_layer_that_training_never_reached_is_found_at_validation(tmp_path):
    message = NEVER_UPDATED.replace('net.1', 'unused')
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        run(tmp_path, Toy(unused=BatchChannelNorm(4, 2)), validate=True).train()


def test_validation_after_training_passes(tmp_path):
    runner = run(tmp_path, Toy(), validate=True)
    runner.train()
    assert 'seen: 12' in log_of(runner)


@pytest.mark.parametrize('start', ['frozen at 0/1 by its rate', 'loaded without a count'])
def test_statistics_that_are_meant_pass(start, tmp_path):
    model = Toy()
    if start == 'loaded without a count':
        model.net[1].running_var.fill_(2.0)
    else:
        model.net[1].rate = 0.0
    assert run(tmp_path, model, train=False, test=True).test() == {'seen': 12}


def test_the_hook_looks_inside_a_distributed_wrapper(tmp_path):
    runner = run(tmp_path, Toy(), train=False, test=True)
    runner.model = nn.parallel.DataParallel(runner.model)
    with pytest.raises(ValueError, match=f'^{re.escape(NEVER_UPDATED)}$'):
        NormReportHook().before_test(runner)


def test_norm_eval_that_does_not_reach_bcn_is_refused():
    pytest.importorskip('mmseg')
    from mmseg.models.backbones import ResNet

    def backbone(**norm):
        return ResNet(
            depth=18, base_channels=32, stem_channels=32, norm_cfg=dict(type='BCN', **norm), norm_eval=True,
            zero_init_residual=False,
        )  # fmt: skip

    with pytest.raises(ValueError, match=r'norm_eval=True does not reach 20 BCN layers \(the first: bn1\)'):
        check_model(backbone())
    check_model(backbone(rate=0))
