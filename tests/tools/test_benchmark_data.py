"""tools/benchmark_data.py on the demo's recipes, with one worker."""

import csv
from pathlib import Path

import pytest

from tests.tools.tiny_runs import FOLDERS, recipe, run_tool

STAGES = {
    'segmentation': ['LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs'],
    'video': ['DecodeClip', 'PackClipInputs'],
}


@pytest.mark.parametrize('task', FOLDERS)
def test_every_stage_and_a_verdict(
    task: str, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / 'data.csv'
    root = f'train_dataloader.dataset.data_root={tiny_data / FOLDERS[task]}/'
    run_tool(
        'benchmark_data.py',
        recipe(task),
        *('--samples', '6', '--workers', '1', '--step-time', '0.0001', '--csv', str(file)),
        *('--cfg-options', root),
    )
    rows = list(csv.DictReader(file.open()))
    assert [row['stage'] for row in rows] == [*STAGES[task], 'sample', 'loader with 1 workers']
    seconds = [float(row['seconds_per_sample']) for row in rows]
    assert all(value > 0 for value in seconds)
    assert sum(seconds[:-2]) <= seconds[-2] + 1e-5
    report = capsys.readouterr().out
    assert all(stage in report for stage in STAGES[task])
    assert 'expected: data ' in report
    assert 'decode-bound: decode ' in report
    assert 'num_workers=1 on ' in report


def test_numbers_out_of_range_are_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_tool('benchmark_data.py', recipe('video'), '--samples', '0')
    assert '--samples 0: a number above 0 is expected' in capsys.readouterr().err
