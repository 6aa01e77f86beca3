import json
import re

import pytest

from wsbcn_mm.video.data.annotations import (
    Annotation,
    KineticsClip,
    load_classes,
    load_kinetics_csv,
    load_path_label_lines,
    load_something_csv,
    load_something_json,
    load_something_test,
)

NAMES = ['Holding something', 'Pulling something from left to right', 'Pulling something from right to left']


@pytest.fixture
def write(tmp_path):
    def write(content, name):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
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
        ('\r\n'.join(f' "{name}"\t' for name in NAMES) + '\r', 'quoted.csv'),
    ],
)
def test_class_lists(write, content, name):
    assert load_classes(write(content, name)) == NAMES


@pytest.mark.parametrize(
    ('content', 'name', 'text'),
    [
        ('', 'a.txt', 'a.txt: no class names'),
        ('dance\nrun\ndance\n', 'a.txt', "a.txt:3: class name 'dance' occurs more than once, first in line 1"),
        (
            'caf\u00e9\n\ncafe\u0301\n',
            'a.txt',
            "a.txt:3: class name 'caf\u00e9' occurs more than once, first in line 1",
        ),
        ('dance\n""\n', 'a.txt', 'a.txt:2: an empty class name'),
        ('dance\ncaf\u00e9\n'.encode('latin-1'), 'a.txt', 'a.txt:2: not UTF-8: '),
        ('dance\n'.encode('utf-16'), 'a.txt', 'a.txt:1: not UTF-8: '),
        ({'dance': '1', 'run': '2'}, 'a.json', 'a.json: class ids 1 to 2: 0 to 1, once each, are expected'),
        ('{"dance": 0,\n"run": "0"}', 'a.json', "a.json:2: class 'run' has the id 0, as has 'dance'"),
        ('{"dance": 0,\n"dance": 1}', 'a.json', "a.json:2: class name 'dance' occurs more than once, first in line 1"),
        ('{"run": 0,\n"dance": "x"}', 'a.json', "a.json:2: class 'dance' has the id 'x': a number is expected"),
        ('["dance",\n7]', 'a.json', 'a.json:2: 7 is not a class name; a list of class names or {name: id} is expected'),
        ('7', 'a.json', 'a.json: a list of class names or {name: id} is expected'),
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


def test_lines_of_any_system(write):
    for content in ('a b.mp4 1\nc.mp4 0\n', 'a b.mp4\t1\r\nc.mp4 0  \r\n', '\ufeffa b.mp4 1\rc.mp4 0'):
        path = write(content.encode(), 'list.txt')
        assert load_path_label_lines(path, 2) == [Annotation('a b.mp4', 1), Annotation('c.mp4', 0)]


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        ('a.mp4 0\nb.mp4\n', "list.txt:2: 'b.mp4' is not 'path label' with an integer label at the end"),
        ('a.mp4 0\nb c.mp4\n', "list.txt:2: 'b c.mp4' is not 'path label' with an integer label at the end"),
        ('a.mp4 1.0\n', "list.txt:1: 'a.mp4 1.0' is not 'path label' with an integer label at the end"),
        ('7\n', "list.txt:1: '7' is not 'path label' with an integer label at the end"),
        ('a.mp4 0\nb.mp4 -1\n', 'list.txt:2: label -1: 0 to 2 (3 classes) is expected'),
        ('a.mp4 0\n\nb.mp4 3\n', 'list.txt:3: label 3: 0 to 2 (3 classes) is expected'),
        ('a 1\nb 3\nc 2\n', 'list.txt:2: labels run from 1 to 3; labels must count from 0, subtract 1 from each'),
        ('a 0\nb --1\n', "list.txt:2: 'b --1' is not 'path label' with an integer label at the end"),
        ('a.mp4,0\n', "list.txt:1: 'a.mp4,0' is not 'path label' with an integer label at the end"),
        ('a 0\nb 2\n\na 1\n', "list.txt:4: 'a' has label 1, but label 0 in line 1"),
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


def test_class_names_with_commas_quotes_and_either_form_of_unicode(write):
    names = ['Lifting something up completely, then letting it drop down', 'Opening a "caf\u00e9"', 'Something; wet']
    path = write(f'1;{names[0]}\r\n2;"{names[0]}" \n3;"Opening a ""cafe\u0301"""\n4;{names[2]}\n', 'train.csv')
    assert [clip.label for clip in load_something_csv(path, names)] == [0, 0, 1, 2]
    entries = [{'id': 5, 'template': ' Opening a "cafe\u0301"'}, {'id': 6, 'label': names[2]}]
    assert [clip.label for clip in load_something_json(write(entries, 'train.json'), names)] == [1, 2]


def test_lists_without_classes(write):
    assert load_something_test(write('7\n8;\r\n', 'test.csv')) == ['7', '8']
    assert load_something_test(write([{'id': '7'}, {'id': 8}], 'test.json')) == ['7', '8']
    with pytest.raises(ValueError, match=r"test.json:2: \{'name': 7\} lacks 'id'$"):
        load_something_test(write('[{"id": "1"},\n{"name": 7}]', 'test.json'))
    with pytest.raises(ValueError, match=r'test.csv: no clips$'):
        load_something_test(write('\n', 'test.csv'))


HEADER = 'label,youtube_id,time_start,time_end,split,is_cc\n'


def test_kinetics_csv(write):
    path = write(HEADER + '"bending back",-3B32lodo_M,59,69,train,0\r\n"tai chi, slow",abc,2.0,12.0,train,1\n', 't.csv')
    clips = load_kinetics_csv(path)
    assert clips[0] == KineticsClip(2, '-3B32lodo_M', 59, 69, 'bending back')
    assert [clip.stem for clip in clips] == ['-3B32lodo_M_000059_000069', 'abc_000002_000012']
    assert clips[1].class_name == 'tai chi, slow'
    unlabelled = load_kinetics_csv(write('youtube_id,time_start,time_end,split\nabc,1,11,test\n', 'test.csv'))
    assert unlabelled == [KineticsClip(2, 'abc', 1, 11, None)]


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        ('', 't.csv:1: no column youtube_id, time_start, time_end; the columns are none'),
        ('a.mp4 0\n', 't.csv:1: no column youtube_id, time_start, time_end; the columns are a.mp4 0'),
        (HEADER, 't.csv: no clips'),
        (HEADER + 'run,abc,1,11,train,0\nrun,abd\n', 't.csv:3: 6 columns are expected, as in the first line'),
        (HEADER + 'run,abc,1,11,train,0,9\n', 't.csv:2: 6 columns are expected, as in the first line'),
        (HEADER + ' ,abc,1,11,train,0\n', 't.csv:2: label is empty'),
        (HEADER + 'run,abc,one,11,train,0\n', "t.csv:2: time_start='one', time_end='11': seconds are expected"),
    ],
)
def test_bad_kinetics_csv(write, content, text):
    with pytest.raises(ValueError, match=f'{re.escape(text)}$'):
        load_kinetics_csv(write(content, 't.csv'))


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
        ('1;Holding something\n;Holding something\n', "list.csv:2: ';Holding something' is not 'id;class name'"),
        ('1;Holding something\n2;""\n', "list.csv:2: '2;\"\"' is not 'id;class name'"),
        (f'1;{NAMES[0]}\n1;{NAMES[1]}\n', "list.csv:2: '1' has label 1, but label 0 in line 1"),
        ('', 'list.csv: no clips'),
    ],
)
def test_bad_something_csv(write, content, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        load_something_csv(write(content, 'list.csv'), NAMES)


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        ('[\n{"id":\n"1"}]', "list.json:2: {'id': '1'} lacks 'id' or 'template' (the test list has no classes)"),
        (['1'], "list.json:1: '1' lacks 'id' or 'template' (the test list has no classes)"),
        (
            '[{"id": 0,\n"template": "Holding [something]"}\n,\n\n{"id": "1", "template": "Holding [it]"}]',
            "list.json:5: class 'Holding it' of clip 1 is not in the class list",
        ),
        (
            [{'id': 1, 'template': NAMES[0]}, {'id': '1', 'template': NAMES[1]}],
            "list.json:1: '1' has label 1, but label 0 in line 1",
        ),
        ({}, 'list.json: a list of entries is expected'),
        ([], 'list.json: a list of entries is expected'),
        ('[{]', 'list.json:1: not JSON'),
    ],
)
def test_bad_something_json(write, content, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        load_something_json(write(content, 'list.json'), NAMES)
