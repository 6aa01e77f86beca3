"""Blocks that keep less for the backward pass: the same step bit for bit, with the expected bytes and convolutions.

The plain step of the same model is the reference. The bytes that a mode keeps are counted from the shapes.
"""

import copy
import io
import re
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from wsbcn_mm.diagnostics.activation_bytes import activation_bytes
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d, WSConv3d, standardize_once
from wsbcn_mm.microbatch import StepStatistics
from wsbcn_mm.microbatch import activation_memory as module
from wsbcn_mm.microbatch.activation_memory import MODES, describe_blocks, expands, find_blocks, set_activation_memory

CONVS = {2: (nn.Conv2d, WSConv2d), 3: (nn.Conv3d, WSConv3d)}
NORMS = {
    'bn': lambda rank, c: (nn.BatchNorm2d, nn.BatchNorm3d)[rank - 2](c),
    'bn, cumulative': lambda rank, c: (nn.BatchNorm2d, nn.BatchNorm3d)[rank - 2](c, momentum=None),
    'in': lambda rank, c: (nn.InstanceNorm2d, nn.InstanceNorm3d)[rank - 2](c, affine=True, track_running_stats=True),
    'gn': lambda rank, c: nn.GroupNorm(2, c),
    'bcn': lambda rank, c: BatchChannelNorm(c, 2, rate=0.3),
    'bcn, warm-up': lambda rank, c: BatchChannelNorm(c, 2, rate=0.3, warmup=True),
    'bcn, batch': lambda rank, c: BatchChannelNorm(c, 2, rate=0.3, statistics='batch'),
}


class Bottleneck(nn.Module):
    """8 channels to 8 through 4, as in a ResNet, with a dropout that tells whether random numbers repeat."""

    def __init__(self, norm, rank=2, ws=False):
        super().__init__()
        conv = CONVS[rank][ws]
        self.conv1, self.norm1 = conv(8, 4, 1, bias=False), NORMS[norm](rank, 4)
        self.conv2, self.norm2 = conv(4, 4, 3, padding=1, bias=False), NORMS[norm](rank, 4)
        self.conv3, self.norm3 = conv(4, 8, 1, bias=False), NORMS[norm](rank, 8)
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout(0.3)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.dropout(self.relu(self.norm2(self.conv2(out))))
        out = self.norm3(self.conv3(out))
        out += x
        return self.relu(out)


class Branches(nn.ModuleList):
    """A sequence that is called itself, like mmseg's ASPP."""

    def forward(self, x):
        return torch.cat([branch(x) for branch in self], 1)


class Net(nn.Module):
    """Stem, a stage of two blocks, two branches and a classifier."""

    def __init__(self, norm='bn', rank=2, ws=False):
        super().__init__()
        conv, self.rank = CONVS[rank][ws], rank
        layers = [conv(3, 8, 3, padding=1, bias=False), NORMS[norm](rank, 8), nn.ReLU(inplace=True)]
        layers += [conv(8, 8, 3, padding=1, bias=False), NORMS[norm](rank, 8), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*layers)
        self.stage = nn.Sequential(Bottleneck(norm, rank, ws), Bottleneck(norm, rank, ws))
        self.branches = Branches(
            nn.Sequential(conv(8, 4, 1, bias=False), NORMS[norm](rank, 4), nn.ReLU()) for _ in range(2)
        )
        self.classify = CONVS[rank][0](8, 2, 1)

    def forward(self, x):
        return self.classify(self.branches(self.stage(self.stem(x))))


BLOCKS = ['stem', 'stage.0', 'stage.1', 'branches']


def make_net(*args, **kwargs):
    torch.manual_seed(0)
    net = Net(*args, **kwargs)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    return net


def train(net, *, steps=2, accumulation=1, context=nullcontext, done=None):
    """Losses and gradients of every step, and the final state."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    seen = []
    torch.manual_seed(2)
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulation):
            with context():
                loss = net(torch.randn(2, 3, *[6, 5, 3][: net.rank], generator=generator)).square().mean()
            loss.backward()
            seen.append(loss.detach())
        seen += [p.grad.clone() for p in net.parameters() if p.grad is not None]
        optimizer.step()
        if done is not None:
            done()
    return [*seen, *(tensor.clone() for tensor in net.state_dict().values())]


def assert_bit_equal(ours, theirs):
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize('mode', MODES[1:])
@pytest.mark.parametrize('rank', [2, 3])
@pytest.mark.parametrize('norm', NORMS)
def test_losses_gradients_and_statistics_are_bit_equal(norm, rank, mode):
    plain, less = make_net(norm, rank, ws=True), make_net(norm, rank, ws=True)
    assert list(set_activation_memory(less, mode)) == BLOCKS
    assert_bit_equal(train(less), train(plain))


@pytest.mark.parametrize('mode', MODES[1:])
@pytest.mark.parametrize('norm', ['bn', 'gn', 'bcn'])
def test_bit_equal_under_autocast(norm, mode):
    def autocast():
        return torch.autocast('cpu', torch.bfloat16)

    plain, less = make_net(norm), make_net(norm)
    # A block that runs twice finds its cast weights in autocast's cache; its recomputation does not.
    for net in (plain, less):
        net.stage[1] = net.stage[0]
    if norm == 'bcn':
        statistics = [StepStatistics(net) for net in (plain, less)]
    set_activation_memory(less, mode)
    ours = train(less, context=autocast, done=statistics[1].commit if norm == 'bcn' else None)
    theirs = train(plain, context=autocast, done=statistics[0].commit if norm == 'bcn' else None)
    assert_bit_equal(ours, theirs)


@pytest.mark.parametrize('mode', MODES[1:])
@pytest.mark.parametrize('norm', ['bn', 'bcn, warm-up'])
def test_bit_equal_under_accumulation_with_statistics_once_per_step(norm, mode):
    plain, less = make_net(norm, ws=True), make_net(norm, ws=True)
    set_activation_memory(less, mode)
    results = []
    for net in (less, plain):
        statistics = StepStatistics(net)
        with standardize_once(net):
            results.append(train(net, accumulation=3, done=statistics.commit))
    assert_bit_equal(*results)


@pytest.mark.parametrize('mode', MODES[1:])
def test_frozen_and_evaluated_parts_stay_as_they_are(mode):
    plain, less = make_net('bn'), make_net('bn')
    for net in (plain, less):
        net.stem.requires_grad_(False).eval()
        net.stage[0].norm1.eval()
    set_activation_memory(less, mode)
    before = less.stem[1].running_mean.clone()
    assert_bit_equal(train(less), train(plain))
    assert torch.equal(less.stem[1].running_mean, before)
    assert less.stage[0].norm1.num_batches_tracked == 0
    assert less.stage[0].norm2.num_batches_tracked == 2


@pytest.mark.parametrize('inside', [True, False])
def test_a_convolution_changed_in_place_is_computed_again(inside):
    """Changed by the block itself, or by the next operation after a block that ends in a convolution."""

    def make():
        torch.manual_seed(0)
        first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        if inside:
            return nn.Sequential(nn.Sequential(first, nn.ELU(inplace=True), second, nn.Tanh()))
        return nn.Sequential(nn.Sequential(first, nn.Sigmoid(), second), nn.ELU(inplace=True))

    plain, less = make(), make()
    set_activation_memory(less, 'save_conv', ['0'])
    x = torch.randn(2, 3, 9, 9)
    for net in (plain, less):
        net(x).square().sum().backward()
    assert_bit_equal([p.grad for p in less.parameters()], [p.grad for p in plain.parameters()])


@pytest.mark.parametrize('mode', MODES[1:])
def test_a_retained_graph_runs_backward_twice(mode):
    plain, less = make_net('bn'), make_net('bn')
    set_activation_memory(less, mode)
    x = torch.randn(2, 3, 6, 5)
    for net in (plain, less):
        torch.manual_seed(2)
        loss = net(x).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
    assert_bit_equal([p.grad for p in less.parameters()], [p.grad for p in plain.parameters()])
    assert_bit_equal(list(less.buffers()), list(plain.buffers()))


class ConvCounter(TorchDispatchMode):
    """Shapes of the outputs of all convolutions."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self.shapes.append(tuple(out.shape))
        return out


@pytest.mark.parametrize(
    ('mode', 'again'),
    [
        ('all', []),
        # conv3 of both blocks gives 8 channels from a fan-in of 4.
        ('save_conv', [(2, 8, 6, 5)] * 2),
        ('full_checkpoint', [(2, 4, 6, 5)] * 6 + [(2, 8, 6, 5)] * 4),
    ],
)
def test_which_convolutions_run_again(mode, again):
    net = make_net('bn')
    set_activation_memory(net, mode)
    loss = net(torch.randn(2, 3, 6, 5)).sum()
    with ConvCounter() as counter:
        loss.backward()
    assert sorted(counter.shapes) == again


@pytest.mark.parametrize('norm', ['bn', 'gn'])
def test_what_is_kept_is_block_inputs_and_convolutions(norm):
    net = make_net(norm).eval()  # evaluation, so that norms and dropout keep nothing of their own
    positions, scalar = 2 * 6 * 5, 4
    block = 4 + 4  # conv1 and conv2
    stem, branches, outputs = 8 + 8, 4 + 4, 2
    inputs = 8 + 8 + 8  # inputs of stage.0, stage.1 and branches; the stem's input is the net's
    classified = 8  # the concatenation
    expected = {
        'save_conv': stem + 2 * block + branches + inputs + classified + outputs,
        'full_checkpoint': inputs + classified + outputs,
    }
    x = torch.randn(2, 3, 6, 5)
    for mode, channels in expected.items():
        set_activation_memory(net, mode)
        net(x).mean().backward()
        kept = activation_bytes(lambda: net(x).mean()).kept
        random_states = len(BLOCKS) * torch.get_rng_state().numel()
        assert kept - random_states <= channels * positions * 4 + scalar
        assert kept >= (channels - outputs) * positions * 4


def test_fewer_bytes_at_the_peak_too():
    net, x = make_net('bn'), torch.randn(2, 3, 64, 64)
    peaks = {}
    for mode in MODES:
        set_activation_memory(net, mode)
        net(x).sum().backward()
        peaks[mode] = activation_bytes(lambda: net(x).sum()).peak
    assert peaks['full_checkpoint'] < peaks['save_conv'] < 0.8 * peaks['all']


@pytest.mark.parametrize(
    ('conv', 'cheap'),
    [
        (nn.Conv2d(64, 256, 1), True),
        (nn.Conv2d(256, 64, 1), False),
        (nn.Conv2d(64, 64, 1), False),
        (nn.Conv2d(3, 32, 3), True),
        (nn.Conv3d(3, 64, (3, 7, 7)), False),
        (nn.Conv2d(64, 64, 3, groups=64), True),
        (nn.ConvTranspose2d(32, 64, 1), True),
        (nn.ConvTranspose2d(32, 8, 2, groups=4), False),
    ],
)
def test_expansions(conv, cheap):
    assert expands(conv.weight, groups=conv.groups, transposed=conv.transposed) is cheap


def test_blocks_are_elements_of_sequences_or_sequences_of_small_layers():
    net = make_net()
    assert list(find_blocks(net)) == BLOCKS
    # In a sequence of its own, a stage stays a stage.
    assert list(find_blocks(nn.Sequential(net.stem, net.stage))) == ['0', '1.0', '1.1']
    # A bare ModuleList is never called.
    assert find_blocks(nn.ModuleList(net.branches)) == {}
    blocks = set_activation_memory(net, 'save_conv')
    assert describe_blocks(net, blocks) == '4 blocks (2 Bottleneck, 1 Branches, 1 Sequential); left out: classify'
    assert describe_blocks(net.stage, dict(net.stage.named_children())) == (
        '2 blocks (2 Bottleneck); left out: no convolution and no norm'
    )


def test_blocks_of_torchvisions_models():
    models = pytest.importorskip('torchvision').models
    stages = [f'layer{i}.{j}' for i, n in enumerate((3, 4, 6, 3), 1) for j in range(n)]
    with torch.device('meta'):
        assert list(find_blocks(models.resnet50())) == stages
        assert list(find_blocks(models.segmentation.deeplabv3_resnet50(weights_backbone=None))) == [
            *(f'backbone.{name}' for name in stages),
            'classifier.0',
        ]
        assert list(find_blocks(models.video.r2plus1d_18())) == [
            'stem',
            *(f'layer{i}.{j}' for i in range(1, 5) for j in range(2)),
        ]


def test_a_later_call_replaces_the_earlier():
    net = make_net()
    assert list(set_activation_memory(net, 'save_conv', ['stage'])) == ['stage']
    assert list(set_activation_memory(net, 'full_checkpoint', ['stem', 'branches'])) == ['stem', 'branches']
    assert [name for name, m in net.named_modules() if 'forward' in vars(m)] == ['stem', 'branches']
    assert set_activation_memory(net, 'all') == {}
    assert not any('forward' in vars(m) for m in net.modules())


def test_without_gradients_nothing_is_checkpointed(monkeypatch):
    net = make_net().eval()
    x = torch.randn(1, 3, 6, 5)
    expected = net(x)
    set_activation_memory(net, 'save_conv')
    monkeypatch.setattr(module, 'checkpoint', None)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(net(x), expected)


@pytest.mark.parametrize('how', ['deepcopy', 'torch.save', 'AveragedModel'])
def test_copies_run_on_their_own_parameters(how):
    net = make_net()
    names, state = [name for name, _ in net.named_modules()], list(net.state_dict())
    set_activation_memory(net, 'save_conv')
    assert [name for name, _ in net.named_modules()] == names
    assert list(net.state_dict()) == state
    if how == 'torch.save':
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(net) if how == 'deepcopy' else AveragedModel(net).module
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    result = train(other)
    set_activation_memory(other, 'all')
    assert isinstance(other.stage[0], Bottleneck)
    assert all(p.abs().sum() == 0 for p in net.parameters())
    reference = make_net()
    set_activation_memory(reference, 'save_conv')
    assert_bit_equal(result, train(reference))


def test_compiled_code_leaves_the_blocks_to_eager():
    plain, less = make_net('bn'), make_net('bn')
    set_activation_memory(less, 'save_conv')
    compiled = torch.compile(less, backend='aot_eager')
    compiled.rank = 2
    assert_bit_equal(train(compiled), train(plain))
    with pytest.raises(torch._dynamo.exc.Unsupported, match='activation_memory runs blocks eagerly'):
        torch.compile(less, backend='eager', fullgraph=True)(torch.randn(2, 3, 6, 5))
    torch._dynamo.reset()


def with_own_checkpoint():
    net = make_net()
    net.stage[1].with_cp = True
    return net


def with_unknown_statistics():
    net = make_net()
    net.stage[0].conv1.register_buffer('running_mean', torch.zeros(4))
    return net


@pytest.mark.parametrize(
    ('make', 'arguments', 'message'),
    [
        (make_net, ('conv',), "activation_memory='conv': one of all, save_conv, full_checkpoint is expected"),
        (make_net, ('save_conv', ['stages']), "activation_memory: Net has no module 'stages'"),
        (make_net, ('save_conv', ['']), "activation_memory: Net has no module ''"),
        (
            make_net,
            ('save_conv', ['stage', 'stage.1']),
            "activation_memory: 'stage.1' is inside 'stage'; name one of them",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
            ('save_conv',),
            "activation_memory='save_conv' finds no block in Sequential: no element of an nn.Sequential or "
            'nn.ModuleList has two convolutions and two norms; pass the names of the blocks as modules',
        ),
        (
            with_own_checkpoint,
            ('save_conv',),
            "activation_memory='save_conv': 1 modules (the first: stage.1) have with_cp=True, their own checkpointing; "
            "set with_cp=False, and activation_memory='full_checkpoint' for the same effect",
        ),
        (
            with_unknown_statistics,
            ('save_conv',),
            "activation_memory='save_conv': stage.0.conv1 keeps running statistics but is not a known norm; "
            'recomputation would move them twice',
        ),
    ],
)
def test_refusals(make, arguments, message):
    net = make()
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        set_activation_memory(net, *arguments)
    assert not any('forward' in vars(m) for m in net.modules())


def train_on_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    results = []
    for mode in ('all', 'save_conv', 'full_checkpoint'):
        net = make_net('bcn')
        for block in net.stage:
            block.norm2 = BatchChannelNorm(4, 2, statistics='sync', rate=0.3)
        set_activation_memory(net, mode)
        statistics = StepStatistics(net)
        wrapped = DistributedDataParallel(net, broadcast_buffers=False)
        generator = torch.Generator().manual_seed(rank)
        torch.manual_seed(rank)
        for _ in range(2):
            wrapped.zero_grad()
            with wrapped.no_sync():
                wrapped(torch.randn(1, 3, 6, 5, generator=generator)).square().mean().backward()
            wrapped(torch.randn(2, 3, 6, 5, generator=generator)).square().mean().backward()
            statistics.commit()
        results.append([*(p.grad.clone() for p in net.parameters()), *(b.clone() for b in net.buffers())])
    torch.save(results, f'{folder}/rank{rank}.pt')
    dist.destroy_process_group()


def test_two_ranks_agree_in_every_mode(tmp_path):
    torch.multiprocessing.spawn(train_on_rank, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f'rank{rank}.pt') for rank in range(2)]
    plain = ranks[0][0]
    for results in ranks:
        for result in results:
            assert_bit_equal(result, plain)
