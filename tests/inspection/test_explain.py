"""Explanations of usage and perplexity in plain language."""

import re

import numpy as np
import pytest
import torch

from tests.cli import mentions
from vqtool.inspection.explain import expected_perplexity, explain, healthy_perplexity_range
from vqtool.metrics.usage import Usage, shannon_entropy, usage_from_counts


def usage(*counts: int) -> Usage:
    return usage_from_counts(torch.tensor(counts))


@pytest.mark.parametrize(("size", "tokens"), [(256, 20), (256, 720), (64, 64), (16, 2_000), (512, 40_000), (8, 1)])
def test_expected_perplexity_matches_uniform_draws(size: int, tokens: int) -> None:
    random = np.random.default_rng(0)
    counts = [np.bincount(random.integers(0, size, tokens), minlength=size) for _ in range(200)]
    mean = np.mean([shannon_entropy(torch.from_numpy(hits)) for hits in counts])
    assert expected_perplexity(size, tokens) == pytest.approx(np.exp(mean), rel=0.02)


def test_expected_perplexity_is_between_1_and_the_number_of_codes_and_tokens() -> None:
    assert expected_perplexity(256, 0) == 1
    assert expected_perplexity(1, 1_000) == pytest.approx(1)
    assert expected_perplexity(8_192, 10**9) == pytest.approx(8_192, rel=1e-4)
    assert all(expected_perplexity(256, n) <= min(n, 256) + 1e-9 for n in (1, 2, 3, 10, 100, 12_799, 12_801))


def test_healthy_range_depends_on_the_number_of_tokens() -> None:
    low, high = healthy_perplexity_range(usage(*[10_000] * 100))
    assert (low, high) == (pytest.approx(50, rel=1e-3), pytest.approx(90, rel=1e-3))
    assert healthy_perplexity_range(usage(1, 1, *[0] * 98))[1] <= 2


def positions_in(sentence: str) -> list[str]:
    return re.findall(r"\b(above|within|below)\b", sentence)


@pytest.mark.parametrize(
    ("counts", "position"),
    [([1_000] * 10, "above"), ([3_000] * 7 + [10] * 3, "within"), ([9_000, 100, 0, 0, 0, 0], "below")],
)  # fmt: skip
def test_codebook_is_placed_in_the_healthy_range(counts: list[int], position: str) -> None:
    assert positions_in(explain([usage(*counts)])[1]) == [position]


def test_explanation_states_perplexity_range_data_kind_and_batch_limit() -> None:
    perplexity, healthy_range, images, batch = explain([usage(4, 0, 2, 2)], "images", batch_tokens=2)
    assert mentions(perplexity, "2.8 ... K = 4 ... 1.50 bits")
    assert mentions(healthy_range, "8 tokens ... few ... 4 codes ... 0.5 to 0.9 ... 1.5 to 2.7")
    assert "Images" in images
    assert mentions(batch, "2 tokens ... at most 2 codes")
    assert len(explain([usage(1, 1)], None)) == 3


def test_first_level_is_explained_and_later_levels_are_placed_in_the_same_range() -> None:
    uniform, healthy, low, single = (
        usage(*[1_000] * 10),
        usage(*[3_000] * 7, *[10] * 3),
        usage(9_000, 9, 0, 0),
        usage(5),
    )
    perplexity, _, batch, later_levels = explain([healthy, uniform, low, uniform, single])
    assert mentions(perplexity, "level 0 ... 7.1")
    assert "256 tokens" in batch
    assert mentions(later_levels, "levels 1 and 3 ... above ... level 2 ... below")
    assert positions_in(later_levels) == ["above", "below"]
    assert len(explain([healthy, single])) == 3
    first, second = explain([single, healthy])
    assert mentions(first, "level 0 ... single code")
    assert mentions(second, "level 1 ... within")


def test_single_code_and_single_token_have_no_range() -> None:
    for counts in ((1,), (1000,)):
        (sentence,) = explain([usage(*counts)], "images", 2)
        assert "single code" in sentence
    (sentence,) = explain([usage(0, 1, 0)], "images")
    assert "one token" in sentence


@pytest.mark.parametrize("counts", [(2, 0), (1, 1), (1000, 0), (100, 100), (1, 1, 1), (2, *[0] * 511), (1, 2)])
def test_small_counts_give_grammatical_sentences(counts: tuple[int, ...]) -> None:
    """No `1 codes`, and no perplexity below 1."""
    text = " ".join(explain([usage(*counts)], "vectors", batch_tokens=1))
    assert not re.search(r"\b1 (codes|tokens)\b", text)
    shown_range = re.search(r" ([\d.]+) to ([\d.]+)\. ", text)
    assert shown_range
    assert 1 <= float(shown_range[1]) <= float(shown_range[2])
    low, high = healthy_perplexity_range(usage(*counts))
    assert 1 <= low <= high
    assert ("below" in positions_in(text)) == (sum(count > 0 for count in counts) == 1)
    assert mentions(text, "1 token ... at most 1 code,")


def test_explanation_without_tokens() -> None:
    (sentence,) = explain([usage(0, 0)])
    assert "No tokens" in sentence
