"""BatchChannelNorm(statistics='sync') on two gloo processes against one process on the concatenated batch."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from wsbcn_mm.layers import BatchChannelNorm

WORLD = 2
STEPS = 3
CHANNELS = 8

# case: (samples on each rank, shape after the channels, standard deviation, mean, dtype)
CASES = {
    'uneven': ((1, 3), (5, 4), 1.0, 0.5, torch.float64),
    'one sample each, 1x1 map': ((1, 1), (1, 1), 1.0, 0.0, torch.float64),
    'one rank empty': ((0, 2), (3, 3), 1.0, 0.0, torch.float64),
    'no positions': ((3, 2), (), 1.0, 0.0, torch.float64),
    'video': ((1, 2), (2, 4, 3), 2.0, -1.0, torch.float64),
    'mean of 1e3 deviations': ((1, 2), (12, 11), 1.0, 1e3, torch.float32),
    'mean of 1e3 small deviations': ((2, 1), (12, 11), 1e-2, 10.0, torch.float32),
}


def make_layer(dtype: torch.dtype) -> BatchChannelNorm:
    torch.manual_seed(0)
    layer = BatchChannelNorm(CHANNELS, 2, statistics='sync', rate=0.3, warmup=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0.5)
    return layer.to(dtype)


def make_batches(case: str) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Per step, the inputs and the output gradients of every rank. The ranks' means differ."""
    samples, positions, std, mean, dtype = CASES[case]
    generator = torch.Generator().manual_seed(1)
    steps = []
    for _ in range(STEPS):
        shapes = [(n, CHANNELS, *positions) for n in samples]
        xs = [
            (torch.randn(s, generator=generator, dtype=torch.float64) * std + mean + std * rank).to(dtype)
            for rank, s in enumerate(shapes)
        ]
        grads = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
        steps.append((xs, grads))
    return steps


def train(layer: BatchChannelNorm, steps: list[tuple[Tensor, Tensor]]) -> dict:
    """Outputs and input gradients of every step; parameter gradients summed over steps; buffers; evaluation."""
    outs, input_grads = [], []
    for x, grad in steps:
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        out.backward(grad)
        outs.append(out.detach())
        input_grads.append(leaf.grad)
    return {
        'outs': outs,
        'input_grads': input_grads,
        'parameter_grads': {n: p.grad for n, p in layer.named_parameters()},
        'buffers': dict(layer.named_buffers()),
        'evaluation': copy.deepcopy(layer).eval()(steps[-1][0]).detach(),
    }


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=WORLD)
    results = {}
    for case in CASES:
        steps = [(xs[rank], grads[rank]) for xs, grads in make_batches(case)]
        results[case] = train(make_layer(CASES[case][-1]), steps)
    torch.save(results, f'{folder}/rank{rank}.pt')
    results = {}
    for statistics in ('estimated', 'batch'):
        layer = BatchChannelNorm(CHANNELS, 2, statistics=statistics)
        # Only rank 1 runs the layer: a collective in it would wait for rank 0 for ever.
        if rank == 1:
            layer(torch.randn(2, CHANNELS, 3)).sum().backward()
            results[statistics] = layer.running_mean.abs().sum().item()
    evaluation = make_layer(torch.float32).eval()
    if rank == 1:
        results['evaluation'] = evaluation(torch.randn(1, CHANNELS, 3)).abs().sum().item()
    torch.save(results, f'{folder}/alone{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], Path]:
    folder = tmp_path_factory.mktemp('gloo')
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f'rank{rank}.pt') for rank in range(WORLD)], folder


@pytest.mark.parametrize('case', CASES)
def test_two_processes_equal_one(ranks, case):
    results = [r[case] for r in ranks[0]]
    samples, _, _, _, dtype = CASES[case]
    # Both are held against float64, so that the single process does not set a float32 standard for the two.
    steps = [(torch.cat(xs).double(), torch.cat(grads).double()) for xs, grads in make_batches(case)]
    whole = train(make_layer(dtype).double(), steps)
    exact = dtype == torch.float64
    tolerance = {'atol': 1e-9, 'rtol': 1e-9} if exact else {'atol': 2e-3, 'rtol': 2e-3}

    for step in range(STEPS):
        for name in ('outs', 'input_grads'):
            pooled = torch.cat([r[name][step] for r in results]).double()
            scale = whole[name][step].abs().max() if not exact else 1
            torch.testing.assert_close(pooled / scale, whole[name][step] / scale, **tolerance)
            assert [len(r[name][step]) for r in results] == list(samples)
    for name, expected in whole['parameter_grads'].items():
        pooled = sum(r['parameter_grads'][name] for r in results).double()
        torch.testing.assert_close(pooled, expected, atol=1e-8 if exact else 0.1, rtol=tolerance['rtol'], msg=name)
    for name in ('running_mean', 'running_var'):
        torch.testing.assert_close(results[0]['buffers'][name].double(), whole['buffers'][name], **tolerance)


@pytest.mark.parametrize('case', CASES)
def test_ranks_hold_identical_buffers(ranks, case):
    first, second = (r[case]['buffers'] for r in ranks[0])
    for name in ('running_mean', 'running_var', 'num_batches_tracked'):
        assert torch.equal(first[name], second[name]), name


def test_the_ranks_batches_would_differ_alone(ranks):
    """Without the other rank's batch the outputs are far off: the comparison above has something to find."""
    xs, grads = zip(*make_batches('uneven'), strict=True)
    layer = make_layer(torch.float64)
    alone = train(layer, [(x[1], g[1]) for x, g in zip(xs, grads, strict=True)])
    assert (alone['outs'][0] - ranks[0][1]['uneven']['outs'][0]).abs().max() > 0.05


def test_other_statistics_need_no_other_rank(ranks):
    results = torch.load(ranks[1] / 'alone1.pt')
    assert set(results) == {'estimated', 'batch', 'evaluation'}
    assert all(value > 0 for value in results.values())
