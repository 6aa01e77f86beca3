"""One standardisation for many forwards: never stale, and bit-equal to one in each forward."""

import copy
import os
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from wsbcn_mm.layers import WSConv2d, WSConvTranspose2d, kept_weight, standardize_once


class Net(nn.Module):
    """A stem, a layer called twice, a transposed one with groups."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.shared = WSConv2d(3, 8, 3, variant='bcn', gain='fan_in'), WSConv2d(8, 8, 3, padding=1, groups=2)
        self.up, self.norm = WSConvTranspose2d(8, 4, 2, stride=2, groups=2), nn.GroupNorm(2, 4)

    def forward(self, x):
        x = F.relu(self.stem(x)) / 5
        return self.norm(self.up(self.shared(F.relu(self.shared(x)) / 8)))


@pytest.fixture
def made(monkeypatch):
    """Shapes of all weights standardised inside a context so far."""
    shapes, original = [], kept_weight.standardize

    def counted(weight, *args, **kwargs):
        shapes.append(tuple(weight.shape))
        return original(weight, *args, **kwargs)

    monkeypatch.setattr(kept_weight, 'standardize', counted)
    return shapes


def image(seed=0):
    return torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def outputs_and_gradients(model, batches=3):
    model.zero_grad(set_to_none=True)
    outs = []
    for seed in range(batches):
        outs.append(model(image(seed)))
        outs[-1].square().mean().backward()
    return [out.detach() for out in outs] + [p.grad for p in model.parameters()]


def assert_fresh(model):
    """That the model, inside a context, gives what it would give outside of it."""
    expected = copy.deepcopy(model)
    assert expected.stem.kept_weight is None
    for value, target in zip(outputs_and_gradients(model), outputs_and_gradients(expected), strict=True):
        assert torch.equal(value, target)


def test_bit_equal_and_once_per_weight(made):
    model = Net()
    expected = outputs_and_gradients(model)
    assert made == []
    with standardize_once(model):
        for value, target in zip(outputs_and_gradients(model), expected, strict=True):
            assert torch.equal(value, target)
    assert made == [(8, 3, 3, 3), (8, 4, 3, 3), (8, 2, 2, 2)]
    assert all(layer.kept_weight is None for layer in (model.stem, model.shared, model.up))


def sgd(**options):
    return lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **options).step()


def fused_adamw(model):
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()


def in_place(model):
    with torch.no_grad():
        model.shared.weight.mul_(1.5).add_(0.1 * torch.randn_like(model.shared.weight))


def load(model):
    other = Net()
    other.apply(lambda module: isinstance(module, nn.Conv2d) and nn.init.normal_(module.weight))
    model.load_state_dict(other.state_dict())


def load_and_assign(model):
    model.load_state_dict({k: torch.randn_like(v) for k, v in model.state_dict().items()}, assign=True)


def new_data(model):
    """Twice, so that the last tensor may lie where the first lay."""
    for _ in range(2):
        model.shared.weight.data = torch.randn_like(model.shared.weight)


def averaged_in_evaluation(model):
    model.eval()
    for weight in model.parameters():
        weight.data.copy_(torch.randn_like(weight))
    model.train()


def other_variant(model):
    model.stem.variant = 'bit'


CHANGES = [
    sgd(),
    sgd(foreach=True),
    sgd(foreach=False),
    fused_adamw,
    in_place,
    load,
    load_and_assign,
    new_data,
    averaged_in_evaluation,
    other_variant,
]
NAMES = ['sgd', 'sgd-foreach', 'sgd-loop', 'adamw-fused', *(change.__name__ for change in CHANGES[4:])]


@pytest.mark.parametrize('change', CHANGES, ids=NAMES)
def test_never_stale(change):
    model = Net()
    with standardize_once(model):
        before = outputs_and_gradients(model)[0]
        change(model)
        assert not torch.equal(model(image()), before)
        assert_fresh(model)


def test_a_write_through_data_is_seen_after_leaving_the_context(made):
    model = Net()
    with standardize_once(model):
        model(image())
    model.shared.weight.data.copy_(torch.randn_like(model.shared.weight))
    with standardize_once(model):
        assert_fresh(model)
    assert made.count((8, 4, 3, 3)) == 2


def test_evaluation_makes_each_weight_once_until_training_goes_on(made):
    model = Net().eval()
    with standardize_once(model):
        for no_grad in (torch.no_grad, torch.no_grad, torch.enable_grad):
            with no_grad():
                model.eval()(image())
        assert len(made) == 3
        model.train()(image())
        assert len(made) == 6


def test_inference_mode_and_training_take_turns():
    model = Net()
    with standardize_once(model):
        with torch.inference_mode():
            model(image())
        assert_fresh(model)
        with torch.inference_mode():
            model(image())
    with torch.inference_mode():
        frozen = Net()
        with standardize_once(frozen):
            before = frozen(image())
            in_place(frozen)
            assert not torch.equal(frozen(image()), before)


def test_autocast_gets_its_own_dtype():
    model, dtypes = Net(), []
    with standardize_once(model):
        for enabled in (False, True, True, False):
            with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
                model(image())
                dtypes.append(model.stem.standardized_weight().dtype)
        assert_fresh(model)
    assert dtypes == [torch.float32, torch.bfloat16, torch.bfloat16, torch.float32]


def test_conversion_to_another_dtype():
    model = Net()
    with standardize_once(model):
        model(image())
        model.double()
        assert model(image().double()).dtype == torch.float64


@pytest.mark.parametrize('use_reentrant', [True, False])
@pytest.mark.parametrize('inside_backward', [True, False])
def test_activation_checkpointing(use_reentrant, inside_backward):
    """Recomputation may find the kept weight or none: gradients are the same."""
    model = Net()
    x = image().requires_grad_()

    def gradients():
        model.zero_grad(set_to_none=True)
        with standardize_once(model):
            loss = checkpoint(model, x, use_reentrant=use_reentrant).square().mean()
            if inside_backward:
                loss.backward()
        if not inside_backward:
            loss.backward()
        return [p.grad for p in model.parameters()]

    expected = outputs_and_gradients(model, batches=1)[1:]
    assert all(map(torch.equal, gradients(), expected))


@pytest.mark.parametrize('copied', [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_start_outside_of_the_context(copied):
    model = Net()
    with standardize_once(model):
        expected = model(image())
        other = copied(model.stem)
        whole = copied(model)
        assert other.kept_weight is None
        assert torch.equal(whole(image()), expected)
        assert model.stem.kept_weight is not None
    assert 'kept_weight' not in ''.join(model.state_dict())


def test_contexts_nest():
    model = Net()
    with standardize_once(model):
        with standardize_once(model.stem):
            kept = model.stem.kept_weight
        assert model.stem.kept_weight is kept is not None
    assert model.stem.kept_weight is None


def test_an_exception_leaves_the_context():
    model = Net()
    with pytest.raises(RuntimeError, match='to have 3 channels'), standardize_once(model):
        model(torch.randn(1, 5, 6, 6))
    assert model.stem.kept_weight is None


def test_compiled_once_inside_and_outside():
    model, graphs = Net(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    expected = model(image())
    for _ in range(2):
        torch.testing.assert_close(compiled(image()), expected)
        with standardize_once(model):
            torch.testing.assert_close(compiled(image()), expected)
    in_place(model)
    torch.testing.assert_close(compiled(image()), model(image()))
    assert len(graphs) == 1


def test_compiles_under_autocast():
    conv = WSConv2d(3, 5, 3)
    compiled = torch.compile(conv, fullgraph=True, backend='aot_eager')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(image()), conv(image()), atol=0.05, rtol=0.02)


def ddp_rank(rank, path):
    """Two accumulations of two micro-batches, with and without the context; gradients and weights must be equal."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(path, 2)
    torch.distributed.init_process_group('gloo', store=store, rank=rank, world_size=2)
    results = []
    for once in (False, True):
        model = nn.parallel.DistributedDataParallel(Net())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(2):
            optimizer.zero_grad()
            with standardize_once(model if once else nn.Identity()):
                with model.no_sync():
                    model(image(4 * step + rank)).square().mean().backward()
                model(image(4 * step + 2 + rank)).square().mean().backward()
                optimizer.step()
            results.append([t.clone() for p in model.parameters() for t in (p.detach(), p.grad)])
    assert all(map(torch.equal, results[0], results[2]))
    assert all(map(torch.equal, results[1], results[3]))
    gathered = [torch.empty_like(results[3][0]) for _ in range(2)]
    torch.distributed.all_gather(gathered, results[3][0])
    assert torch.equal(*gathered)
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    torch.multiprocessing.spawn(ddp_rank, (str(tmp_path / 'store'),), nprocs=2)
