"""Where a resumed run goes on, what it refuses, and how it counts with other devices."""

import copy
import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import LinearLR, MultiStepLR, PolyLR
from torch.utils.data import Dataset

from tests.engine.toy_runs import Points, Toy, assert_equal, load, log_of, runner_of
from wsbcn_mm.engine.recipe.batch_plan import plan_batch
from wsbcn_mm.engine.resume.accumulation import gather_states
from wsbcn_mm.engine.resume.order import SAMPLER, GlobalOrderSampler, IterationSeedHook, SeededSamples
from wsbcn_mm.engine.resume.position import (
    Position,
    fit_to_run,
    plan_batch_as_before,
    planned_recipe,
    position_to_resume,
)

POSITION = dict(type='ResumePositionHook')
MILLION = 1_000_000


class Counted(Dataset):
    """Remembers which samples it was asked for."""

    def __init__(self, length=24):
        self.asked, self.length, self.points = [], length, Points()

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.asked.append(index)
        return self.points[index]


def run(folder, *hooks, length=24, iters, wrap=SeededSamples, **settings):
    """A trained Runner whose samples come in random order, and the samples it asked for."""
    runner = runner_of(folder, Toy(), POSITION, *hooks, iters=iters, **settings)
    runner._train_dataloader.update(dataset=wrap(Counted(length)), sampler=dict(type='GlobalOrderSampler'))
    runner.train()
    return runner, runner.train_dataloader.dataset.asked


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run of six iterations of two samples, an optimizer step after every second, with all its checkpoints."""
    return run(tmp_path_factory.mktemp('trained') / 'whole', iters=6, accumulation=2, interval=1)


def changed(file, folder, edit):
    """Path of an edited copy of a checkpoint."""
    checkpoint = load(file)
    edit(checkpoint)
    folder.mkdir()
    torch.save(checkpoint, folder / 'changed.pth')
    return str(folder / 'changed.pth')


def test_a_run_that_goes_on_reads_what_would_have_come_next_and_nothing_else(trained, tmp_path):
    whole, asked = trained
    file = f'{whole.work_dir}/iter_3.pth'
    resumed, rest = run(tmp_path / 'rest', iters=6, accumulation=2, interval=6, load_from=file, resume=True)
    assert len(asked) == 12
    assert rest == asked[6:]
    assert_equal(*(load(f'{runner.work_dir}/iter_6.pth')['state_dict'] for runner in (whole, resumed)))
    following = ', '.join(map(str, resumed.train_dataloader.sampler.upcoming(6, 8)))
    assert f'resuming at iteration 3: 6 samples seen, next sample ids {following}, ...' in log_of(resumed)
    assert 'the gradients of 1 of 2 micro-batches are restored' in log_of(resumed)
    checkpoint = load(file)
    assert [set(gradients) for gradients in checkpoint['accumulated_gradients']] == [
        set(checkpoint['state_dict']) & set(dict(whole.model.named_parameters()))
    ]
    assert 'accumulated_gradients' not in load(f'{whole.work_dir}/iter_4.pth')


def test_going_on_after_a_million_iterations_reads_no_more(trained, tmp_path):
    def after_a_million(checkpoint):
        checkpoint['meta']['iter'] = MILLION

    file = changed(f'{trained[0].work_dir}/iter_4.pth', tmp_path / 'file', after_a_million)
    resumed, asked = run(tmp_path / 'run', iters=MILLION + 2, accumulation=2, load_from=file, resume=True)
    assert asked == resumed.train_dataloader.sampler.upcoming(2 * MILLION, 4)
    assert 'resuming at iteration 1,000,000: 2,000,000 samples seen, next sample ids' in log_of(resumed)
    assert ('the run has 500,001 optimizer steps, and had 3 when the checkpoint was written') in log_of(resumed)


def test_another_batch_is_refused(trained, tmp_path):
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
            f'{batch}. To continue: --global-batch 4 --per-device 2. To start a new run from its weights: '
            '--cfg-options load_from=FILE instead of --resume'
        )


def test_a_new_run_may_take_the_weights_with_any_batch(trained, tmp_path):
    file = f'{trained[0].work_dir}/iter_3.pth'
    runner, asked = run(tmp_path / 'new', iters=1, batch_size=3, load_from=file)
    assert asked == runner.train_dataloader.sampler.upcoming(0, 3)
    assert 'resuming at' not in log_of(runner)


def test_other_data_other_precision_and_missing_gradients_are_said(trained, tmp_path):
    def edit(checkpoint):
        checkpoint.pop('accumulated_gradients')
        checkpoint['meta']['position']['optim_wrapper'] = 'Bf16OptimWrapper'

    file = changed(f'{trained[0].work_dir}/iter_3.pth', tmp_path / 'file', edit)
    resumed, _ = run(tmp_path / 'run', length=23, iters=6, accumulation=2, load_from=file, resume=True)
    assert (
        'the training data have 23 samples, and had 24 when the checkpoint was written: their order differs from '
        'here on'
    ) in log_of(resumed)
    assert (
        'the run trains with OptimWrapper, and trained with Bf16OptimWrapper when the checkpoint was written: the '
        'precision changes from here on (--amp)'
    ) in log_of(resumed)
    assert (
        'the checkpoint is from the middle of an accumulation and lacks gradients of its 1 device(s): the next step '
        'misses 1 of 2 micro-batches'
    ) in log_of(resumed)


def test_augmentation_without_seeds_is_said(trained, tmp_path):
    settings = dict(iters=5, accumulation=2, load_from=f'{trained[0].work_dir}/iter_4.pth', resume=True)
    resumed, _ = run(tmp_path / 'run', wrap=lambda data: data, **settings)
    said = (
        'the training data are not wrapped in SeededSamples, as tools/train.py does: their augmentation differs from '
        'that of the run before'
    )
    assert said in log_of(resumed)
    assert said not in log_of(run(tmp_path / 'wrapped', **settings)[0])


def test_a_sampler_without_a_seed_of_the_config_keeps_the_one_it_drew(trained, tmp_path):
    def other_seed(checkpoint):
        checkpoint['meta']['position']['sampler_seed'] = 123

    file = changed(f'{trained[0].work_dir}/iter_4.pth', tmp_path / 'file', other_seed)
    _, asked = run(tmp_path / 'run', iters=5, accumulation=2, load_from=file, resume=True)
    assert asked == GlobalOrderSampler(range(24), seed=123).upcoming(8, 2)


def test_a_checkpoint_that_says_nothing_of_its_batch_goes_on_as_it_is(trained, tmp_path):
    file = changed(
        f'{trained[0].work_dir}/iter_4.pth', tmp_path / 'file', lambda checkpoint: checkpoint['meta'].pop('position')
    )
    _, asked = run(tmp_path / 'run', iters=5, batch_size=3, load_from=file, resume=True)
    assert asked == GlobalOrderSampler(range(24), seed=0).upcoming(12, 3)


class Draws(Hook):
    """What each generator draws in an iteration."""

    def __init__(self):
        self.drawn = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.drawn[batch_idx] = random.random(), np.random.rand(), torch.rand(1).item()


def test_random_numbers_of_an_iteration_do_not_depend_on_what_came_before(trained, tmp_path):
    plain, validated, resumed = Draws(), Draws(), Draws()
    run(tmp_path / 'plain', plain, iters=4)
    run(tmp_path / 'validated', validated, iters=4, val_interval=1)
    file = f'{trained[0].work_dir}/iter_2.pth'
    run(tmp_path / 'resumed', resumed, iters=4, accumulation=2, load_from=file, resume=True)
    assert validated.drawn == plain.drawn
    assert resumed.drawn == {iteration: plain.drawn[iteration] for iteration in (2, 3)}
    assert len(set(plain.drawn.values())) == 4


def test_ranks_draw_different_numbers(trained, monkeypatch):
    runner, _ = trained
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr('wsbcn_mm.engine.resume.order.get_rank', lambda rank=rank: rank)
        IterationSeedHook().before_train_iter(runner)
        drawn.append(torch.rand(1).item())
    assert drawn[0] != drawn[1]


# Other devices


def position(devices, per_device=1, accumulation=1, ticks=1):
    return Position(devices, per_device, accumulation, ticks, 100, 24, 0)


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
    said = fit_to_run(checkpoint, now)
    assert checkpoint['meta']['iter'] == expected
    assert (said is None) == (was.devices == now.devices)
    if said:
        assert said.startswith(f'{now.devices} instead of {was.devices} device(s): accumulation {now.accumulation} ')


def test_the_middle_of_an_accumulation_stays_with_its_devices():
    checkpoint = checkpoint_of(position(2, accumulation=4), 6)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared in full
        fit_to_run(checkpoint, position(4, accumulation=2))
    assert str(error.value) == (
        'the checkpoint is from the middle of an accumulation (2 of 4 micro-batches on 2 device(s)), which cannot '
        'continue on 4: resume on 2, or from a checkpoint of an iteration that 4 divides'
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
def test_a_schedule_goes_on_in_other_units(schedulers, ticks, others):
    """Of mmengine's hook, which counts forward passes, and of ours, which counts optimizer steps."""
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


@pytest.fixture
def recipe(tmp_path):
    return Config(
        dict(
            work_dir=str(tmp_path / 'work'),
            train_dataloader=dict(batch_size=1),
            auto_scale_lr=dict(base_batch_size=8, rule='linear', enable=False),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.08)),
            param_scheduler=[dict(type='PolyLR', begin=0, end=100, by_epoch=False)],
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=100, val_interval=10),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=10)),
        )
    )


def left_behind(cfg, was):
    """The work_dir of a run that was killed."""
    folder = Path(cfg.work_dir)
    folder.mkdir(exist_ok=True)
    torch.save(dict(meta=dict(iter=10, position=was._asdict())), folder / 'iter_10.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_10.pth'))
    cfg.resume = True


def test_a_recipe_that_ran_as_it_is_keeps_length_and_learning_rate_on_other_devices(recipe):
    """It was tuned for 8 samples per step and trained with 2."""
    left_behind(recipe, position(2))
    lines = plan_batch_as_before(recipe, 1)
    assert lines[0] == 'batch plan: effective batch 2 = 1 device(s) x 1 x accumulation 2'
    assert (recipe.train_cfg.max_iters, recipe.optim_wrapper.accumulative_counts) == (200, 2)
    assert recipe.optim_wrapper.optimizer.lr == 0.08
    assert recipe.default_hooks.param_scheduler.type == 'ParamSchedulerPerStepHook'


def test_a_run_that_was_given_its_batch_keeps_it_on_other_devices(recipe):
    """`--global-batch 16 --per-device 2` on four devices, then two."""
    before = copy.deepcopy(recipe)
    plan_batch(before, 4, global_batch=16, per_device=2)
    left_behind(recipe, position(4, 2, 2))
    plan_batch_as_before(recipe, 2)
    assert (recipe.train_dataloader.batch_size, recipe.optim_wrapper.accumulative_counts) == (2, 4)
    assert recipe.train_cfg.max_iters == 2 * before.train_cfg.max_iters
    assert recipe.optim_wrapper.optimizer.lr == before.optim_wrapper.optimizer.lr == 0.16


def position_of(cfg, devices):
    """Of a run with a planned config."""
    accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
    loader, loop = cfg.train_dataloader, cfg.train_cfg
    return Position(devices, loader.batch_size, accumulation, 1, loop.max_iters, 24, 0, planned_recipe(cfg))


@pytest.mark.parametrize('batch', [None, 2, 8, 16])
def test_devices_may_change_again_and_again(recipe, batch):
    """A recipe of one sample, tuned for 8, on two devices, as it is or given a batch; then on one, on one, on two."""
    first = copy.deepcopy(recipe)
    plan_batch(first, 2, global_batch=batch)
    was = position_of(first, 2)
    for devices in (1, 1, 2, 2):
        cfg = copy.deepcopy(recipe)
        left_behind(cfg, was)
        plan_batch_as_before(cfg, devices)
        now = position_of(cfg, devices)
        assert now.batch.samples == was.batch.samples == (batch or 2)
        assert now.optimizer_steps == was.optimizer_steps
        assert cfg.optim_wrapper.optimizer.lr == first.optim_wrapper.optimizer.lr
        was = now
    assert cfg.train_cfg.max_iters == first.train_cfg.max_iters


@pytest.mark.parametrize('devices', [1, 2])
def test_a_recipe_that_is_made_longer_is_longer(recipe, devices):
    """By a factor that is also that of its batch and the one it was tuned for."""
    first = copy.deepcopy(recipe)
    plan_batch(first, 2)
    left_behind(recipe, position_of(first, 2))
    recipe.train_cfg.max_iters *= 4
    plan_batch_as_before(recipe, devices)
    assert position_of(recipe, devices).optimizer_steps == 400


def test_the_batch_is_planned_as_ever_otherwise(recipe):
    left_behind(recipe, position(4, accumulation=2))
    asked, expected = copy.deepcopy(recipe), copy.deepcopy(recipe)
    assert plan_batch_as_before(asked, 2, global_batch=16) == plan_batch(expected, 2, global_batch=16)
    same, expected = copy.deepcopy(recipe), copy.deepcopy(recipe)
    assert plan_batch_as_before(same, 4) == plan_batch(expected, 4)
    anew, expected = copy.deepcopy(recipe), copy.deepcopy(recipe)
    anew.resume = False
    assert plan_batch_as_before(anew, 2) == plan_batch(expected, 2)


def test_what_the_checkpoint_to_resume_says_is_found(recipe, trained, tmp_path):
    assert position_to_resume(recipe) is None
    was = position(4)
    left_behind(recipe, was)
    assert position_to_resume(recipe) == was
    work_dir = tmp_path / 'work'
    (work_dir / 'last_checkpoint').unlink()
    assert position_to_resume(recipe) == was
    shutil.copy(f'{trained[0].work_dir}/iter_3.pth', work_dir)
    recipe.load_from = str(work_dir / 'iter_3.pth')
    assert position_to_resume(recipe) == Position(1, 2, 2, 2, 6, 24, 0, optim_wrapper='OptimWrapper')
    for content in (b'nothing', b''):
        (work_dir / 'iter_3.pth').write_bytes(content)
        assert position_to_resume(recipe) is None
    torch.save(dict(meta=dict(position=Counted())), work_dir / 'iter_3.pth')
    assert position_to_resume(recipe) is None
    recipe.load_from = 'https://example.org/iter_3.pth'
    assert position_to_resume(recipe) is None


def test_a_damaged_checkpoint_leaves_the_batch_to_the_one_before(recipe):
    left_behind(recipe, position(4))
    for name in ('iter_20.pth', 'last_checkpoint'):
        (Path(recipe.work_dir) / name).write_bytes(f'{recipe.work_dir}/iter_20.pth'.encode())
    assert position_to_resume(recipe) == position(4)
    (Path(recipe.work_dir) / 'last_checkpoint').write_text('s3://runs/iter_20.pth')
    assert position_to_resume(recipe) is None


def test_a_finished_run_says_that_nothing_is_left(trained, tmp_path):
    file = f'{trained[0].work_dir}/iter_6.pth'
    resumed, asked = run(tmp_path / 'run', iters=6, accumulation=2, load_from=file, resume=True)
    said = 'the checkpoint is of iteration 6, and the run has 6: nothing is left to train'
    assert said in log_of(resumed)
    assert 'resuming at' not in log_of(resumed)
    assert asked == []


def gather(rank, folder):
    """In a process of its own."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=3)
    state = {f'of {rank}.{n}': torch.full((n + 1, 2), float(rank), dtype=torch.float64) for n in range(rank + 1)}
    torch.save(gather_states(state), f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason='forks')
def test_rank_0_gets_the_states_of_all_ranks(tmp_path):
    context = torch.multiprocessing.get_context('fork')
    processes = [context.Process(target=gather, args=(rank, tmp_path)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    gathered = [load(tmp_path / f'{rank}.pth') for rank in range(3)]
    assert gathered[1:] == [[], []]
    for rank, state in enumerate(gathered[0]):
        assert list(state) == [f'of {rank}.{n}' for n in range(rank + 1)]
        for n, tensor in enumerate(state.values()):
            assert torch.equal(tensor, torch.full((n + 1, 2), float(rank), dtype=torch.float64))


BASES = Path(__file__).parents[3] / 'configs' / '_base_'


def test_recipes_resume_exactly():
    runtime = Config.fromfile(BASES / 'default_runtime.py')
    assert {'AccumulatedGradientsHook', 'IterationSeedHook', 'ResumePositionHook'} <= {
        hook.type for hook in runtime.default_hooks.values()
    }
    for path in (BASES / 'datasets').glob('*.py'):
        assert Config.fromfile(path).train_dataloader.get('sampler', dict(type=SAMPLER)).type == SAMPLER, path.name
