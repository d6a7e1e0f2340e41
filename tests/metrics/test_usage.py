"""Usage, perplexity and entropy compared with formulas, and counts of codes compared with NumPy."""

import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqtool.metrics.collisions import IdCounts
from vqtool.metrics.usage import (
    CodeCounter,
    Usage,
    expected_used,
    normalized_entropy,
    shannon_entropy,
    usage_from_counts,
)

SIZES = (4, 300, 7)


def test_usage_of_uneven_counts():
    # Probabilities 1/2, 1/4, 1/8, 1/8: 1/2 · 1 + 1/4 · 2 + 2 · 1/8 · 3 = 1.75 bits.
    usage = usage_from_counts(torch.tensor([0, 4, 0, 2, 1, 0, 1, 0]))
    assert usage.codebook_size == 8
    assert usage.used == 4
    assert usage.usage == 0.5
    assert usage.dead == 4
    assert usage.entropy_bits == pytest.approx(1.75, rel=1e-14)
    assert usage.perplexity == pytest.approx(2**1.75, rel=1e-14)
    assert usage.entropy == pytest.approx(1.75 / 3, rel=1e-14)
    assert usage.expected_used == pytest.approx(8 * (1 - (7 / 8) ** 8), rel=1e-14)
    assert usage.tokens == 8
    assert usage.counts == [0, 4, 0, 2, 1, 0, 1, 0]
    assert all(type(count) is int for count in usage.counts)


def test_uniform_usage_has_the_largest_entropy():
    usage = usage_from_counts(torch.full((16,), 3))
    assert (usage.used, usage.usage, usage.dead) == (16, 1.0, 0)
    assert usage.entropy_bits == pytest.approx(4)
    assert usage.perplexity == pytest.approx(16)
    assert usage.entropy == pytest.approx(1)


def test_collapsed_codebook_has_no_entropy():
    usage = usage_from_counts(torch.tensor([0, 0, 1000, 0]))
    assert (usage.used, usage.usage, usage.dead) == (1, 0.25, 3)
    assert (usage.entropy_bits, usage.perplexity, usage.entropy) == (0.0, 1.0, 0.0)


def test_usage_without_tokens():
    usage = usage_from_counts(torch.zeros(4, dtype=torch.int64))
    assert (usage.used, usage.usage, usage.dead, usage.tokens) == (0, 0.0, 4, 0)
    assert (usage.entropy_bits, usage.perplexity, usage.entropy, usage.expected_used) == (0.0, 1.0, 0.0, 0.0)


def test_codebook_of_one_code():
    usage = usage_from_counts(torch.tensor([7]))
    assert (usage.used, usage.usage, usage.dead, usage.expected_used) == (1, 1.0, 0, 1.0)
    assert (usage.entropy_bits, usage.perplexity, usage.entropy) == (0.0, 1.0, 1.0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 10**12), min_size=2, max_size=30))
def test_usage_of_random_counts(counts):
    usage = usage_from_counts(torch.tensor(counts))
    probabilities = np.array([count / sum(counts) for count in counts if count])
    bits = -(probabilities * np.log2(probabilities)).sum()
    assert usage.entropy_bits == pytest.approx(bits, rel=1e-9, abs=1e-12)
    assert usage.perplexity == pytest.approx(2**bits, rel=1e-9)
    assert usage.entropy == pytest.approx(bits / math.log2(len(counts)), rel=1e-9, abs=1e-12)
    assert usage.used == len(probabilities)
    assert usage.used + usage.dead == usage.codebook_size == len(counts)
    assert 1 <= usage.perplexity <= len(counts) * (1 + 1e-9)


def test_entropy_normalises_its_weights():
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert shannon_entropy(torch.tensor([0.3, 0.0, 0.1], dtype=torch.float64)) == pytest.approx(expected)
    assert shannon_entropy(torch.tensor([30, 0, 10])) == pytest.approx(expected)


@pytest.mark.parametrize("weight", [1e-30, 0.1, 7.0, 1e30])
def test_entropy_of_one_code_is_positive_zero(weight):
    assert str(shannon_entropy(torch.tensor([0.0, weight]))) == "0.0"


def test_normalized_entropy():
    assert normalized_entropy(math.log(3), 9) == pytest.approx(0.5)
    assert normalized_entropy(0.0, 1) == 1


@pytest.mark.parametrize(("k", "tokens"), [(1, 1), (2, 1), (2, 3), (3, 4), (4, 3), (5, 5)])
def test_expected_used_is_the_mean_over_all_draws(k, tokens):
    draws = list(itertools.product(range(k), repeat=tokens))
    assert expected_used(k, tokens) == pytest.approx(sum(len(set(draw)) for draw in draws) / len(draws))


@pytest.mark.parametrize("k", [1, 2, 1024, 1 << 24])
def test_expected_used_of_zero_and_one_tokens(k):
    assert expected_used(k, 0) == 0
    assert expected_used(k, 1) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("k", "tokens"), [(1 << 24, 5), (10**7, 5), (1 << 18, 1000), (65_536, 10**6), (512, 10**12), (1, 10**12)]
)
def test_expected_used_is_precise_for_large_codebooks(k, tokens):
    with localcontext() as context:
        context.prec = 60
        exact = k * (1 - (1 - Decimal(1) / k) ** tokens)
    assert expected_used(k, tokens) == pytest.approx(float(exact), rel=1e-12)


def indices(rows=200, tokens=5):
    random = np.random.default_rng(0)
    return np.stack([random.integers(0, size, (rows, tokens)) for size in SIZES], axis=2).astype(np.uint16)


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_code_counter_counts_each_level_for_any_batch_size(batch_size):
    counter, all_indices = CodeCounter(SIZES, ids=True), indices()
    for start in range(0, len(all_indices), batch_size):
        counter.add(all_indices[start : start + batch_size])
    for number, (usage, size) in enumerate(zip(counter.levels, SIZES, strict=True)):
        assert isinstance(usage, Usage)
        assert usage.counts == np.bincount(all_indices[..., number].ravel(), minlength=size).tolist()
    assert counter.distinct == IdCounts(200, len({row.tobytes() for row in all_indices}))


def test_code_counter_of_indices_without_a_level_axis():
    counter, all_indices = CodeCounter([300], ids=False), indices()[..., 1]
    counter.add(all_indices)
    (usage,) = counter.levels
    assert usage.counts == np.bincount(all_indices.ravel(), minlength=300).tolist()


def test_code_counter_without_ids():
    counter = CodeCounter(SIZES, ids=False)
    counter.add(indices())
    assert counter.distinct is None


def test_code_counter_before_the_first_batch():
    counter = CodeCounter([3, 2], ids=True)
    assert [level.counts for level in counter.levels] == [[0, 0, 0], [0, 0]]
    assert counter.distinct is None


def test_usage_does_not_change_with_later_batches():
    counter = CodeCounter([3], ids=False)
    counter.add(np.array([[0, 1]], dtype=np.uint8))
    before = counter.levels[0].counts
    counter.add(np.array([[0, 2]], dtype=np.uint8))
    assert before == [1, 1, 0]
    assert counter.levels[0].counts == [2, 1, 1]


@pytest.mark.parametrize(("level", "size"), list(enumerate(SIZES)))
def test_code_counter_refuses_indices_out_of_range(level, size):
    all_indices = indices()
    all_indices[50, 2, level] = size
    with pytest.raises(IndexError, match=rf"^index {size}, .*0 to {size - 1}$"):
        CodeCounter(SIZES, ids=True).add(all_indices)
