import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix

from wsbcn_mm.engine.evaluation.confusion import (
    Confused,
    class_names,
    count_pairs,
    draw_confusion,
    most_confused,
    ratio,
)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int64, torch.float32])
def test_pairs_are_counted_as_scikit_learn_counts_them(dtype):
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(7, (3, 40, 50), generator=generator).to(dtype)
    predicted = torch.randint(7, (3, 40, 50), generator=generator)
    counted = torch.rand(3, 40, 50, generator=generator) < 0.7
    found = count_pairs(truth, predicted, 7, counted)
    assert found.dtype == torch.int64
    expected = confusion_matrix(truth[counted], predicted[counted], labels=range(7))
    assert np.array_equal(found, expected)
    assert count_pairs(truth, predicted, 7).sum() == truth.numel()


def test_masked_elements_may_have_any_label():
    truth = torch.tensor([0, 1, 255, -3])
    found = count_pairs(truth, torch.tensor([0, 0, 900, -7]), 2, (truth == 0) | (truth == 1))
    assert found.tolist() == [[1, 0], [1, 0]]


def test_sums_that_float32_cannot_hold_are_exact():
    total = torch.zeros(2, 2, dtype=torch.int64)
    total[0, 0] = 2**24
    total += count_pairs(torch.zeros(1), torch.zeros(1), 2)
    assert total[0, 0] == 2**24 + 1


def test_most_confused_pairs_come_first_and_correct_ones_are_left_out():
    confusion = torch.tensor([[90, 10, 0], [3, 5, 0], [0, 0, 0]])
    assert most_confused(confusion, 5) == [Confused(0, 1, 10, 0.1), Confused(1, 0, 3, 0.375)]
    assert most_confused(confusion, 1) == [Confused(0, 1, 10, 0.1)]
    assert most_confused(torch.eye(3).long(), 5) == []


def test_names_and_ratios_of_absent_classes():
    assert class_names(None, 2) == class_names(dict(num_annotated=3), 2) == ['class 0', 'class 1']
    assert class_names(dict(classes=('a', 'b')), 2) == ['a', 'b']
    shares = ratio(torch.tensor([1, 0]), torch.tensor([3, 0]))
    assert shares.dtype == torch.float64
    assert shares[0] == 1 / 3
    assert shares[1].isnan()


@pytest.mark.parametrize('num_classes', [1, 4, 21, 35, 174])
def test_pictures_of_any_number_of_classes_can_be_drawn(tmp_path, num_classes):
    confusion = torch.diag(torch.arange(num_classes)) + torch.diag(torch.ones(num_classes - 1).long(), 1)
    names = [f'Pretending to put something number {index} behind something' for index in range(num_classes)]
    draw_confusion(tmp_path / 'confusion.png', confusion, names, 'clips')
    width, height = Image.open(tmp_path / 'confusion.png').size
    assert 300 < height <= width < 3000
    if num_classes > 40:
        assert width > 1.5 * height
