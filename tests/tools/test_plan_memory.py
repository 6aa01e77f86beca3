"""tools/plan_memory.py as a user runs it."""

import argparse
import re
import runpy

import pytest

from tests.tools.tiny_runs import ROOT, recipe, run_tool


def test_the_plan_of_a_recipe_for_a_device(tmp_path, capsys):
    device = ['--device-memory', '14.8MB', '--reserve', '0.5MB']
    run_tool('plan_memory.py', recipe('video', 'bn'), *device, '--picture', tmp_path / 'memory.png')
    printed = capsys.readouterr().out
    for stage in ('training, forward', 'training, backward', 'training, optimizer', 'validation', 'test'):
        assert re.search(rf'│ {stage} +│( +[\d.]+ │){{6}}', printed), stage
    rows = re.findall(r'│ (fp32|bf16) +│ (\d) +│ (\w+) +│ +([\d.]+) │ (yes|no) +│', printed)
    assert len(rows) == 12
    assert all((float(peak) <= 14.3) == (fits == 'yes') for *_, peak, fits in rows)
    assert {fits for *_, fits in rows} == {'yes', 'no'}
    assert 'inputs: training 1 x 1 x 3 x 8 x 112 x 112, validation 1 x 1 x 3 x 8 x 112 x 112, test ' in printed
    assert 'the recipe fits, fastest with activation_memory=full_checkpoint\n' in printed
    assert 'the fastest choice that fits: ' in printed
    assert (tmp_path / 'memory.png').read_bytes().startswith(b'\x89PNG')


def test_bad_arguments_are_refused_before_anything_is_planned(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_tool('plan_memory.py', recipe('video'), '--device-memory', '11')
    assert "'11': a number with MB or GB is expected, such as 11GB" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_tool('plan_memory.py', recipe('video'), '--device-memory', '512MB')
    assert '--reserve 1GB leaves nothing of --device-memory 0.5GB' in capsys.readouterr().err
    with pytest.raises(ValueError, match='--tta'):
        run_tool('plan_memory.py', recipe('video'), '--tta')
    with pytest.raises(FileNotFoundError, match=r'gone/m\.png.: its folder does not exist$'):
        run_tool('plan_memory.py', recipe('video'), '--picture', tmp_path / 'gone' / 'm.png')


@pytest.mark.parametrize(
    ('text', 'mebibytes'),
    [('11GB', 11264), ('11GiB', 11264), ('11264 MiB', 11264), ('11000MB', 11000), ('11gb', 11264), ('0.5GB', 512)],
)
def test_sizes(text, mebibytes):
    size_in_bytes = runpy.run_path(str(ROOT / 'tools' / 'plan_memory.py'))['size_in_bytes']
    assert size_in_bytes(text) == mebibytes * 2**20
    for nonsense in (f'{text}s', f'-{text}', 'much', ''):
        with pytest.raises(argparse.ArgumentTypeError, match=r': a number with MB or GB is expected, such as \d+GB$'):
            size_in_bytes(nonsense)
