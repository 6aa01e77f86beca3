"""Splits at random: evenly by class, together by source, the same for the same seed."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsbcn_mm.engine.data.splits import content_in_two_splits, sources_by, sources_in_two_splits, stratified_split


def names(count: int) -> list[str]:
    return [f'n{index}' for index in range(count)]


@pytest.mark.parametrize(('samples', 'val'), [(1, 0), (2, 1), (3, 1), (5, 1), (8, 2), (100, 20)])
def test_the_share_of_a_class(samples: int, val: int) -> None:
    splits = stratified_split(['a'] * samples, names(samples), {'val': 0.2})
    assert Counter(splits)['val'] == val
    assert Counter(splits)['train'] == samples - val


def test_every_class_has_its_share() -> None:
    labels = ['rare'] * 5 + ['often'] * 50
    splits = stratified_split(labels, names(55), {'val': 0.2, 'test': 0.2}, seed=3)
    assert Counter(zip(labels, splits, strict=True)) == {
        ('rare', 'train'): 3, ('rare', 'val'): 1, ('rare', 'test'): 1,
        ('often', 'train'): 30, ('often', 'val'): 10, ('often', 'test'): 10,
    }  # fmt: skip


def test_the_seed_decides() -> None:
    labels = ['a'] * 20
    first = stratified_split(labels, names(20), {'val': 0.2}, seed=0)
    assert first == stratified_split(labels, names(20), {'val': 0.2}, seed=0)
    assert first != stratified_split(labels, names(20), {'val': 0.2}, seed=1)
    backwards = stratified_split(labels, names(20)[::-1], {'val': 0.2}, seed=0)
    assert first == backwards[::-1]


@given(st.lists(st.tuples(st.sampled_from('abc'), st.integers(0, 8)), min_size=1, max_size=40), st.integers(0, 9))
def test_sources_stay_together(samples: list[tuple[str, int]], seed: int) -> None:
    labels, sources = [label for label, _ in samples], [str(source) for _, source in samples]
    splits = stratified_split(labels, sources, {'val': 0.25, 'test': 0.1}, seed)
    assert sources_in_two_splits(splits, sources) == []
    assert set(splits) <= {'train', 'val', 'test'}
    assert 'train' in splits


def test_shares_that_leave_nothing() -> None:
    with pytest.raises(ValueError, match=r'^val_share=1.0: a share of the samples in \[0, 1\) is accepted$'):
        stratified_split(['a'], ['a'], {'val': 1.0})
    with pytest.raises(ValueError, match=r'^val_share=0.5, test_share=0.5: shares below 1 in total are accepted'):
        stratified_split(['a'], ['a'], {'val': 0.5, 'test': 0.5})


def test_sources_by_a_pattern() -> None:
    assert sources_by('_g([0-9]+)_', ['v_run_g01_c02', 'v_run_g12_c01']) == ['01', '12']
    assert sources_by('^[a-z]+', ['cam1', 'door2']) == ['cam', 'door']
    assert sources_in_two_splits(['train', 'val', 'val'], ['a', 'a', 'b']) == ['a (train and val)']
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared
        sources_by('^([a-z]+)_', ['a_1', 'b1', 'c1'])
    assert str(error.value) == (
        "group_by='^([a-z]+)_': a pattern that every path matches is accepted, and 2 of 3 do not match; the first is b1"
    )
    with pytest.raises(ValueError, match=r"^group_by='\(': a regular expression is accepted \("):
        sources_by('(', ['a'])


def test_equal_content_counts_only_between_splits_and_between_files(tmp_path: Path) -> None:
    contents = {'a': b'one', 'b': b'one', 'c': b'two', 'd': b'two', 'e': b'longer', 'f': b'four'}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    splits = {'a': 'train', 'b': 'val', 'c': 'train', 'd': 'train', 'e': 'val', 'f': 'train'}
    files = [(split, name, len(contents[name])) for name, split in splits.items()]
    assert content_in_two_splits(tmp_path, files) == ['a = b']
    assert content_in_two_splits(tmp_path, [*files, ('test', 'f', 4)]) == ['a = b']  # one file, listed twice
