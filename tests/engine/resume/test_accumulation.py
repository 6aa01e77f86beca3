"""Rank 0 gathers the states of all ranks."""

import pytest
import torch

from tests.engine.toy_runs import load
from wsbcn_mm.engine.resume.accumulation import gather_states


def gather(rank, folder):
    """Runs in a separate process."""
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
