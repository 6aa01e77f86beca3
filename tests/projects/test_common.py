"""What studies share (result files, tables in READMEs, recipes of the toy data), and what they may import."""

import ast
import re
from pathlib import Path

import pytest

from projects.common.csv_rows import read_rows, write_rows
from projects.common.readme_tables import read_table, write_table
from projects.common.tiny_recipes import RECIPES, find_recipe

PROJECTS = Path(__file__).parents[2] / 'projects'
FOLDERS = sorted(path.parent.name for path in PROJECTS.glob('*/__init__.py'))


def test_rows_are_read_back_as_they_were_written(tmp_path) -> None:
    rows = [{'case': 'a, "quoted"', 'value': '1.5'}, {'case': 'ü', 'value': ''}]
    path = write_rows(tmp_path / 'new' / 'rows.csv', ['value', 'case'], iter(rows))
    assert path.read_text().splitlines()[0] == 'value,case'
    assert read_rows(path) == rows


def test_a_value_without_a_column_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="'speed'"):
        write_rows(tmp_path / 'rows.csv', ['case'], [{'case': 'a', 'speed': 2}])


TEXT = 'before\n<!-- speed:start -->\nold\n<!-- speed:end -->\nafter <!-- other:start -->\n'


def test_a_table_replaces_the_text_between_its_marks(tmp_path):
    file = tmp_path / 'README.md'
    file.write_text(TEXT)
    assert read_table(file, 'speed') == 'old\n'
    assert write_table(file, 'speed', '| new |')
    assert file.read_text() == TEXT.replace('old', '| new |')
    assert not write_table(file, 'speed', '| new |\n'), 'the same again changes nothing'


@pytest.mark.parametrize('text', ['none', '<!-- a:end -->\n<!-- a:start -->\n', TEXT.replace('speed', 'a') * 2])
def test_anything_but_one_pair_of_marks_in_order_is_refused(text, tmp_path):
    file = tmp_path / 'README.md'
    file.write_text(text)
    message = f'{file} must have one <!-- a:start --> followed by one <!-- a:end -->'
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        write_table(file, 'a', 'new')
    assert file.read_text() == text


def test_a_missing_recipe_is_named():
    message = f'no recipe deeplabv3_r18-tiny_syncbn_1xb1-acc1-*.py in {RECIPES}'
    with pytest.raises(FileNotFoundError, match=f'^{re.escape(message)}$'):
        find_recipe('segmentation', 'syncbn', '1xb1-acc1')


def imported(folder):
    """Yield (folder of projects/ from which a file of `folder` imports, that file)."""
    for file in sorted(folder.rglob('*.py')):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f'{node.module}.{a.name}' for a in node.names]
            for name in names:
                top, *rest = name.split('.')
                if top == 'projects':
                    yield rest[0], file.relative_to(PROJECTS)


@pytest.mark.parametrize('folder', FOLDERS)
def test_a_folder_imports_only_from_itself_and_from_the_shared_folders(folder):
    allowed = {'common': {'common', 'toy_data'}, 'toy_data': {'toy_data'}}.get(folder, {folder, 'common', 'toy_data'})
    assert [found for found in imported(PROJECTS / folder) if found[0] not in allowed] == []


def test_the_index_has_a_line_for_each_study():
    studies = sorted(file.parent.name for file in PROJECTS.glob('*/run.py'))
    linked = re.findall(r'^\| \[(\w+)\]\(\1/README\.md\)', (PROJECTS / 'README.md').read_text(), re.MULTILINE)
    assert sorted(linked) == studies
    assert set(studies) == {*FOLDERS} - {'common', 'toy_data'}
    assert all((PROJECTS / study / 'results').is_dir() for study in studies)
