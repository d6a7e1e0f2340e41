"""Neighbouring codes against a textbook's loop."""

import math
from collections import Counter

import numpy as np
import pytest

from vqtool.inspection import pairs
from vqtool.inspection.pairs import Pairs, Relation, conditional_entropy_bits, entropy_bits


def related(indices: np.ndarray, sizes: list[int], grid: tuple[int, ...], block: int = 7) -> list[Relation]:
    found = Pairs(sizes, grid, len(indices))
    for start in range(0, len(indices), block):
        found.add(start, indices[start : start + block])
    return found.result()


def textbook(seen: list[tuple[int, int]]) -> tuple[float, float]:
    """H(after), and H(after | before) as the sum of p(a, b) log2 p(a) / p(a, b)."""
    total = len(seen)
    joint, before, after = Counter(seen), Counter(a for a, _ in seen), Counter(b for _, b in seen)
    alone = -sum(n / total * math.log2(n / total) for n in after.values())
    given = sum(n / total * math.log2(before[a] / n) for (a, _), n in joint.items())
    return alone, given


def test_a_grid_has_neighbours_left_and_above() -> None:
    indices = np.random.default_rng(0).integers(0, 5, (40, 12)) * np.random.default_rng(1).integers(0, 2, (40, 12))
    left, above = related(indices, [5], (3, 4))
    grids = indices.reshape(40, 3, 4)
    lefts = [(g[i, j], g[i, j + 1]) for g in grids.tolist() for g in [np.array(g)] for i in range(3) for j in range(3)]
    aboves = [(g[i, j], g[i + 1, j]) for g in grids for i in range(2) for j in range(4)]
    for relation, seen, name in ((left, lefts, "left"), (above, aboves, "above")):
        assert name in relation.neighbour
        assert relation.pairs == len(seen)
        assert (relation.alone, relation.given) == pytest.approx(textbook(seen))


def test_levels_tell_of_each_other() -> None:
    indices = np.random.default_rng(0).integers(0, 4, (50, 1, 3))
    indices[:, 0, 1] = 3 - indices[:, 0, 0]
    first, second = related(indices, [4, 4, 4], (1,))
    assert (first.level, first.neighbour, second.level) == (1, "the code at level 0", 2)
    assert first.given == pytest.approx(0, abs=1e-12)
    assert (second.alone, second.given) == pytest.approx(textbook([tuple(row) for row in indices[:, 0, 1:].tolist()]))


def test_what_follows_surely_saves_all_bits_and_what_is_random_none() -> None:
    indices = (np.arange(64)[None] + np.random.default_rng(0).integers(0, 8, (500, 1))) % 8
    (sure,) = related(indices, [8], (64,))
    assert (sure.alone, sure.given, sure.gain) == pytest.approx((3, 0, 3), abs=0.01)
    (none,) = related(np.random.default_rng(0).integers(0, 8, (500, 64)), [8], (64,))
    assert none.gain == pytest.approx(0, abs=0.01)


def test_few_pairs_do_not_look_like_a_saving() -> None:
    """As counted, the entropy given the neighbour is almost nothing, and means nothing."""
    (relation,) = related(np.random.default_rng(0).integers(0, 1_000, (20, 20)), [1_000], (20,))
    assert relation.given < 2 < relation.alone
    assert relation.gain < 0.1


def test_a_share_of_the_rows_is_looked_at_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_MOST_PAIRS", 100)
    indices = np.random.default_rng(0).integers(0, 9, (90, 5))
    found = [related(indices, [9], (5,), block)[0] for block in (1, 4, 33, 90)]
    assert {relation.pairs for relation in found} == {28}  # of every 14th row, 7 of them, 4 each
    assert {relation.given for relation in found} == {found[0].given}


def test_surprise_is_that_of_the_most_used_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_NAMED", 2)
    (relation,) = related(np.array([[0, 1, 0, 1, 0, 1, 2, 3]]), [4], (8,))
    assert relation.before.tolist() == [0, 1]
    assert relation.codes.tolist() == [0, 1]
    # 7 pairs; 0 stands before 1 three times, and by chance 3 * 3 / 7 times.
    assert relation.surprise[0, 1] == pytest.approx((3 - 9 / 7) / math.sqrt(9 / 7 + 1))
    assert relation.surprise[0, 0] == pytest.approx(-6 / 7 / math.sqrt(6 / 7 + 1))


def test_single_codes_have_no_neighbours() -> None:
    assert related(np.zeros((5, 1), np.int64), [4], (1,)) == []


def test_entropies_of_known_values() -> None:
    assert entropy_bits(np.array([0, 1, 2, 3])) == 2
    assert entropy_bits(np.array([7, 7])) == 0
    assert conditional_entropy_bits(np.array([0, 1, 0, 1]), np.array([5, 5, 9, 9])) == 1
    assert conditional_entropy_bits(np.array([0, 1, 0, 1]), np.array([5, 6, 5, 6])) == 0
