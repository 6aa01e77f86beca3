"""Where a resumed run continues, what it rejects, and how it converts counters to other devices."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import LinearLR, MultiStepLR, PolyLR

from tests.engine.resume.counted_runs import position, run
from tests.engine.toy_runs import assert_equal, load, log_of
from wsbcn_mm.engine.resume.order import SAMPLER, GlobalOrderSampler
from wsbcn_mm.engine.resume.position import fit_to_run

MILLION = 1_000_000


def changed(file, folder, edit):
    """Path of an edited copy of a checkpoint."""
    checkpoint = load(file)
    edit(checkpoint)
    folder.mkdir()
    torch.save(checkpoint, folder / 'changed.pth')
    return str(folder / 'changed.pth')


def test_a_resumed_run_reads_only_the_samples_that_would_have_come_next(trained, tmp_path):
    whole, asked = trained
    file = f'{whole.work_dir}/iter_3.pth'
    resumed, rest = run(tmp_path / 'rest', iters=6, accumulation=2, interval=6, load_from=file, resume=True)
    assert len(asked) == 12
    assert rest == asked[6:]
    assert_equal(*(load(f'{runner.work_dir}/iter_6.pth')['state_dict'] for runner in (whole, resumed)))
    following = ', '.join(map(str, resumed.train_dataloader.sampler.upcoming(6, 8)))
    assert f'resuming at iteration 3: 6 samples seen, next sample ids {following}, ...' in log_of(resumed)
    assert 'restored the gradients of 1 of 2 micro-batches' in log_of(resumed)
    checkpoint = load(file)
    assert [set(gradients) for gradients in checkpoint['accumulated_gradients']] == [
        set(checkpoint['state_dict']) & set(dict(whole.model.named_parameters()))
    ]
    assert 'accumulated_gradients' not in load(f'{whole.work_dir}/iter_4.pth')


def test_resuming_after_a_million_iterations_reads_no_more_samples(trained, tmp_path):
    def after_a_million(checkpoint):
        checkpoint['meta']['iter'] = MILLION

    file = changed(f'{trained[0].work_dir}/iter_4.pth', tmp_path / 'file', after_a_million)
    resumed, asked = run(tmp_path / 'run', iters=MILLION + 2, accumulation=2, load_from=file, resume=True)
    assert asked == resumed.train_dataloader.sampler.upcoming(2 * MILLION, 4)
    assert 'resuming at iteration 1,000,000: 2,000,000 samples seen, next sample ids' in log_of(resumed)
    assert ('the run has 500,001 optimizer steps in all, and had 3 when the checkpoint was written') in log_of(resumed)


def test_another_batch_is_rejected(trained, tmp_path):
    file = f'{trained[0].work_dir}/iter_4.pth'
    for settings, batch in (
        (dict(accumulation=4), '8 = 1 device(s) x 2 x accumulation 4'),
        (
            dict(accumulation=4, batch_size=1),
            '4 = 1 device(s) x 1 x accumulation 4',
        ),
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared in full
            run(tmp_path / f'{len(settings)}', iters=6, load_from=file, resume=True, **settings)
        assert str(error.value) == (
            f'the checkpoint was trained with effective batch 4 = 1 device(s) x 2 x accumulation 2, and this run has '
            f'{batch}. To resume, use --global-batch 4 --per-device 2. To start a new run from its weights, omit '
            '--resume and use --cfg-options load_from=FILE'
        )


def test_a_new_run_may_take_the_weights_with_any_batch(trained, tmp_path):
    file = f'{trained[0].work_dir}/iter_3.pth'
    runner, asked = run(tmp_path / 'new', iters=1, batch_size=3, load_from=file)
    assert asked == runner.train_dataloader.sampler.upcoming(0, 3)
    assert 'resuming at' not in log_of(runner)


def test_other_data_other_precision_and_missing_gradients_are_logged(trained, tmp_path):
    def edit(checkpoint):
        checkpoint.pop('accumulated_gradients')
        checkpoint['meta']['position']['optim_wrapper'] = 'Bf16OptimWrapper'

    file = changed(f'{trained[0].work_dir}/iter_3.pth', tmp_path / 'file', edit)
    resumed, _ = run(tmp_path / 'run', length=23, iters=6, accumulation=2, load_from=file, resume=True)
    assert (
        'the training data have 23 samples, and had 24 when the checkpoint was written: their order differs '
        'from here on'
    ) in log_of(resumed)
    assert (
        'the run trains with OptimWrapper, and trained with Bf16OptimWrapper when the checkpoint was written: the '
        'precision differs from here on (--amp)'
    ) in log_of(resumed)
    assert (
        'the checkpoint is from the middle of an accumulation and lacks the gradients of its 1 device(s): the next '
        'step misses 1 of 2 micro-batches'
    ) in log_of(resumed)


def test_augmentation_without_seeds_is_logged(trained, tmp_path):
    settings = dict(iters=5, accumulation=2, load_from=f'{trained[0].work_dir}/iter_4.pth', resume=True)
    resumed, _ = run(tmp_path / 'run', wrap=lambda data: data, **settings)
    message = (
        'the training data are not wrapped in SeededSamples, as tools/train.py does: their augmentation differs from '
        'that of the previous run'
    )
    assert message in log_of(resumed)
    assert message not in log_of(run(tmp_path / 'wrapped', **settings)[0])


def test_a_sampler_without_a_seed_of_the_config_keeps_the_one_it_drew(trained, tmp_path):
    def other_seed(checkpoint):
        checkpoint['meta']['position']['sampler_seed'] = 123

    file = changed(f'{trained[0].work_dir}/iter_4.pth', tmp_path / 'file', other_seed)
    _, asked = run(tmp_path / 'run', iters=5, accumulation=2, load_from=file, resume=True)
    assert asked == GlobalOrderSampler(range(24), seed=123).upcoming(8, 2)


def test_a_checkpoint_without_a_position_is_resumed_unchanged(trained, tmp_path):
    file = changed(
        f'{trained[0].work_dir}/iter_4.pth', tmp_path / 'file', lambda checkpoint: checkpoint['meta'].pop('position')
    )
    _, asked = run(tmp_path / 'run', iters=5, batch_size=3, load_from=file, resume=True)
    assert asked == GlobalOrderSampler(range(24), seed=0).upcoming(12, 3)


# Other devices


def checkpoint_of(was, iteration, *schedulers):
    return dict(
        meta=dict(iter=iteration, position=was._asdict()), param_schedulers=[s.state_dict() for s in schedulers]
    )


@pytest.mark.parametrize(
    ('was', 'iteration', 'now', 'expected'),
    [
        (position(8), 10, position(2, accumulation=4), 40),
        (position(2, 2, 4), 40, position(8, 1, 2), 20),
        (position(1, 4), 7, position(4), 7),
        (position(2, accumulation=3), 4, position(2, accumulation=3), 4),
    ],
)
def test_the_iteration_becomes_that_of_the_same_optimizer_step(was, iteration, now, expected):
    checkpoint = checkpoint_of(was, iteration)
    message = fit_to_run(checkpoint, now)
    assert checkpoint['meta']['iter'] == expected
    assert (message is None) == (was.devices == now.devices)
    if message:
        assert message.startswith(f'{now.devices} instead of {was.devices} device(s): accumulation {now.accumulation} ')


def test_the_middle_of_an_accumulation_stays_with_its_devices():
    checkpoint = checkpoint_of(position(2, accumulation=4), 6)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared in full
        fit_to_run(checkpoint, position(4, accumulation=2))
    assert str(error.value) == (
        'the checkpoint is from the middle of an accumulation (2 of 4 micro-batches on 2 device(s)), which cannot '
        'continue on 4: resume on 2, or from a checkpoint at a multiple of 4 iterations'
    )


SCHEDULES = [
    [partial(LinearLR, start_factor=0.1, begin=0, end=4), partial(PolyLR, power=0.9, eta_min=1e-4, begin=4, end=20)],
    [partial(MultiStepLR, milestones=[8, 16], gamma=0.1, end=20)],
]


def schedule(schedulers, ticks):
    """The optimizer and the schedulers of 20 optimizer steps of `ticks` ticks each."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.04)
    counts = ('begin', 'end')
    built = []
    for one in schedulers:
        arguments = {name: value * ticks if name in counts else value for name, value in one.keywords.items()}
        if 'milestones' in arguments:
            arguments['milestones'] = [value * ticks for value in arguments['milestones']]
        built.append(one.func(optimizer, by_epoch=False, **arguments))
    return optimizer, built


def advance(optimizer, schedulers, steps, ticks):
    """Learning rates after each optimizer step."""
    rates = []
    for _ in range(steps):
        optimizer.step()
        for _ in range(ticks):
            for scheduler in schedulers:
                scheduler.step()
        rates.append(optimizer.param_groups[0]['lr'])
    return rates


@pytest.mark.parametrize('schedulers', SCHEDULES, ids=['warm-up and poly', 'drops'])
@pytest.mark.parametrize(('ticks', 'others'), [(4, 1), (1, 8), (4, 8)])
def test_a_schedule_continues_in_other_units(schedulers, ticks, others):
    """mmengine's hook counts forward passes, ours counts optimizer steps."""
    optimizer, first = schedule(schedulers, ticks)
    advance(optimizer, first, 6, ticks)
    was, now = position(8, accumulation=ticks, ticks=ticks), position(4, accumulation=2 * ticks, ticks=others)
    checkpoint = checkpoint_of(was, 6 * ticks, *first)
    fit_to_run(checkpoint, now)
    other, second = schedule(schedulers, others)
    other.load_state_dict(optimizer.state_dict())
    for scheduler, state in zip(second, checkpoint['param_schedulers'], strict=True):
        scheduler.load_state_dict(state)
    expected = advance(*schedule(schedulers, others), 20, others)
    rates = advance(other, second, 14, others)
    assert len({round(rate, 9) for rate in rates}) > 1
    np.testing.assert_allclose(rates, expected[6:], rtol=0.02, atol=1e-4)


def test_a_finished_run_logs_that_nothing_is_left(trained, tmp_path):
    file = f'{trained[0].work_dir}/iter_6.pth'
    resumed, asked = run(tmp_path / 'run', iters=6, accumulation=2, load_from=file, resume=True)
    message = 'the checkpoint is at iteration 6, and the run has 6: nothing is left to train'
    assert message in log_of(resumed)
    assert 'resuming at' not in log_of(resumed)
    assert asked == []


BASES = Path(__file__).parents[3] / 'configs' / '_base_'


def test_recipes_resume_exactly():
    runtime = Config.fromfile(BASES / 'default_runtime.py')
    assert {'AccumulatedGradientsHook', 'IterationSeedHook', 'ResumePositionHook'} <= {
        hook.type for hook in runtime.default_hooks.values()
    }
    for path in (BASES / 'datasets').glob('*.py'):
        assert Config.fromfile(path).train_dataloader.get('sampler', dict(type=SAMPLER)).type == SAMPLER, path.name
