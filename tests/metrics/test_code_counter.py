"""Counting over indices, against NumPy on the whole of them."""

import numpy as np
import pytest

from vqtool.metrics.code_counter import CodeCounter
from vqtool.metrics.collisions import IdCounts
from vqtool.metrics.usage import Usage

SIZES = (4, 300, 7)


def indices(rows=200, positions=5):
    random = np.random.default_rng(0)
    return np.stack([random.integers(0, size, (rows, positions)) for size in SIZES], axis=2).astype(np.uint16)


@pytest.mark.parametrize("block", [1, 7, 200])
def test_each_level_has_its_own_hits_in_any_blocks(block):
    tally, whole = CodeCounter(SIZES, ids=True), indices()
    for start in range(0, len(whole), block):
        tally.add(whole[start : start + block])
    for number, (usage, size) in enumerate(zip(tally.levels, SIZES, strict=True)):
        assert isinstance(usage, Usage)
        assert usage.counts == np.bincount(whole[..., number].ravel(), minlength=size).tolist()
    assert tally.distinct == IdCounts(200, len({row.tobytes() for row in whole}))


def test_indices_without_a_level_axis_are_one_level():
    tally, whole = CodeCounter([300], ids=False), indices()[..., 1]
    tally.add(whole)
    (usage,) = tally.levels
    assert usage.counts == np.bincount(whole.ravel(), minlength=300).tolist()


def test_ids_are_counted_where_they_are_asked_for():
    tally = CodeCounter(SIZES, ids=False)
    tally.add(indices())
    assert tally.distinct is None


def test_nothing_counted_yet():
    tally = CodeCounter([3, 2], ids=True)
    assert [level.counts for level in tally.levels] == [[0, 0, 0], [0, 0]]
    assert tally.distinct is None


def test_levels_are_a_state_of_their_own():
    tally = CodeCounter([3], ids=False)
    tally.add(np.array([[0, 1]], dtype=np.uint8))
    before = tally.levels[0].counts
    tally.add(np.array([[0, 2]], dtype=np.uint8))
    assert before == [1, 1, 0]
    assert tally.levels[0].counts == [2, 1, 1]


@pytest.mark.parametrize(("level", "size"), list(enumerate(SIZES)))
def test_an_index_beyond_its_own_codebook_is_named(level, size):
    whole = indices()
    whole[50, 2, level] = size
    with pytest.raises(IndexError, match=rf"^index {size}, but valid indices are 0 to {size - 1}$"):
        CodeCounter(SIZES, ids=True).add(whole)
