import re

import pytest

from wsbcn_mm.video.data.manifest import ManifestRow, load_manifest, save_manifest

ROWS = [
    ManifestRow('videos_train/fußball, außen/"ü" 1.mp4', 250, 25.0, 340, 256, 1000, 1, 'b, c', 'train', 'ok', 17),
    ManifestRow('frames/7', 31, None, 240, 100, 5000, 0, 'a', 'val', 'ok', 18),
    ManifestRow('videos_test/x.webm', 0, None, 0, 0, 0, None, '', 'test', 'no file'),
]
HEADER = 'path,frames,fps,width,height,bytes,label,class_name,split,status,mtime_ns\n'


def test_rows_come_back_as_they_were_written(tmp_path):
    file = tmp_path / 'manifest.csv'
    save_manifest(file, ROWS)
    assert load_manifest(file) == ROWS
    assert file.read_text().startswith(HEADER)
    save_manifest(file, [])
    assert load_manifest(file) == []
    assert [path.name for path in tmp_path.iterdir()] == ['manifest.csv']


def test_file_names_that_are_not_utf8_come_back(tmp_path):
    row = ROWS[1]._replace(path=b'videos/caf\xe9.mp4'.decode('utf-8', 'surrogateescape'))
    save_manifest(tmp_path / 'manifest.csv', [row])
    assert load_manifest(tmp_path / 'manifest.csv') == [row]


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        ('', f"manifest.csv:1: header '': '{HEADER.strip()}' is expected"),
        ('a.mp4 0\n', f"manifest.csv:1: header 'a.mp4 0': '{HEADER.strip()}' is expected"),
        (HEADER + 'a,3,25,4,4,9,0,x,train,ok,1\nb,3\n', 'manifest.csv:3: 2 fields: 11 are expected'),
        (HEADER + 'a,many,25,4,4,9,0,x,train,ok,1\n', "manifest.csv:2: frames='many': a number >= 0 is expected"),
        (HEADER + 'a,3,nan,4,4,9,0,x,train,ok,1\n', "manifest.csv:2: fps='nan': a number >= 0 is expected"),
        (HEADER + 'a,3,25,4,4,9,-1,x,train,ok,1\n', "manifest.csv:2: label='-1': a number >= 0 is expected"),
        (
            HEADER + 'a,0,25,4,4,9,0,x,train,ok,1\n',
            "manifest.csv:2: frames=0 with status 'ok': at least 1 is expected",
        ),
        (HEADER + 'a,3,25,4,4,9,0,x,,ok,1\n', 'manifest.csv:2: split is empty'),
        (HEADER + 2 * 'a,3,25,4,4,9,0,x,val,ok,1\n', "manifest.csv:3: 'a' is already in line 2"),
        (
            HEADER + 'a,3,25,4,4,9,0,x,val,ok,1\nb,3,25,4,4,9,0,y,val,ok,1\n',
            "manifest.csv:3: label 0 is 'y', but 'x' in an earlier line",
        ),
        (HEADER + 'a,3,25,4,4,9,0,"x', 'manifest.csv:2: unexpected end of data'),
    ],
)
def test_bad_manifests_are_refused_with_the_line(tmp_path, content, text):
    (tmp_path / 'manifest.csv').write_text(content)
    with pytest.raises(ValueError, match=f'{re.escape(text)}$'):
        load_manifest(tmp_path / 'manifest.csv')


def test_a_manifest_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'manifest.csv'):
        load_manifest(tmp_path / 'manifest.csv')
