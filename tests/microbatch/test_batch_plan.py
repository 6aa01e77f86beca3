"""The arithmetic of a batch over devices and micro-batches."""

import re
from fractions import Fraction

import pytest

from wsbcn_mm.microbatch.batch_plan import EffectiveBatch, lr_factor, rescale_count, split_batch


@pytest.mark.parametrize('devices', [1, 2, 3, 8])
@pytest.mark.parametrize('per_device', [1, 2, 5])
@pytest.mark.parametrize('accumulation', [1, 2, 16])
def test_a_split_has_the_factors_of_the_batch(devices, per_device, accumulation):
    batch = split_batch(devices * per_device * accumulation, devices, per_device)
    assert batch == EffectiveBatch(devices, per_device, accumulation)
    assert batch.samples == devices * per_device * accumulation


def test_a_batch_says_its_factors():
    assert str(EffectiveBatch(4, 2, 8)) == '64 = 4 device(s) x 2 x accumulation 8'


@pytest.mark.parametrize(
    ('numbers', 'message'),
    [
        ((12, 8, 1), 'global batch 12 is not a multiple of 8 device(s) x 1 = 8: the nearest are 8 and 16'),
        ((12, 8, 2), 'global batch 12 is not a multiple of 8 device(s) x 2 = 16: the nearest is 16'),
        (
            (16, 2, 3),
            'global batch 16 is not a multiple of 2 device(s) x 3 = 6: the nearest are 12 and 18; '
            '16 itself works with 2 or 4 per device',
        ),
        ((7, 1, 2), 'global batch 7 is not a multiple of 1 device(s) x 2 = 2: the nearest are 6 and 8; '
         '7 itself works with 1 or 7 per device'),
        ((0, 1, 1), 'global batch=0: at least 1 is expected'),
        ((8, 0, 1), 'devices=0: at least 1 is expected'),
        ((8, 1, -1), 'samples per device=-1: at least 1 is expected'),
    ],
)  # fmt: skip
def test_numbers_that_do_not_divide_are_refused_with_the_nearest_that_do(numbers, message):
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        split_batch(*numbers)


@pytest.mark.parametrize(('rule', 'factor'), [('linear', 0.25), ('sqrt', 0.5), ('constant', 1.0)])
def test_learning_rate_rules(rule, factor):
    assert lr_factor(0.25, rule) == factor
    assert lr_factor(1, rule) == 1


def test_an_unknown_rule_is_refused():
    message = "learning-rate rule='cubic': one of linear, sqrt, constant is expected"
    with pytest.raises(ValueError, match=f'^{message}$'):
        lr_factor(2, 'cubic')


@pytest.mark.parametrize(
    ('count', 'ratio', 'expected'),
    [
        (33_100, Fraction(1), 33_100),
        (33_100, Fraction(16, 12), 44_133),
        (120, Fraction(1, 16), 8),
        (1, Fraction(1, 16), 1),
        (0, Fraction(16), 0),
        (10**15 + 1, Fraction(3, 3), 10**15 + 1),
    ],
)
def test_counts_go_to_the_nearest_whole_one_and_never_vanish(count, ratio, expected):
    assert rescale_count(count, ratio) == expected
