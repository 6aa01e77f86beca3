import pytest

from projects.common.csv_rows import read_rows, write_rows


def test_rows_are_read_back_as_they_were_written(tmp_path) -> None:
    rows = [{'case': 'a, "quoted"', 'value': '1.5'}, {'case': 'ü', 'value': ''}]
    path = write_rows(tmp_path / 'new' / 'rows.csv', ['value', 'case'], iter(rows))
    assert path.read_text().splitlines()[0] == 'value,case'
    assert read_rows(path) == rows


def test_a_value_without_a_column_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="'speed'"):
        write_rows(tmp_path / 'rows.csv', ['case'], [{'case': 'a', 'speed': 2}])
