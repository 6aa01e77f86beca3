"""The rate at which BCN's estimates are as noisy as the statistics of a real batch."""


def matched_rate(samples_per_step: int, reference_batch: int = 32, *, samples_per_forward: int | None = None) -> float:
    """Return the rate at which BCN's estimates are as noisy as the statistics of `reference_batch` samples.

    With one forward per step, the estimates are an exponential average over (2 - r) / r batches. It spans
    `reference_batch` samples for

        r = 2 b / (B + b)        b = samples_per_step, B = reference_batch: 0.061 for 1 in 32, 0.118 for 2

    With accumulation or several ranks, a forward sees m < b of the step's samples. It normalises with buffers of the
    pooled past, moved by r towards its own m samples. The variance of this mixture, in units of a single sample's
    variance, is set equal to that of the reference:

        r^2 / m + (1 - r)^2 r / ((2 - r) b) = 1 / B

    For m = b this is the formula above. Samples are assumed to be independent and identically distributed, which does
    not hold for a network in training.

    Args:
        samples_per_step: Samples between two moves of the buffers: those of one forward, or with StepStatistics those
            of all ranks and all accumulated micro-batches.
        reference_batch: Batch size whose BatchNorm statistics would be good enough.
        samples_per_forward: Samples in one forward; by default all samples of the step.

    Returns:
        Rate in (0, 1]; 1 if one forward has at least the reference's samples.

    Raises:
        ValueError: For numbers below 1, or more samples in a forward than in a step.
    """
    m = samples_per_step if samples_per_forward is None else samples_per_forward
    for name, value in (
        ('samples_per_step', samples_per_step),
        ('reference_batch', reference_batch),
        ('samples_per_forward', m),
    ):
        if not value >= 1:
            raise ValueError(f'{name}={value!r}: at least 1 is expected')
    if m > samples_per_step:
        raise ValueError(f'samples_per_forward={m}: at most samples_per_step={samples_per_step} is expected')

    def noise(rate: float) -> float:
        return rate**2 / m + (1 - rate) ** 2 * rate / ((2 - rate) * samples_per_step)

    if m >= reference_batch:
        return 1.0
    if m == samples_per_step:
        return 2 * m / (reference_batch + m)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if noise(middle) < 1 / reference_batch else (low, middle)
    return low
