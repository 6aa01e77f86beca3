import json
import re

import pytest

from wsbcn_mm.video.annotations import (
    Annotation,
    load_classes,
    load_path_label_lines,
    load_something_csv,
    load_something_json,
)

NAMES = ['Holding something', 'Pulling something from left to right', 'Pulling something from right to left']


@pytest.fixture
def write(tmp_path):
    def write(content, name):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding='utf-8')
        return str(path)

    return write


@pytest.mark.parametrize(
    ('content', 'name'),
    [
        ('\n'.join(NAMES) + '\n', 'something-something-v1-labels.csv'),
        ('\ufeff' + '\r\n'.join(NAMES), 'label_map.txt'),
        (NAMES, 'names.json'),
        ({NAMES[2]: '2', NAMES[0]: '0', NAMES[1]: '1'}, 'something-something-v2-labels.json'),
        ({NAMES[2]: 2, NAMES[0]: 0, NAMES[1]: 1}, 'labels.json'),
    ],
)
def test_class_lists(write, content, name):
    assert load_classes(write(content, name)) == NAMES


@pytest.mark.parametrize(
    ('content', 'name', 'text'),
    [
        ('', 'a.txt', 'a.txt: no class names'),
        ('dance\nrun\ndance\n', 'a.txt', "a.txt: class name 'dance' occurs more than once"),
        ({'dance': '1', 'run': '2'}, 'a.json', 'a.json: class ids must be 0 to 1, once each'),
        ({'dance': '0', 'run': '0'}, 'a.json', 'a.json: class ids must be 0 to 1, once each'),
        ({'dance': 'x'}, 'a.json', "a.json: class 'dance' has the id 'x', not a number"),
        ('7', 'a.json', 'a.json: a list of class names or {name: id} is needed'),
        ('[\n"dance",\n]', 'a.json', 'a.json:3: not JSON: '),
    ],
)
def test_bad_class_lists(write, content, name, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        load_classes(write(content, name))


def test_path_label_lines(write):
    path = write('abseiling/-3B32 lodo M.mp4 0\n\n  fußball, außen/ü.mp4   2 \r\na.mp4\t1\n', 'train list.txt')
    assert load_path_label_lines(path, 3) == [
        Annotation('abseiling/-3B32 lodo M.mp4', 0),
        Annotation('fußball, außen/ü.mp4', 2),
        Annotation('a.mp4', 1),
    ]


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        ('a.mp4 0\nb.mp4\n', "list.txt:2: 'b.mp4' is not 'path label' with an integer label at the end"),
        ('a.mp4 0\nb c.mp4\n', "list.txt:2: 'b c.mp4' is not 'path label' with an integer label at the end"),
        ('a.mp4 1.0\n', "list.txt:1: 'a.mp4 1.0' is not 'path label' with an integer label at the end"),
        ('7\n', "list.txt:1: '7' is not 'path label' with an integer label at the end"),
        ('a.mp4 0\nb.mp4 -1\n', 'list.txt:2: label -1 is outside 0 to 2 (3 classes)'),
        ('a.mp4 0\n\nb.mp4 3\n', 'list.txt:3: label 3 is outside 0 to 2 (3 classes)'),
        ('a 1\nb 3\nc 2\n', 'list.txt:2: labels run from 1 to 3; labels count from 0, subtract 1 from each'),
        ('\n \n', 'list.txt: no clips'),
    ],
)
def test_bad_path_label_lines(write, content, text):
    with pytest.raises(ValueError, match=f'{re.escape(text)}$'):
        load_path_label_lines(write(content, 'list.txt'), 3)


def test_something_v1(write):
    path = write(f'100218;{NAMES[1]}\n7; {NAMES[0]}\n', 'something-something-v1-train.csv')
    assert load_something_csv(path, NAMES) == [Annotation('100218', 1), Annotation('7', 0)]
    as_json = write([{'id': '100218', 'label': NAMES[1]}, {'id': 7, 'template': NAMES[0]}], 'v1.json')
    assert load_something_json(as_json, NAMES) == load_something_csv(path, NAMES)


def test_something_v2(write):
    entries = [
        {
            'id': '78687',
            'label': 'holding potato',
            'template': 'Holding [something]',
            'placeholders': ['potato'],
        },
        {'id': '42326', 'label': 'x', 'template': 'Pulling [something] from right to left', 'placeholders': ['a cup']},
    ]
    path = write(entries, 'something-something-v2-train.json')
    assert load_something_json(path, NAMES) == [Annotation('78687', 0), Annotation('42326', 2)]


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        ('1;Holding something\n2\n', "list.csv:2: '2' is not 'id;class name' (the test list has no classes)"),
        ('1;Holding nothing\n', "list.csv:1: class 'Holding nothing' is not in the class list"),
        ('', 'list.csv: no clips'),
    ],
)
def test_bad_something_csv(write, content, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        load_something_csv(write(content, 'list.csv'), NAMES)


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        ([{'id': '1'}], "list.json: entry 0: {'id': '1'} lacks 'id' or 'template' (the test list has no classes)"),
        (['1'], "list.json: entry 0: '1' lacks 'id' or 'template' (the test list has no classes)"),
        ([{'id': '1', 'template': 'Holding [it]'}], "entry 0 (id 1): class 'Holding it' is not in the class list"),
        ({}, 'list.json: a list of entries with id and template is needed'),
        ('[{]', 'list.json:1: not JSON'),
    ],
)
def test_bad_something_json(write, content, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        load_something_json(write(content, 'list.json'), NAMES)
