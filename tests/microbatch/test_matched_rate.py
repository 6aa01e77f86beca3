import pytest
import torch

from wsbcn_mm.microbatch import matched_rate


@pytest.mark.parametrize(('samples', 'reference', 'rate'), [(1, 32, 2 / 33), (2, 32, 4 / 34), (1, 1, 1), (8, 8, 1)])
def test_one_forward_per_step(samples, reference, rate):
    assert matched_rate(samples, reference) == pytest.approx(rate, abs=1e-12)
    assert matched_rate(samples, reference, samples_per_forward=samples) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize('samples', [32, 33, 1000])
def test_a_large_forward_needs_no_past(samples):
    assert matched_rate(samples, 32) == 1


def test_micro_batches_lie_between_their_own_rate_and_that_of_an_unlimited_past():
    rates = [matched_rate(k, 32, samples_per_forward=1) for k in (1, 2, 4, 16, 256, 10**9)]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(2 / 33)
    assert rates[-1] == pytest.approx(32**-0.5, abs=1e-6)


@pytest.mark.parametrize(('micro_batches', 'per_forward', 'reference'), [(1, 2, 8), (4, 1, 8), (8, 2, 16)])
def test_the_estimates_are_as_noisy_as_the_reference_batch(micro_batches, per_forward, reference):
    """Simulated: what a forward normalises with has the variance of a mean of `reference` samples."""
    b = micro_batches * per_forward
    rate = matched_rate(b, reference, samples_per_forward=per_forward)
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(60_000, micro_batches, per_forward, generator=generator, dtype=torch.float64).mean(2)
    running, used = 0.0, []
    for step in samples.tolist():
        used.append(running + rate * (step[0] - running))
        running += rate * (sum(step) / micro_batches - running)
    assert torch.tensor(used).var().item() == pytest.approx(1 / reference, rel=0.06)


@pytest.mark.parametrize(
    ('arguments', 'options', 'message'),
    [
        ((0,), {}, 'samples_per_step=0: at least 1 is expected'),
        ((1, -2), {}, 'reference_batch=-2: at least 1 is expected'),
        ((4,), {'samples_per_forward': 0}, 'samples_per_forward=0: at least 1 is expected'),
        ((4,), {'samples_per_forward': 5}, 'samples_per_forward=5: at most samples_per_step=4 is expected'),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared in full
        matched_rate(*arguments, **options)
    assert str(error.value) == message
