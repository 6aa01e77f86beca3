"""The table, the JSON, and the names of outputs."""

import json
from pathlib import Path

from wsbcn_mm.engine.inference.batches import batches
from wsbcn_mm.engine.inference.palette import distinct_colours
from wsbcn_mm.engine.inference.report import Report, output_names


def test_the_table_grows_and_the_json_is_written_at_the_end(tmp_path):
    report = Report(tmp_path / 'out', ['file', 'score'], checkpoint='c.pth')
    report.add([('a, b.png', 0.5)], dict(file='a, b.png'))
    assert (tmp_path / 'out' / 'predictions.csv').read_text() == 'file,score\n"a, b.png",0.5\n'
    report.fail('c.png', ValueError('image c.png cannot be read'))
    report.close()
    assert json.loads((tmp_path / 'out' / 'predictions.json').read_text()) == dict(
        checkpoint='c.pth', results=[dict(file='a, b.png')], failed={'c.png': 'image c.png cannot be read'}
    )


def names(*paths):
    return list(output_names([Path(path) for path in paths]).values())


def test_every_input_has_an_output_of_its_own():
    assert names('x/a.png', 'y/b.jpg') == ['a', 'b']
    assert names('x/a.png', 'y/a.png') == ['x_a', 'y_a']
    assert names('x/a.png', 'x/a.jpg') == ['a.png', 'a.jpg']
    assert names('x/A.png', 'x/a.png') == ['00000_A', '00001_a']
    assert names('x/d/a.png', 'x/d_a.png') == ['a', 'd_a']


def test_batches_have_one_key():
    assert list(batches([1, 1, 1, 2, 1], 2, lambda number: number)) == [[1, 1], [1], [2], [1]]


def test_colours_are_given_first_and_differ():
    given = [(1, 2, 3), (4, 5, 6)]
    colours = distinct_colours(given, 40)
    assert colours[:2] == tuple(given)
    assert len(set(colours)) == 40
    assert distinct_colours(given, 1) == ((1, 2, 3),)
