"""The comparison runs, its sides make the same samples, and its table agrees with the rows."""

import csv
from pathlib import Path

import numpy as np
import pytest

from projects.data_benchmark import data, run, sides
from wsbcn_mm.engine.resume.seeds import seed_all


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a quick run, and its results."""
    root = tmp_path_factory.mktemp('data_benchmark')
    assert run.main(['--quick', '--data', str(root), '--out', str(root / 'results')]) == 0
    return root


def test_a_quick_run_measures_all_sides(made: Path) -> None:
    rows = list(csv.DictReader((made / 'results/samples.csv').open()))
    assert [(row['comparison'], row['side']) for row in rows] == [
        ('clips', 'frame by frame'),
        ('clips', 'recipe, decoded with decord'),
        ('clips', 'recipe'),
        ('crops', "mmseg's transforms"),
        ('crops', 'recipe'),
    ]
    assert all(float(row['ms_per_sample']) > 0 for row in rows)


def test_crops_are_the_same(made: Path) -> None:
    stock, recipe = sides.crop_sides(made / 'cityscapes').values()
    for seed in range(3):
        seed_all(seed)
        expected = stock(seed % 2)
        seed_all(seed)
        found = recipe(seed % 2)
        np.testing.assert_array_equal(found['data_samples'].gt_sem_seg.data, expected['data_samples'].gt_sem_seg.data)
        # Rounding by 1 before the distortion sometimes turns the hue of grey.
        assert np.abs(found['inputs'].int() - expected['inputs'].int()).float().mean() < 0.5


def test_clips_are_the_same(made: Path) -> None:
    plain, with_decord, recipe = sides.clip_sides(data.build_kinetics(made / 'kinetics400', 2)).values()
    for seed in range(3):
        samples = []
        for make in (plain, with_decord, recipe):
            seed_all(seed)
            samples.append(make(seed % 2))
        one, two, three = samples
        assert [one['frame_indices']] == two['data_samples'].frame_indices == three['data_samples'].frame_indices
        np.testing.assert_array_equal(two['inputs'], three['inputs'])
        normalised = (two['inputs'].numpy() - sides.MEAN[:, None, None, None]) / sides.STD[:, None, None, None]
        # Both enlarge alike, but only one filters when it shrinks.
        assert np.abs(one['inputs'].numpy() - normalised).mean() < 0.1


def test_the_table_has_medians_of_ratios(tmp_path: Path) -> None:
    rows = [
        dict(comparison='crops', side=side, round=number, samples=2, ms_per_sample=time, cpu='C', commit='abc', date='')
        for number, times in enumerate([(40, 20), (60, 40), (90, 30)])
        for side, time in zip(("mmseg's transforms", 'recipe'), times, strict=True)
    ]
    readme = tmp_path / 'README.md'
    readme.write_text('a\n<!-- table:start -->\nold\n<!-- table:end -->\nb\n')
    run.report(rows, readme)
    text = readme.read_text()
    assert text.startswith('a\n<!-- table:start -->\nMedians of 3 rounds, one thread of C, commit abc.\n')
    assert (
        "| mmseg's transforms | 60.0 | 16.7 | 1.00x |\n| recipe | 30.0 | 33.3 | 2.00x |\n<!-- table:end -->\nb" in text
    )
    assert 'old' not in text
