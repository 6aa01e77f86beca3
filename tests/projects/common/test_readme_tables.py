import re

import pytest

from projects.common.readme_tables import read_table, write_table

TEXT = 'before\n<!-- speed:start -->\nold\n<!-- speed:end -->\nafter <!-- other:start -->\n'


def test_a_table_takes_the_place_of_what_stood_between_its_marks(tmp_path):
    file = tmp_path / 'README.md'
    file.write_text(TEXT)
    assert read_table(file, 'speed') == 'old\n'
    assert write_table(file, 'speed', '| new |')
    assert file.read_text() == TEXT.replace('old', '| new |')
    assert not write_table(file, 'speed', '| new |\n'), 'the same again changes nothing'


@pytest.mark.parametrize('text', ['none', '<!-- a:end -->\n<!-- a:start -->\n', TEXT.replace('speed', 'a') * 2])
def test_other_marks_than_one_pair_in_order_are_refused(text, tmp_path):
    file = tmp_path / 'README.md'
    file.write_text(text)
    said = f'{file} must hold one <!-- a:start --> and after it one <!-- a:end -->'
    with pytest.raises(ValueError, match=f'^{re.escape(said)}$'):
        write_table(file, 'a', 'new')
    assert file.read_text() == text
