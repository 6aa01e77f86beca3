"""The benchmark's sides are right, its gate can fail, its ratios follow from the samples, and it runs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.conv_ws import conv_ws_2d
from rich.console import Console

from projects.common.csv_rows import read_rows
from projects.operator_benchmark import norms, report, rows, run, sections, steps, timing, weights
from projects.operator_benchmark.memory import saved_bytes
from tests.ops import reference
from wsbcn_mm.engine.recipe.tree import dicts_in

CPU = torch.device('cpu')
SHAPE = (2, 64, 5, 3)
MARKS = ('<!-- benchmark-table:start -->', '<!-- benchmark-table:end -->')
HERE = rows.Environment(
    device='cpu',
    device_name='Some CPU',
    threads=2,
    cpu='Some CPU',
    torch='2.14.1',
    torchvision='0.29.2',
    mmcv='2.3.6',
    triton='',
    python='3.11.7',
    system='Linux x86_64',
    wait_policy='PASSIVE',
    commit='0123456789',
    date='2026-01-01T00:00:00+00:00',
)


def row(side: str, *samples: float, section: str = 'norm_relu', case: str = '1x64', **others) -> rows.Row:
    values = dict(dtype='float32', layout='contiguous', unit='ms', size_bytes=8_000_000, environment=HERE)
    return rows.Row(section=section, case=case, side=side, samples=samples, **values | others)


def problem(dtype: torch.dtype = torch.float32, layout: str = 'contiguous', shape=SHAPE) -> norms.Problem:
    return norms.draw(shape, dtype, layout, CPU)


def test_the_plain_composition_is_algorithm_1():
    p = norms.copy_of(problem(), torch.float64)
    x, mean, var = (t.detach().numpy().copy() for t in (p.x, p.running_mean, p.running_var))
    affine = reference.Affine(*(t.detach().numpy() for t in (p.weight, p.bias, p.group_weight, p.group_bias)))
    grad = p.grad.numpy()
    mean, var = reference.updated_estimates(x, mean, var, norms.RATE)
    out = norms.plain(p)
    np.testing.assert_allclose(out.detach(), reference.bcn(x, mean, var, affine, norms.GROUPS), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(p.running_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(p.running_var, var, rtol=1e-12)
    found = torch.autograd.grad(out, p.leaves, p.grad)
    d_x, d_affine = reference.bcn_backward(grad, x, mean, var, affine, norms.GROUPS, live=False)
    for a, b in zip(found, (d_x, *d_affine), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


def test_the_plain_composition_with_batch_statistics_is_bcn_of_the_batch():
    p = norms.copy_of(problem(), torch.float64)
    x = p.x.detach().numpy()
    affine = reference.Affine(*(t.detach().numpy() for t in (p.weight, p.bias, p.group_weight, p.group_bias)))
    expected = reference.bcn(x, *reference.batch_statistics(x), affine, norms.GROUPS)
    np.testing.assert_allclose(norms.plain_with_batch_statistics(p).detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('layout', sections.LAYOUTS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('shape', [(2, 64, 5, 3), (1, 96, 3, 4, 5)])
def test_the_library_passes_the_gate(shape, dtype, layout):
    assert 0 < norms.gate(problem(dtype, layout, shape)) <= norms.TOLERANCES[dtype]


def old_estimates(p: norms.Problem) -> torch.Tensor:
    """Normalise with the estimates from before the batch, and then update them correctly."""
    moved = norms.copy_of(p, None)
    norms.plain(moved)
    per_channel = (1, -1, 1, 1)
    out = (p.x - p.running_mean.clone().view(per_channel)) / (p.running_var.clone() + norms.EPS).sqrt().view(
        per_channel
    )
    out = out * p.weight.view(per_channel) + p.bias.view(per_channel)
    p.running_mean.copy_(moved.running_mean)
    p.running_var.copy_(moved.running_var)
    return F.relu(norms.plain_channel_half(out, p))


def doubled_gradient(p: norms.Problem) -> torch.Tensor:
    """Return the right values with the gradient of twice the output."""
    out = norms.bcn(p)
    return out + (out - out.detach())


def unmoved_buffers(p: norms.Problem) -> torch.Tensor:
    return norms.bcn(replace(p, running_mean=p.running_mean.clone(), running_var=p.running_var.clone()))


def not_a_number(p: norms.Problem) -> torch.Tensor:
    return norms.bcn(p) * float('nan')


@pytest.mark.parametrize(
    ('side', 'wrong'),
    [
        (old_estimates, 'out'),
        (doubled_gradient, 'dx 1,'),
        (unmoved_buffers, 'running_mean'),
        (not_a_number, 'out nan'),
    ],
)
def test_a_wrong_side_does_not_pass_the_gate(side, wrong):
    with pytest.raises(
        norms.GateError, match=r'broken on \(2, 64, 5, 3\) torch.float32 differs from the plain'
    ) as error:
        norms.gate(problem(), {'broken': (side, norms.plain)})
    assert wrong in str(error.value)


def test_the_plain_weight_formulas_are_the_published_ones_and_the_gate_knows_others():
    weight, *_ = tensors = weights.conv_weights(CPU, quick=True)[:2]
    grads = [torch.randn_like(tensor) for tensor in tensors]
    expected = reference.standardize(weight.detach().double().numpy(), 'jhu')
    np.testing.assert_allclose(weights.plain(weight.detach().double()), expected, rtol=1e-9, atol=1e-12)
    x = torch.randn(1, 3, 7, 7)
    torch.testing.assert_close(F.conv2d(x, weights.mmcv(weight)), conv_ws_2d(x, weight))
    assert 0 < weights.gate(tensors, grads) <= weights.TOLERANCE
    assert weights.gate(tensors, grads, weights.mmcv) <= weights.TOLERANCE
    with pytest.raises(
        weights.GateError, match=r'WS of a weight \(64, 3, 7, 7\) differs from the plain formula.*dweight'
    ):
        weights.gate(tensors, grads, lambda w: weights.plain(w) + (w - w.detach()))


def test_rounds_are_interleaved_and_a_side_that_raises_has_a_reason():
    calls = []

    def broken():
        raise RuntimeError('\n  no kernel here\nmore')

    works = {'a': lambda: calls.append('a'), 'broken': broken, 'b': lambda: calls.append('b')}
    samples, reasons = timing.interleave(works, device=CPU, rounds=3, warmup=1, sample_ms=0)
    # One call to warm up and one to see how long it takes, then the rounds.
    assert calls == [*'aabb', *'ab' * 3]
    assert reasons == {'broken': 'RuntimeError: no kernel here'}
    assert {name: len(values) for name, values in samples.items()} == {'a': 3, 'b': 3}


def test_a_sample_is_the_mean_over_enough_calls():
    calls = []
    samples, _ = timing.interleave({'a': lambda: calls.append(1)}, device=CPU, rounds=1, warmup=0, sample_ms=1)
    assert len(calls) > 10
    assert 0 < samples['a'][0] < 1


def test_ratios_are_taken_within_each_round():
    # The machine was three times slower in the second round. The ratio of the medians would be 2.5 / 6 = 0.42.
    bn, bcn = row('bn', 2.0, 6.0, 10.0), row('bcn', 1.0, 3.0, 2.5)
    assert rows.ratios(bcn, bn) == pytest.approx((0.5, 0.35, 0.5))
    assert rows.ratios(row('bcn'), bn) is None
    with pytest.raises(ValueError, match='zip'):
        rows.ratios(row('bcn', 1.0), bn)


def test_bandwidth_counts_eight_activations_and_a_copy_two():
    members = [row('bn', 8.0), row('bcn', 4.0), row('copy', 0.5)]
    shown = rows.derived(members[1], members)
    assert shown['gb_per_s'] == '16'  # 8 x 8 MB in 4 ms
    assert shown['share_of_copy'] == '0.5'  # four copies' traffic in the time of eight copies
    assert shown['ratio'] == '0.5'
    assert rows.derived(members[2], members)['gb_per_s'] == '32'
    assert rows.derived(members[2], members)['share_of_copy'] == '1'


def test_rows_come_back_from_their_csv(tmp_path):
    written = [row('bn', 1.5, 2.5), row('bcn', reason='RuntimeError: no, "really"'), row('copy', 0.25, 0.125)]
    file = rows.save_csv(written, tmp_path / 'cpu' / 'measurements.csv')
    assert rows.load_csv(file) == written
    file.write_text(file.read_text().replace('median', 'mean', 1))
    with pytest.raises(ValueError, match='has the columns'):
        rows.load_csv(file)


def test_the_large_shapes_exceed_the_cache_of_a_gpu():
    assert min(math.prod(shape) * torch.bfloat16.itemsize for shape in norms.LARGE_SHAPES) >= 64 * 2**20


def test_saved_bytes_counts_each_storage_once_and_leaves_parameters_out():
    x, weight = torch.randn(4, 1000, requires_grad=True), torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda: x * weight) == 16_000 + 4_000
    assert saved_bytes(lambda: x * weight, [weight]) == 16_000
    assert saved_bytes(lambda: (x[:2] * x[2:]).exp()) == 16_000 + 8_000
    p = problem(shape=(1, 64, 40, 40))
    activation = p.x.nbytes
    assert saved_bytes(lambda: norms.bn(p), p.leaves[1:]) / activation == pytest.approx(2, abs=0.01)
    assert saved_bytes(lambda: norms.bcn(p), p.leaves[1:]) / activation == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize('case', [*steps.CASES, *steps.QUICK_CASES], ids=lambda case: case.name)
def test_the_models_of_the_steps_have_the_convolutions_and_norms_of_their_side(case):
    conv = {'gn': 'Conv', 'gn-ws': 'WSConv', 'gn-ws-mmcv': 'ConvWS', 'bcn-ws': 'WSConv', 'bcn-ws-save-conv': 'WSConv'}
    norm = {'bn': {'BN', 'BN3d'}, 'gn': {'GN'}, 'gn-ws': {'GN'}, 'gn-ws-mmcv': {'GN'}}
    for side, source in case.sources.items():
        cfg = steps.model_config(source)
        nodes = list(dicts_in(cfg))
        convs = {node.conv_cfg.type for node in nodes if node.get('conv_cfg')}
        norm_types = {node.norm_cfg.type for node in nodes if node.get('norm_cfg')}
        assert norm_types <= norm.get(side, {'BCN'}), side
        assert norm_types, side
        assert all(type_.startswith(conv.get(side, 'Conv')) for type_ in convs), side
        assert cfg.backbone.get('init_cfg') is None


def test_a_step_moves_the_statistics_once_and_saving_less_changes_nothing():
    case = steps.QUICK_CASES[1]
    model, loss = steps.build(case, 'bcn-ws-save-conv', CPU, torch.float32, 'contiguous')
    plain_model, plain_loss = steps.build(case, 'bcn-ws', CPU, torch.float32, 'contiguous')
    step, plain_step = steps.training_step(model, loss, 3), steps.training_step(plain_model, plain_loss, 3)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if 'running' in name}
    assert [step() for _ in range(2)] == [plain_step() for _ in range(2)]
    moved = dict(model.named_buffers())
    assert all(not torch.equal(moved[name], value) for name, value in before.items())
    counts = {int(value) for name, value in moved.items() if name.endswith('num_batches_tracked')}
    assert counts == {2}


def test_steps_run_in_lower_precision_and_channels_last():
    _, loss = steps.build(steps.QUICK_CASES[0], 'bcn-ws', CPU, torch.bfloat16, 'channels_last')
    assert loss().isfinite()


@pytest.mark.parametrize('readme', ['docs/benchmarks.md', 'projects/operator_benchmark/README.md'])
def test_the_readmes_have_their_markers(readme):
    text = (run.ROOT / readme).read_text()
    assert [text.count(marker) for marker in MARKS] == [1, 1]
    assert text.index(MARKS[0]) < text.index(MARKS[1])


@pytest.fixture(scope='module')
def quick(tmp_path_factory):
    """Folder of a quick run in two parts, and the rows after the first part.

    The rows of the second part replace an earlier one. The side whose compilation takes long is left out.
    """
    out = tmp_path_factory.mktemp('benchmark')
    file = rows.save_csv([row('plain', 1.0, section='weights', case='old')], out / 'cpu' / 'measurements.csv')
    arguments = ['--quick', '--device', 'cpu', '--threads', '1', '--rounds', '2', '--step-rounds', '1']
    arguments += ['--leave-out', 'bcn_compiled', '--out', str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, 'benchmark', False)
        assert run.main([*arguments, '--sections', 'norms', 'steps']) == 0
        first = rows.load_csv(file)
        assert run.main([*arguments, '--sections', 'weights']) == 0
    return out / 'cpu', first


def test_a_section_that_is_measured_again_keeps_the_rows_of_the_others(quick):
    folder, first = quick
    found = rows.load_csv(folder / 'measurements.csv')
    assert first[0].case == 'old'
    assert [item for item in found if item.section != 'weights'] == first[1:]
    again = [(item.side, len(item.samples), item.reason) for item in found if item.section == 'weights']
    assert again == [('plain', 2, ''), ('mmcv', 2, ''), ('ws', 2, '')]


def test_every_side_has_a_row_with_where_it_ran(quick):
    lines = read_rows(quick[0] / 'measurements.csv')
    sides = {}
    for line in lines:
        sides.setdefault(line['section'], set()).add(line['side'])
    of_norms = {'bn', 'gn', 'bcn', 'bcn_batch', 'bcn_plain', 'bcn_compiled'}
    of_steps = {'bn', 'gn', 'gn-ws', 'bcn-ws', 'bcn-ws-save-conv'}
    assert sides == {
        'norm_relu': of_norms | {'copy'},
        'norm_memory': of_norms,
        'weights': {'plain', 'mmcv', 'ws'},
        'step': of_steps,
        'step_memory': of_steps,
        'step_peak': of_steps,
    }
    for line in lines:
        assert (line['device'], line['dtype'], line['threads']) == ('cpu', 'float32', '1')
        assert line['layout'] in ('contiguous', 'channels_last')
        assert all(line[name] for name in ('device_name', 'cpu', 'torch', 'python', 'commit', 'date', 'case', 'unit'))
        if line['side'] == 'bcn_compiled':
            assert (line['reason'], line['median']) == ('left out of this run', '')
        else:
            assert line['reason'] == ''
            assert 0 < float(line['p20']) <= float(line['median']) <= float(line['p80'])
            assert float(line['ratio']) > 0
        if line['side'] == line['baseline']:
            assert float(line['ratio']) == 1
    saved = [line for line in lines if (line['section'], line['side']) == ('norm_memory', 'bcn')]
    assert len(saved) == 4
    # Where a channel has 63 values, the numbers per channel weigh something.
    assert all(1 <= float(line['median']) < 1.1 for line in saved)


def test_a_report_is_made_from_the_csv(quick, tmp_path, capsys):
    folder, _ = quick
    pictures = [folder / name for name in ('norms.png', 'steps.png')]
    for picture in pictures:
        picture.unlink()
    assert run.main(['--report', '--out', str(folder.parent)]) == 0
    assert 'Norm + ReLU, forward and backward (float32, contiguous)' in capsys.readouterr().out
    assert all(picture.stat().st_size > 5000 for picture in pictures)
    readme = tmp_path / 'README.md'
    readme.write_text(f'Before.\n{MARKS[0]}\nold\n{MARKS[1]}\nAfter.\n')
    assert report.update_readme(readme, folder.parent, report.all_tables, pictures=True)
    assert not report.update_readme(readme, folder.parent, report.all_tables, pictures=True), 'nothing has changed'
    text = readme.read_text()
    assert 'old' not in text
    assert report.where(rows.load_csv(folder / 'measurements.csv')) in text
    assert 'left out of this run' in text
    with pytest.raises(ValueError, match=r'no \*/measurements.csv'):
        report.update_readme(readme, tmp_path / 'nowhere', report.all_tables)


def test_every_device_has_a_folder_and_its_tables_say_where_they_were_measured():
    gpu = replace(HERE, device='cuda', device_name='NVIDIA H100 80GB HBM3')
    assert [report.folder_name(environment) for environment in (HERE, gpu)] == ['cpu', 'nvidia-h100-80gb-hbm3']
    elsewhere = replace(row('gn'), environment=replace(HERE, commit='9876543210+'))
    said = '2 threads of Some CPU, torch 2.14.1, Python 3.11.7, commit 0123456789, 9876543210+.'
    assert report.where([row('bn', 2.0), row('bcn', 1.0), elsewhere]) == said
    assert report.where([replace(row('bn', 2.0), environment=gpu)]).startswith('NVIDIA H100 80GB HBM3, torch 2.14.1')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--leave-out', 'bcm'], '--leave-out bcm: unknown side; choose from bcn, bcn-ws, '),
        (['--device', 'cuda'], '--device cuda: torch finds no GPU'),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match=message):
        run.main(['--quick', '--out', str(tmp_path), *arguments])
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_all_sections_run_on_a_gpu(tmp_path):
    chosen = sections.Settings(
        torch.device('cuda'),
        dtypes=('float32', 'bfloat16'),
        layouts=('contiguous',),
        sections=tuple(sections.SECTIONS),
        rounds=2,
        step_rounds=1,
        leave_out=('bcn_compiled',),
        quick=True,
    )
    found = rows.load_csv(sections.run(chosen, tmp_path, Console(file=(tmp_path / 'log').open('w'))))
    failed = {item.side for item in found if item.reason and 'segmentation' not in item.case}
    assert {item.case for item in found if item.case.endswith('CUDA graph') and item.samples}
    assert failed <= {'bcn_compiled', *steps.QUICK_CASES[0].sources}
