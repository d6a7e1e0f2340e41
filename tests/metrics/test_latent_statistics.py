"""Where codes lie, beside the textbook's way of working it out."""

import numpy as np
import pytest
import torch

from vqtool.metrics import latent_statistics as module
from vqtool.metrics.latent_statistics import LatentStatistics, geometry, movement, pooled, varies


def latents(vectors: np.ndarray, codes: np.ndarray) -> tuple[torch.Tensor, LatentStatistics]:
    """Hits (K,) of codes by their nearest vectors, and what a pass knows of these."""
    squared = ((vectors[:, None] - codes) ** 2).sum(axis=2)
    nearest = squared.argmin(axis=1)
    errors = np.bincount(nearest, weights=squared.min(axis=1), minlength=len(codes))
    variance = ((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).mean()
    counts = torch.from_numpy(np.bincount(nearest, minlength=len(codes)))
    known = LatentStatistics(
        torch.from_numpy(vectors.mean(axis=0)), variance, squared.min(axis=1).mean(), torch.from_numpy(errors)
    )
    return counts, known


def figures(vectors: np.ndarray, codes: np.ndarray) -> dict[str, float]:
    return geometry(torch.from_numpy(codes), *latents(vectors, codes))


def test_codes_on_a_line_by_hand() -> None:
    """Latents 0, 1, 4, 5 and codes 0.5 and 4.5: errors of a quarter, a gap of 4."""
    found = figures(np.array([[0.0], [1.0], [4.0], [5.0]]), np.array([[0.5], [4.5]]))
    assert found["spread"] == pytest.approx((4 / 4.25) ** 0.5)
    assert (found["outside"], found["duplicates"]) == (0, 0)
    # Merged, each latent would be 2.5 or 1.5 off: (6.25 + 2.25) / 2 against 0.25.
    assert found["halving"] == pytest.approx(4.25 / 0.25)


@pytest.mark.parametrize("block", [1, 40, 1 << 22])
def test_figures_are_the_textbooks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    random = np.random.default_rng(0)
    vectors, codes = random.normal(3, 2, size=(500, 5)), random.normal(3, 1.5, size=(20, 5))
    codes[7] = codes[3] + 1e-4
    codes[11] = 1000
    found = figures(vectors, codes)
    counts, known = latents(vectors, codes)
    gaps = ((codes[:, None] - codes) ** 2).sum(axis=2)
    np.fill_diagonal(gaps, np.inf)
    other, n = gaps.argmin(axis=1), counts.numpy()
    cost = n * n[other] / np.maximum(1, n + n[other]) * gaps.min(axis=1)
    radii = ((codes - vectors.mean(axis=0)) ** 2).sum(axis=1)
    assert found["spread"] == pytest.approx(((n * radii).sum() / 500 / known.variance) ** 0.5)
    assert found["halving"] == pytest.approx(1 + cost.sum() / 2 / 500 / known.error)
    assert (found["outside"], found["duplicates"]) == (1, 2)


def test_halves_of_a_cluster_are_no_duplicates_in_many_dimensions() -> None:
    """They lie 1.6 standard deviations apart, and each latent 16 from its code."""
    vectors = np.random.default_rng(0).standard_normal((20_000, 256))
    left = vectors[:, 0] < 0
    halves = np.stack([vectors[left].mean(axis=0), vectors[~left].mean(axis=0)])
    assert figures(vectors, halves)["duplicates"] == 0
    same = np.stack([halves[0], halves[0] + 0.005])
    assert figures(vectors, same)["duplicates"] == 2


def test_duplicates_are_measured_by_their_own_latents() -> None:
    """Codes a tenth apart are all but the same in a wide cluster, and not where latents are that close."""
    random = np.random.default_rng(0)
    wide = random.standard_normal((1000, 2))
    narrow = 100 + 0.05 * random.standard_normal((1000, 2))
    pair = np.array([[-0.05, 0.0], [0.05, 0.0]])
    assert figures(np.concatenate([wide, narrow]), np.concatenate([pair, [[100.0, 100.0]]]))["duplicates"] == 2
    assert figures(np.concatenate([wide, narrow]), np.concatenate([[[0.0, 0.0]], 100 + pair]))["duplicates"] == 0


def test_codes_that_coincide_with_all_latents() -> None:
    """No error to measure by: what is equal but for rounding is a duplicate, what is not is none."""
    vectors = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert figures(vectors, vectors)["duplicates"] == 0
    assert figures(vectors, np.concatenate([vectors, vectors[:1] + 1e-7]))["duplicates"] == 2
    assert np.isfinite(figures(vectors, vectors)["halving"])


def test_a_rare_code_far_out_is_not_outside() -> None:
    vectors = np.concatenate([np.zeros((999, 2)), np.full((1, 2), 50.0)]) + 1e-3 * np.random.default_rng(0).random(
        (1000, 2)
    )
    codes = np.array([[0.0, 0.0], [50.0, 50.0], [50.0, -50.0]])
    assert figures(vectors, codes)["outside"] == 1


def test_one_code_has_no_neighbour() -> None:
    found = figures(np.array([[0.0], [2.0]]), np.array([[1.0]]))
    assert found == {"spread": 0.0, "outside": 0.0, "duplicates": 0, "halving": 1.0}


def test_a_part_of_a_large_codebook_speaks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((4000, 3))
    codes = np.repeat(random.standard_normal((100, 3)), 2, axis=0)
    whole = figures(vectors, codes)
    monkeypatch.setattr(module, "_LOOKED_AT", 50)
    part = figures(vectors, codes)
    assert (whole["duplicates"], part["duplicates"]) == (200, 200)
    assert part["spread"] == whole["spread"]


def test_movement_is_over_the_quantizing_error() -> None:
    before = torch.zeros(4, 3)
    after = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    assert movement(after, before, 0.5) == pytest.approx((50 / 4 / 0.5) ** 0.5)


def test_latents_that_differ_by_rounding_do_not_vary() -> None:
    def known(mean: float, variance: float) -> LatentStatistics:
        return LatentStatistics(torch.tensor([mean]).double(), variance, 0.0, torch.zeros(()))

    assert varies(known(1.0, 1e-10), known(1.0, 1e-10))
    assert not varies(known(1.0, 1e-12), known(1.0, 1e-12))
    # What is left over of latents of size 1, where codes coincide with them.
    assert not varies(known(0.0, 1e-14), known(0.0, 1.0))
    assert not varies(known(0.0, 0.0), known(0.0, 0.0))


def test_codes_that_levels_share_are_judged_by_the_latents_of_all() -> None:
    """Against textbook figures of both clouds as one; but outside is what is far from each of them."""
    random = np.random.default_rng(0)
    first, second = random.normal(0, 4, size=(400, 3)), random.normal(1, 0.2, size=(400, 3))
    codes = np.concatenate([random.normal(0, 4, size=(20, 3)), random.normal(1, 0.2, size=(4, 3)), [[9.5, 9.5, 9.5]]])
    codes[3] = codes[4] + 1e-3
    (few, wide), (many, narrow) = latents(first, codes), latents(second, codes)
    counts, whole = latents(np.concatenate([first, second]), codes)
    assert torch.equal(counts, few + many)
    assert few[-1] == 0
    found = geometry(torch.from_numpy(codes), counts, wide, narrow)
    known = geometry(torch.from_numpy(codes), counts, whole)
    for name in ("spread", "duplicates", "halving"):
        assert found[name] == pytest.approx(known[name], rel=1e-9)
    # About 16 from the wide cloud's mean, whose latents are 6.9 off; 4 times as much is 28.
    assert (found["outside"], geometry(torch.from_numpy(codes), counts, narrow)["outside"] > 0) == (0, True)
    codes[-1] *= 2
    assert geometry(torch.from_numpy(codes), counts, wide, narrow)["outside"] == 1


def test_latents_of_levels_are_pooled() -> None:
    random = np.random.default_rng(0)
    codes = random.normal(size=(5, 3))
    parts = [random.normal(place, 2, size=(300, 3)) for place in (0, 3, -1)]
    together = pooled([latents(part, codes)[1] for part in parts])
    expected = latents(np.concatenate(parts), codes)[1]
    torch.testing.assert_close(together.mean, expected.mean)
    torch.testing.assert_close(together.errors, expected.errors)
    assert together.variance == pytest.approx(expected.variance)
    assert together.error == pytest.approx(expected.error)
