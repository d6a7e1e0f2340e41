"""Co-occurrence of neighbouring codes, compared with a direct computation over lists of pairs."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from vqtool.inspection.report.cooccurrence import (
    Cooccurrence,
    CooccurrenceCollector,
    conditional_entropy_bits,
    cooccurrence_figure,
    entropy_bits,
)
from vqtool.inspection.report.inputs import ReportInputs
from vqtool.metrics.usage import usage_from_counts


def collect(
    indices: np.ndarray, sizes: list[int], grid: tuple[int, ...], rows_per_block: int = 7, **options: int
) -> list[Cooccurrence]:
    collector = CooccurrenceCollector(sizes, grid, len(indices), **options)
    for start in range(0, len(indices), rows_per_block):
        collector.add(start, indices[start : start + rows_per_block])
    return collector.result()


def reference_entropies(pairs: list[tuple[int, int]]) -> tuple[float, float]:
    """H(X) and H(X|Y) = sum over y, x of p(y, x) log2(p(y) / p(y, x)) of pairs (y, x)."""
    total = len(pairs)
    joint, count_y, count_x = Counter(pairs), Counter(y for y, _ in pairs), Counter(x for _, x in pairs)
    entropy = -sum(n / total * math.log2(n / total) for n in count_x.values())
    conditional = sum(n / total * math.log2(count_y[y] / n) for (y, _), n in joint.items())
    return entropy, conditional


def test_a_grid_has_neighbours_to_the_left_and_above() -> None:
    indices = np.random.default_rng(0).integers(0, 5, (40, 12)) * np.random.default_rng(1).integers(0, 2, (40, 12))
    left, above = collect(indices, [5], (3, 4))
    grids = indices.reshape(40, 3, 4)
    left_pairs = [(int(g[i, j]), int(g[i, j + 1])) for g in grids for i in range(3) for j in range(3)]
    above_pairs = [(int(g[i, j]), int(g[i + 1, j])) for g in grids for i in range(2) for j in range(4)]
    for item, pairs, name in ((left, left_pairs, "left"), (above, above_pairs, "above")):
        assert name in item.neighbour
        assert item.pairs == len(pairs)
        assert (item.entropy, item.conditional_entropy) == pytest.approx(reference_entropies(pairs))


def test_the_previous_level_is_a_neighbour() -> None:
    indices = np.random.default_rng(0).integers(0, 4, (50, 1, 3))
    indices[:, 0, 1] = 3 - indices[:, 0, 0]
    first, second = collect(indices, [4, 4, 4], (1,))
    assert (first.level, first.neighbour, second.level) == (1, "the code at level 0", 2)
    assert first.conditional_entropy == pytest.approx(0, abs=1e-12)
    expected = reference_entropies([tuple(row) for row in indices[:, 0, 1:].tolist()])
    assert (second.entropy, second.conditional_entropy) == pytest.approx(expected)


def test_mutual_information_of_determined_codes_is_the_entropy_and_of_random_codes_0() -> None:
    indices = (np.arange(64)[None] + np.random.default_rng(0).integers(0, 8, (500, 1))) % 8
    (item,) = collect(indices, [8], (64,))
    assert (item.entropy, item.conditional_entropy, item.mutual_information) == pytest.approx((3, 0, 3), abs=0.01)
    (item,) = collect(np.random.default_rng(0).integers(0, 8, (500, 64)), [8], (64,))
    assert item.mutual_information == pytest.approx(0, abs=0.01)


def test_mutual_information_of_few_random_pairs_is_near_0() -> None:
    """The conditional entropy of few pairs is biased; subtracting it from the shuffled one removes the bias."""
    (item,) = collect(np.random.default_rng(0).integers(0, 1_000, (20, 20)), [1_000], (20,))
    assert item.conditional_entropy < 2 < item.entropy
    assert item.mutual_information < 0.1


def test_the_rows_counted_do_not_depend_on_block_sizes() -> None:
    indices = np.random.default_rng(0).integers(0, 9, (90, 5))
    items = [collect(indices, [9], (5,), rows_per_block, max_pairs=100)[0] for rows_per_block in (1, 4, 33, 90)]
    assert {item.pairs for item in items} == {28}  # every 14th row: 7 rows with 4 pairs each
    assert {item.conditional_entropy for item in items} == {items[0].conditional_entropy}


def test_pearson_residuals_of_the_most_used_codes() -> None:
    collector = CooccurrenceCollector([4], (8,), 1)
    collector.add(0, np.array([[0, 1, 0, 1, 0, 1, 2, 3]]))
    (item,) = collector.result(max_codes=2)
    assert item.neighbour_codes.tolist() == [0, 1]
    assert item.codes.tolist() == [0, 1]
    # 7 pairs. (0, 1) is observed 3 times and expected 3 * 3 / 7 times; (0, 0) is observed 0 and expected 3 * 2 / 7.
    assert item.pearson_residuals[0, 1] == pytest.approx((3 - 9 / 7) / math.sqrt(9 / 7 + 1))
    assert item.pearson_residuals[0, 0] == pytest.approx(-6 / 7 / math.sqrt(6 / 7 + 1))


def test_a_single_token_of_one_level_has_no_neighbours() -> None:
    assert collect(np.zeros((5, 1), np.int64), [4], (1,)) == []


def test_entropies_of_known_values() -> None:
    assert entropy_bits(np.array([0, 1, 2, 3])) == 2
    assert entropy_bits(np.array([7, 7])) == 0
    assert conditional_entropy_bits(np.array([0, 1, 0, 1]), np.array([5, 5, 9, 9])) == 1
    assert conditional_entropy_bits(np.array([0, 1, 0, 1]), np.array([5, 6, 5, 6])) == 0


def test_the_figure_states_the_bits_saved_and_warns_of_few_pairs(report_inputs: dict[str, ReportInputs]) -> None:
    inputs = report_inputs["images"]
    figure = cooccurrence_figure(inputs.cooccurrences, inputs.inspection.levels)
    assert figure
    assert [row[:3] for row in figure.data.rows] == [
        (item.level, item.neighbour, item.pairs) for item in inputs.cooccurrences
    ]
    assert "too few" in figure.interpretation
    alternating = (np.arange(64)[None] + np.random.default_rng(0).integers(0, 2, (50, 1))) % 2
    figure = cooccurrence_figure(collect(alternating, [2], (64,)), [usage_from_counts(torch.tensor([1600, 1600]))])
    assert figure
    assert "the previous code" in figure.interpretation
    assert "1.00 of 1.00 bits" in figure.interpretation
    assert "too few" not in figure.interpretation
    assert cooccurrence_figure([], inputs.inspection.levels) is None
