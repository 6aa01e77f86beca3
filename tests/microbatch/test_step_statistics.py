"""StepStatistics on one process; test_step_statistics_of_ranks.py tests several."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from wsbcn_mm.layers import BatchChannelNorm, WSConv2d
from wsbcn_mm.microbatch import StepStatistics

OPTIONS = [{}, {'warmup': True}, {'rate': 0.7, 'affine': 'channel'}]


def small_net(**options):
    torch.manual_seed(0)
    net = nn.Sequential(
        WSConv2d(3, 12, 3),
        BatchChannelNorm(12, 4, **options),
        nn.ReLU(),
        WSConv2d(12, 33, 3),
        BatchChannelNorm(33, 11, **options),
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0.3)
    return net


def images(step, n=1, size=7):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(n, 3, size, size, generator=generator) * (1 + step) + step


def buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def backward(model, x):
    (model(x) ** 3).mean().backward()


@pytest.mark.parametrize('options', OPTIONS)
def test_one_micro_batch_is_the_plain_algorithm_bit_for_bit(options):
    plain, stepwise = small_net(**options), small_net(**options)
    statistics = StepStatistics(stepwise)
    for step in range(5):
        x = images(step)
        for model in (plain, stepwise):
            model.zero_grad()
        expected, out = plain(x), stepwise(x)
        assert torch.equal(expected, out)
        for y in (expected, out):
            (y**3).mean().backward()
        statistics.commit()
        assert_equal(gradients(plain), gradients(stepwise))
        assert_equal(buffers(plain), buffers(stepwise))
    assert int(stepwise[1].num_batches_tracked) == 5


@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('split', [[12], [1] * 12, [3, 4, 5], [11, 0, 1]], ids=str)
def test_accumulation_has_the_statistics_of_the_whole_batch(options, split):
    """The first layer's input does not depend on the split, so its buffers must not either."""
    whole, stepwise = BatchChannelNorm(6, 2, **options), BatchChannelNorm(6, 2, **options)
    statistics = StepStatistics(stepwise)
    for step in range(4):
        x = torch.randn(12, 6, 5, 4, generator=torch.Generator().manual_seed(step)) * 2 + step
        before = buffers(stepwise)
        for part in x.split(split):
            stepwise(part)
        assert_equal(buffers(stepwise), before)
        statistics.commit()
        whole(x)
        for name, expected in buffers(whole).items():
            torch.testing.assert_close(stepwise.get_buffer(name), expected, atol=1e-6, rtol=1e-6, msg=name)
    assert int(stepwise.num_batches_tracked) == 4


def test_a_forward_normalises_with_the_buffers_moved_by_its_own_micro_batch():
    stepwise, alone = BatchChannelNorm(6, 2, rate=0.3), BatchChannelNorm(6, 2, rate=0.3)
    StepStatistics(stepwise)
    stepwise(torch.randn(2, 6, 4) + 5)
    x = torch.randn(1, 6, 4)
    assert torch.equal(stepwise(x), alone(x))


@pytest.mark.parametrize('use_reentrant', [True, False])
@pytest.mark.parametrize('times', [1, 2])
@pytest.mark.parametrize('options', OPTIONS)
def test_activation_checkpointing_changes_nothing(options, times, use_reentrant):
    results = []
    for saving in (False, True):
        stem = nn.Conv2d(3, 12, 3, padding=1)
        block = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), BatchChannelNorm(12, 4, **options), nn.ReLU())
        model = nn.ModuleList([stem, block])
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.1)
        nn.init.normal_(block[0].weight, generator=torch.Generator().manual_seed(0))
        statistics = StepStatistics(model)
        seen = []
        for step in range(3):
            for micro_batch in range(2):
                # Reentrant checkpointing adds each call's share to .grad separately: sums of more than two would round.
                model.zero_grad()
                x = stem(images(10 * step + micro_batch))
                for _ in range(times):
                    x = checkpoint(block, x, use_reentrant=use_reentrant) if saving else block(x)
                (x**3).mean().backward()
                seen.append(gradients(model))
            statistics.commit()
            seen.append(buffers(model))
        results.append(seen)
    for plain, saving in zip(*results, strict=True):
        assert_equal(plain, saving)
    assert int(results[1][-1]['1.1.num_batches_tracked']) == 3


def test_layers_that_measured_nothing_stay_as_they_are():
    model = nn.ModuleDict(
        dict(
            used=BatchChannelNorm(4, 2, warmup=True),
            frozen=BatchChannelNorm(4, 2, rate=0, warmup=True),
            evaluating=BatchChannelNorm(4, 2).eval(),
            unused=BatchChannelNorm(4, 2, warmup=True),
            empty=BatchChannelNorm(4, 2, warmup=True),
            live=BatchChannelNorm(4, 2, statistics='batch'),
        )
    )
    for layer in model.values():
        layer.running_mean.fill_(0.3)
    before = buffers(model)
    statistics = StepStatistics(model)
    assert list(statistics.layers) == ['used', 'frozen', 'evaluating', 'unused', 'empty']
    x = torch.randn(2, 4, 3)
    for name in ('used', 'frozen', 'evaluating'):
        model[name](x)
    model['empty'](x[:0])
    assert_equal(buffers(model), before)
    for _ in range(2):
        statistics.commit()
        moved = {name.split('.')[0] for name, value in buffers(model).items() if not torch.equal(value, before[name])}
        assert moved == {'used'}
    torch.testing.assert_close(model['used'].running_mean, x.mean((0, 2)))
    assert int(model['used'].num_batches_tracked) == 1
    model['live'](x)
    assert int(model['live'].num_batches_tracked) == 1


def test_a_layer_frozen_in_the_middle_of_a_step_stays_as_it_is():
    layer = BatchChannelNorm(4, 2)
    statistics = StepStatistics(layer)
    before = buffers(layer)
    layer(torch.randn(2, 4, 3))
    layer.rate = 0
    statistics.commit()
    assert_equal(buffers(layer), before)
    layer.rate = 1
    x = torch.randn(2, 4, 3)
    layer(x)
    statistics.commit()
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2)))


def test_evaluation_between_micro_batches_leaves_no_trace():
    layer = BatchChannelNorm(4, 2)
    other = copy.deepcopy(layer)
    first, second, unseen = (torch.randn(2, 4, 3) for _ in range(3))
    for one, evaluates in ((layer, True), (other, False)):
        statistics = StepStatistics(one)
        one(first)
        if evaluates:
            with pytest.warns(UserWarning, match='never updated its running statistics'):
                one.eval()(unseen)
            one.train()
        one(second)
        statistics.commit()
    assert_equal(buffers(layer), buffers(other))


def test_a_shared_module_is_registered_once():
    shared = BatchChannelNorm(4, 2, rate=1)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    statistics = StepStatistics(model)
    assert list(statistics.layers) == ['0']
    x = torch.randn(3, 4, 5)
    inner = model[:2](x)
    shared(inner)
    statistics.commit()
    torch.testing.assert_close(shared.running_mean, torch.cat([x, inner]).mean((0, 2)).detach())
    assert int(shared.num_batches_tracked) == 1


def test_state_keys_do_not_change():
    model = small_net()
    keys = list(model.state_dict())
    StepStatistics(model)
    model(images(0))
    assert list(model.state_dict()) == keys
    assert [n for n, _ in model.named_buffers()] == [n for n, _ in small_net().named_buffers()]


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    'copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded], ids=['copy', 'pickle', 'save']
)
def test_copies_are_plain(copied):
    model = small_net()
    statistics = StepStatistics(model)
    model(images(0))
    other = copied(model)
    before = buffers(model)
    other(images(1))
    assert int(other[1].num_batches_tracked) == 1
    assert_equal(buffers(model), before)
    statistics.commit()
    expected = small_net()
    expected(images(0))
    assert_equal(buffers(model), buffers(expected))
    own = StepStatistics(other)
    after = buffers(other)
    other(images(2))
    assert_equal(buffers(other), after)
    own.commit()
    assert int(other[1].num_batches_tracked) == 2


def test_averaged_copies_follow_the_committed_buffers():
    model = small_net()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    statistics = StepStatistics(model)
    for step in range(3):
        model(images(step))
        averaged.update_parameters(model)
        statistics.commit()
        averaged.update_parameters(model)
        assert int(model[1].num_batches_tracked) == step + 1
    assert_equal(dict(averaged.module.named_buffers()), buffers(model))


def test_a_model_may_change_its_device_and_dtype_later():
    """Here `meta` stands for any other device."""
    model = small_net()
    statistics = StepStatistics(model)
    model.double()
    model(images(0).double())
    assert model[1].pending_totals.dtype == torch.float64
    statistics.commit()
    assert model[1].running_mean.dtype == torch.float64
    assert int(model[1].num_batches_tracked) == 1
    model.to('meta')
    model(images(0).double().to('meta'))
    statistics.commit()
    assert {layer.pending_totals.device.type for layer in statistics.layers.values()} == {'meta'}


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    layer, plain = (BatchChannelNorm(8, 4, warmup=True).to(dtype) for _ in range(2))
    statistics = StepStatistics(layer)
    for step in range(3):
        x = (torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(step)) * 2 + 1).to(dtype)
        layer(x)
        statistics.commit()
        plain(x)
    torch.testing.assert_close(layer.running_var, plain.running_var)


def test_layers_of_mixed_precision():
    model = nn.Sequential(BatchChannelNorm(4, 2), BatchChannelNorm(4, 2).double())
    statistics = StepStatistics(model)
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    model[0](x.float())
    model[1](x)
    statistics.commit()
    torch.testing.assert_close(model[0].running_mean, 0.1 * x.float().mean((0, 2)))
    torch.testing.assert_close(model[1].running_mean, 0.1 * x.mean((0, 2)), atol=1e-14, rtol=1e-14)


def test_large_means_keep_their_precision():
    """Sums of squares are around the running mean before the step, not around 0."""
    layer = BatchChannelNorm(4, 2, rate=1)
    layer.running_mean.fill_(1e4)
    statistics = StepStatistics(layer)
    x = torch.randn(8, 4, 50, dtype=torch.float64) + 1e4
    for part in x.float().split(1):
        layer(part)
    statistics.commit()
    expected = (x - 1e4).square().mean((0, 2)).float()
    torch.testing.assert_close(layer.running_var, expected, rtol=1e-3, atol=0)


def test_state_in_the_middle_of_an_accumulation():
    straight, stopped = small_net(warmup=True), small_net(warmup=True)
    statistics = StepStatistics(straight)
    for micro_batch in range(4):
        backward(straight, images(micro_batch))
    statistics.commit()

    first = StepStatistics(stopped)
    assert first.state_dict() == {}
    for micro_batch in range(3):
        backward(stopped, images(micro_batch))
    saved, weights = copy.deepcopy(first.state_dict()), copy.deepcopy(stopped.state_dict())
    assert {name: totals.shape for name, totals in saved.items()} == {'1': (3, 12), '4': (3, 33)}

    resumed = small_net(warmup=True)
    resumed.load_state_dict(weights)
    second = StepStatistics(resumed)
    backward(resumed, images(99))
    second.load_state_dict(saved)
    backward(resumed, images(3))
    second.commit()
    assert_equal(buffers(resumed), buffers(straight))
    assert second.state_dict() == {}
    second.load_state_dict(saved)
    second.load_state_dict({})
    assert second.state_dict() == {}


@pytest.mark.parametrize(
    ('state', 'message'),
    [
        ({'1': torch.zeros(3, 8)}, "pending statistics of '1' have the shape (3, 8), but (3, 12) is expected"),
        (
            {'0': torch.zeros(3, 12)},
            "pending statistics of '0' have the shape (3, 12), but the model has no such layer with estimated "
            'statistics',
        ),
    ],
)
def test_the_state_of_another_model_is_refused(state, message):
    statistics = StepStatistics(small_net())
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared in full
        statistics.load_state_dict(state)
    assert str(error.value) == message


def test_close_returns_to_once_per_forward():
    model, plain = small_net(), small_net()
    statistics = StepStatistics(model)
    model(images(0))
    statistics.close()
    statistics.commit()
    assert int(model[1].num_batches_tracked) == 0
    for m in (model, plain):
        m(images(1))
        m(images(2))
    assert_equal(buffers(model), buffers(plain))


def test_a_second_one_takes_over():
    model, plain = small_net(), small_net()
    first = StepStatistics(model)
    model(images(0))
    second = StepStatistics(model)
    for m in (model, plain):
        m(images(1))
    first.commit()
    second.commit()
    assert_equal(buffers(model), buffers(plain))


def test_evaluating_with_nothing_but_pending_statistics_warns():
    model = small_net()
    statistics = StepStatistics(model)
    model.eval().train()
    model(images(0))
    with pytest.warns(
        UserWarning, match=r'never updated its running statistics.* call commit\(\) of its StepStatistics'
    ):
        model.eval()
    statistics.commit()
    model.train()(images(1))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model.eval()


def test_a_model_without_such_layers():
    statistics = StepStatistics(nn.Conv2d(3, 3, 1))
    statistics.commit()
    assert statistics.state_dict() == {}


def test_compiles_in_one_graph():
    """The compiled layer, recomputed by either mode of checkpointing, equals the eager one."""
    eager = BatchChannelNorm(8, 4, rate=0.3, warmup=True)
    expected = StepStatistics(eager)
    torch.compiler.reset()
    layer = copy.deepcopy(eager)
    statistics = StepStatistics(layer)
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    for use_reentrant in (True, False):
        for step in range(2):
            x, same = (torch.arange(144.0).add(step).sin().view(2, 8, 3, 3).requires_grad_() for _ in range(2))
            (checkpoint(compiled, x, use_reentrant=use_reentrant) ** 3).sum().backward()
            (eager(same) ** 3).sum().backward()
            torch.testing.assert_close(x.grad, same.grad, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(layer.pending_totals, eager.pending_totals)
        statistics.commit()
        expected.commit()
    for name, buffer in buffers(eager).items():
        torch.testing.assert_close(layer.get_buffer(name), buffer)
    assert int(layer.num_batches_tracked) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_on_a_gpu_without_waiting_for_it():
    model, moved = small_net(warmup=True).cuda(), small_net(warmup=True)
    statistics, later = StepStatistics(model), StepStatistics(moved)
    moved.cuda()
    x = images(0, n=2).cuda()
    backward(model, x)
    statistics.commit()
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(2):
            backward(model, x)
            backward(model, x)
            statistics.commit()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    for calls in (1, 2, 2):
        for _ in range(calls):
            backward(moved, x)
        later.commit()
    for name, buffer in buffers(model).items():
        torch.testing.assert_close(moved.get_buffer(name), buffer, msg=name)
    plain = small_net(warmup=True)
    for _ in range(3):
        plain(x.cpu())
    torch.testing.assert_close(model[1].running_var.cpu(), plain[1].running_var, rtol=1e-4, atol=1e-5)
