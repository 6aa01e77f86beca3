"""The study of planned memory runs, and its README agrees with its results."""

import pytest

from projects.common.tiny_recipes import find_recipe
from projects.memory_plan import run


def test_the_table_is_that_of_the_results_and_within_the_goal():
    rows = run.load(run.HERE / 'results' / 'plan.csv')
    assert f'<!-- plan:start -->\n{run.table(rows)}<!-- plan:end -->' in (run.HERE / 'README.md').read_text()
    families = {name.split('/')[-1].split('-')[0].split('_')[0] for name in run.RECIPES}
    assert {row['recipe'].split('-')[0].split('_')[0] for row in rows} == families
    for row in rows:
        assert row['planned'] == pytest.approx(row['counted'], rel=0.1), row


def test_real_steps_of_a_small_recipe_take_what_is_planned(tmp_path, capsys):
    """Training, validation, and the test averaged over four copies of an image."""
    recipe = str(find_recipe('segmentation', 'bcn-ws', '1xb1-acc1'))
    assert run.main([recipe, '--out', str(tmp_path)]) == 0
    rows = {row['stage']: row for row in run.load(tmp_path / 'plan.csv')}
    assert {stage: row['input'] for stage, row in rows.items()} == {
        'training': '1x3x64x64',
        'validation': '1x3x64x64',
        'test --tta': '1x3x80x80',
    }
    for row in rows.values():
        assert row['planned'] == pytest.approx(row['counted'], rel=0.1)
        assert row['planned'] == pytest.approx(row['allocated'], rel=0.1)
    assert 'The plan is at most ' in capsys.readouterr().out


def test_other_recipes_do_not_replace_the_results():
    with pytest.raises(SystemExit):
        run.main(['a.py'])
