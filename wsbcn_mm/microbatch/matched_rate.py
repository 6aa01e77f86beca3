"""The rate at which BCN's estimates are as noisy as the statistics of a real batch."""


def matched_rate(samples_per_step: int, reference_batch: int = 32, *, samples_per_forward: int | None = None) -> float:
    """Rate at which estimates that move by `samples_per_step` are as noisy as statistics of `reference_batch` samples.

    With one forward per step the estimates are an exponential average that spans (2 - r) / r batches, which holds
    `reference_batch` samples for

        r = 2 b / (B + b)        b = samples_per_step, B = reference_batch: 0.061 for 1 in 32, 0.118 for 2

    With accumulation and several ranks a forward sees m < b of the step's samples, and normalises with buffers that
    span the pooled past, moved by r towards its own few. The variance of that mixture, in units of a single sample's,
    is set equal to the reference's:

        r^2 / m + (1 - r)^2 r / ((2 - r) b) = 1 / B

    For m = b this is the formula above. Samples are taken as independent and of one distribution, which that of a
    network in training is not.

    Args:
        samples_per_step: Samples between two moves of the buffers: of a forward, or with StepStatistics of all ranks
            and all accumulated micro-batches.
        reference_batch: Samples whose statistics would be good enough, as BatchNorm's of a batch of that size.
        samples_per_forward: Samples that one forward sees; all of the step's if not given.

    Returns:
        In (0, 1]; 1 where a single forward has the reference's samples.

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
            raise ValueError(f'{name}={value!r} is no number of samples: at least 1 is expected')
    if m > samples_per_step:
        raise ValueError(f'samples_per_forward={m} exceeds samples_per_step={samples_per_step}')

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
