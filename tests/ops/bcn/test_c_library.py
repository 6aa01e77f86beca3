import logging
from pathlib import Path

import pytest

from wsbcn_mm.ops.bcn import c
from wsbcn_mm.ops.bcn.c_library import load_library

C_COMPILER = c._library() is not None


@pytest.mark.parametrize('compiler', ['no-such-compiler', 'no-such-compiler "-O2'])
def test_without_a_compiler_torchs_operators_take_over(monkeypatch, tmp_path, caplog, compiler):
    monkeypatch.setenv('WSBCN_MM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('CC', compiler)
    source = tmp_path / 'kernel.c'
    source.write_text('int answer(void) { return 42; }\n')
    with caplog.at_level(logging.WARNING):
        assert load_library(source) is None
        assert load_library(source) is None
    assert len(caplog.records) == 1
    assert 'kernel.c was not compiled' in caplog.text
    assert ('No closing quotation' if '"' in compiler else 'no-such-compiler') in caplog.text


def test_a_user_without_a_home_does_without_the_library_or_names_a_folder(monkeypatch, tmp_path, caplog):
    def no_home():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.setattr(Path, 'home', no_home)
    monkeypatch.delenv('WSBCN_MM_CACHE', raising=False)
    source = tmp_path / 'kernel.c'
    source.write_text('int answer(void) { return 42; }\n')
    with caplog.at_level(logging.WARNING):
        assert load_library(source) is None
    assert 'kernel.c was not compiled' in caplog.text
    if C_COMPILER:
        source = source.rename(tmp_path / 'other.c')
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv('WSBCN_MM_CACHE', '.')
        assert load_library(source).answer() == 42


@pytest.mark.skipif(not C_COMPILER, reason='no C compiler')
def test_a_library_is_compiled_once(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv('WSBCN_MM_CACHE', str(tmp_path / 'cache'))
    source = tmp_path / 'kernel.c'
    source.write_text('int answer(void) { return 42; }\n')
    assert load_library(source).answer() == 42
    (library,) = (tmp_path / 'cache').iterdir()
    made = library.stat().st_mtime_ns
    load_library.cache_clear()
    assert load_library(source).answer() == 42
    assert library.stat().st_mtime_ns == made
    broken = tmp_path / 'broken.c'
    broken.write_text('int answer(void) { return }\n')
    with caplog.at_level(logging.WARNING):
        assert load_library(broken) is None
    assert 'error' in caplog.text
    monkeypatch.setenv('WSBCN_MM_COMPILE', '0')
    other = Path(tmp_path / 'other.c')
    other.write_text(source.read_text())
    assert load_library(other) is None
