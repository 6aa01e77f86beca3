"""StepStatistics on two and three gloo processes against one process that sees the union of their batches."""

import copy
import inspect

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wsbcn_mm.layers import BatchChannelNorm
from wsbcn_mm.microbatch import StepStatistics

CHANNELS = 6

# world size -> per step, per rank, the samples of each of its micro-batches
STEPS = {
    2: [[[1], [3]], [[2, 1], [4]], [[], [1, 1, 1]], [[0], [2]], [[], []]],
    3: [[[1], [2], [4]], [[1, 1], [], [3]], [[2], [2], [0, 5]]],
}
CASES = {'plain': {}, 'warm-up': dict(warmup=True), 'large rate': dict(rate=0.9, affine='channel')}

COLLECTIVES = [
    name
    for name, function in inspect.getmembers(dist, inspect.isfunction)
    if 'group' in inspect.signature(function).parameters
    and name.startswith(
        ('all_', 'reduce', 'broadcast', 'gather', 'scatter', 'barrier', 'send', 'recv', 'isend', 'irecv')
    )
]


def make_layer(case: str) -> BatchChannelNorm:
    layer = BatchChannelNorm(CHANNELS, 2, **CASES[case])
    nn.init.constant_(layer.weight, 0.7)
    return layer


def micro_batches(world: int) -> list[list[list[torch.Tensor]]]:
    """The batches of STEPS. Ranks differ in their mean."""
    generator = torch.Generator().manual_seed(world)
    return [
        [
            [torch.randn(n, CHANNELS, 4, 3, generator=generator) * (1 + rank) + rank for n in sizes]
            for rank, sizes in enumerate(ranks)
        ]
        for ranks in STEPS[world]
    ]


def refuse(*_, **__):
    raise AssertionError('a collective within a forward or a backward pass')


def worker(rank: int, folder: str) -> None:
    """The largest group first; then its last process leaves and the others form a group of their own."""
    torch.set_num_threads(1)
    for world in sorted(STEPS, reverse=True):
        if rank < world:
            store = f'file://{folder}/store{world}'
            dist.init_process_group('gloo', init_method=store, rank=rank, world_size=world)
            results = {case: step_buffers(case, world, rank) for case in CASES}
            torch.save(results | {'wrapped': in_data_parallel(rank)}, f'{folder}/rank{rank}of{world}.pt')
            dist.barrier()
            dist.destroy_process_group()


def step_buffers(case: str, world: int, rank: int) -> list[dict[str, torch.Tensor]]:
    """Buffers after each step of this rank's micro-batches."""
    layer = make_layer(case)
    statistics = StepStatistics(layer)
    seen = []
    for ranks in micro_batches(world):
        with pytest.MonkeyPatch.context() as patch:
            for name in COLLECTIVES:
                patch.setattr(dist, name, refuse)
                patch.setattr(dist.distributed_c10d, name, refuse)
            for x in ranks[rank]:
                layer(x.requires_grad_()).square().sum().backward()
        statistics.commit()
        seen.append(copy.deepcopy(dict(layer.named_buffers())))
    return seen


def in_data_parallel(rank: int) -> dict[str, torch.Tensor]:
    """Buffers and gradients after three accumulated steps of a wrapped model; each rank has its own data."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 1), BatchChannelNorm(CHANNELS, 2, warmup=True), nn.Conv2d(CHANNELS, 1, 1)
    )
    wrapped = DistributedDataParallel(model, broadcast_buffers=True)
    statistics = StepStatistics(wrapped)
    for step in range(3):
        model.zero_grad()
        x = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(10 * step + rank)) + rank
        with wrapped.no_sync():
            wrapped(x[0]).square().mean().backward()
        wrapped(x[1]).square().mean().backward()
        statistics.commit()
    return dict(model.named_buffers()) | {name: p.grad for name, p in model.named_parameters()}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('gloo')
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=max(STEPS))
    return folder


@pytest.fixture(scope='module', params=STEPS, ids='{} ranks'.format)
def ranks(request, folder):
    return [torch.load(folder / f'rank{rank}of{request.param}.pt') for rank in range(request.param)]


@pytest.mark.parametrize('case', CASES)
def test_ranks_have_the_statistics_of_the_union(ranks, case):
    whole = make_layer(case).double()
    for step, batches in enumerate(micro_batches(len(ranks))):
        whole(torch.cat([x.double() for batch in batches for x in batch] or [torch.zeros(0, CHANNELS, 4, 3).double()]))
        for name, expected in whole.named_buffers():
            found = ranks[0][case][step][name]
            torch.testing.assert_close(found.to(expected.dtype), expected, atol=2e-6, rtol=1e-6, msg=f'{name}, {step}')


@pytest.mark.parametrize('case', [*CASES, 'wrapped'])
def test_all_ranks_hold_the_same_buffers(ranks, case):
    steps = [result[case] if isinstance(result[case], list) else [result[case]] for result in ranks]
    for first, *others in zip(*steps, strict=True):
        for other in others:
            for name, value in first.items():
                assert torch.equal(value, other[name]), name


def test_commits_are_counted_where_anything_was_measured(ranks):
    counts = [int(buffers['num_batches_tracked']) for buffers in ranks[0]['plain']]
    assert counts == {2: [1, 2, 3, 4, 4], 3: [1, 2, 3]}[len(ranks)]


def test_the_union_differs_from_each_ranks_own(ranks):
    """Without the other ranks the statistics are far off, so the comparison above can fail."""
    alone = make_layer('plain')
    alone(micro_batches(len(ranks))[0][0][0])
    assert (alone.running_mean - ranks[0]['plain'][0]['running_mean']).abs().max() > 0.05


def test_collectives_are_found():
    assert {'all_reduce', 'all_gather', 'broadcast', 'reduce_scatter', 'barrier'} <= set(COLLECTIVES)
