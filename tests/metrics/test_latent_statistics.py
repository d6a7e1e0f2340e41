"""Statistics of latents and codes, compared with direct NumPy formulas."""

import numpy as np
import pytest
import torch

from vqtool.metrics.latent_statistics import (
    LatentStatistics,
    codebook_movement,
    codebook_statistics,
    pool_latents,
    varies,
)


def latents(vectors: np.ndarray, codes: np.ndarray) -> tuple[torch.Tensor, LatentStatistics]:
    """Return the hits (K,) of the codes, and the statistics of the vectors (N, D) assigned to their nearest codes."""
    squared = ((vectors[:, None] - codes) ** 2).sum(axis=2)
    nearest = squared.argmin(axis=1)
    errors = np.bincount(nearest, weights=squared.min(axis=1), minlength=len(codes))
    variance = ((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).mean()
    counts = torch.from_numpy(np.bincount(nearest, minlength=len(codes)))
    statistics = LatentStatistics(
        torch.from_numpy(vectors.mean(axis=0)), variance, squared.min(axis=1).mean(), torch.from_numpy(errors)
    )
    return counts, statistics


def statistics_of(vectors: np.ndarray, codes: np.ndarray, **limits: int) -> dict[str, float]:
    """Return `codebook_statistics` of codes (K, D) for vectors (N, D) assigned to their nearest codes."""
    return codebook_statistics(torch.from_numpy(codes), *latents(vectors, codes), **limits)


def test_statistics_of_two_codes_on_a_line() -> None:
    """Latents 0, 1, 4, 5 and codes 0.5 and 4.5: quantization error 0.25, distance of the codes 4."""
    result = statistics_of(np.array([[0.0], [1.0], [4.0], [5.0]]), np.array([[0.5], [4.5]]))
    assert result["spread"] == pytest.approx((4 / 4.25) ** 0.5)
    assert (result["outside"], result["duplicates"]) == (0, 0)
    # Merged at 2.5, the errors are 2.5 and 1.5: (6.25 + 2.25) / 2 = 4.25 instead of 0.25.
    assert result["halving"] == pytest.approx(4.25 / 0.25)


@pytest.mark.parametrize("block", [1, 40, 1 << 22])
def test_statistics_equal_the_formulas_for_any_block_size(block: int) -> None:
    random = np.random.default_rng(0)
    vectors, codes = random.normal(3, 2, size=(500, 5)), random.normal(3, 1.5, size=(20, 5))
    codes[7] = codes[3] + 1e-4
    codes[11] = 1000
    result = statistics_of(vectors, codes, distances_per_block=block)
    counts, statistics = latents(vectors, codes)
    gaps = ((codes[:, None] - codes) ** 2).sum(axis=2)
    np.fill_diagonal(gaps, np.inf)
    nearest, n = gaps.argmin(axis=1), counts.numpy()
    cost = n * n[nearest] / np.maximum(1, n + n[nearest]) * gaps.min(axis=1)
    radii = ((codes - vectors.mean(axis=0)) ** 2).sum(axis=1)
    assert result["spread"] == pytest.approx(((n * radii).sum() / 500 / statistics.variance) ** 0.5)
    assert result["halving"] == pytest.approx(1 + cost.sum() / 2 / 500 / statistics.quantization_error)
    assert (result["outside"], result["duplicates"]) == (1, 2)


def test_codes_that_split_a_cluster_are_not_duplicates_in_many_dimensions() -> None:
    """The codes are 1.6 standard deviations apart; each latent is 16 standard deviations from its code."""
    vectors = np.random.default_rng(0).standard_normal((20_000, 256))
    left = vectors[:, 0] < 0
    halves = np.stack([vectors[left].mean(axis=0), vectors[~left].mean(axis=0)])
    assert statistics_of(vectors, halves)["duplicates"] == 0
    same = np.stack([halves[0], halves[0] + 0.005])
    assert statistics_of(vectors, same)["duplicates"] == 2


def test_duplicates_are_relative_to_the_error_of_their_own_latents() -> None:
    """Codes 0.1 apart are duplicates in a cluster of width 1, but not in a cluster of width 0.05."""
    random = np.random.default_rng(0)
    wide = random.standard_normal((1000, 2))
    narrow = 100 + 0.05 * random.standard_normal((1000, 2))
    pair = np.array([[-0.05, 0.0], [0.05, 0.0]])
    assert statistics_of(np.concatenate([wide, narrow]), np.concatenate([pair, [[100.0, 100.0]]]))["duplicates"] == 2
    assert statistics_of(np.concatenate([wide, narrow]), np.concatenate([[[0.0, 0.0]], 100 + pair]))["duplicates"] == 0


def test_duplicates_with_zero_quantization_error() -> None:
    """With a quantization error of 0, codes are duplicates if their distance is a rounding error."""
    vectors = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert statistics_of(vectors, vectors)["duplicates"] == 0
    assert statistics_of(vectors, np.concatenate([vectors, vectors[:1] + 1e-7]))["duplicates"] == 2
    assert np.isfinite(statistics_of(vectors, vectors)["halving"])


def test_distant_codes_with_hits_are_not_outliers() -> None:
    vectors = np.concatenate([np.zeros((999, 2)), np.full((1, 2), 50.0)]) + 1e-3 * np.random.default_rng(0).random(
        (1000, 2)
    )
    codes = np.array([[0.0, 0.0], [50.0, 50.0], [50.0, -50.0]])
    assert statistics_of(vectors, codes)["outside"] == 1


def test_codebook_of_one_code() -> None:
    result = statistics_of(np.array([[0.0], [2.0]]), np.array([[1.0]]))
    assert result == {"spread": 0.0, "outside": 0.0, "duplicates": 0, "halving": 1.0}


def test_statistics_of_sampled_codes_are_scaled_to_the_codebook() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((4000, 3))
    codes = np.repeat(random.standard_normal((100, 3)), 2, axis=0)
    exact, sampled = statistics_of(vectors, codes), statistics_of(vectors, codes, max_sampled_codes=50)
    assert (exact["duplicates"], sampled["duplicates"]) == (200, 200)
    assert sampled["spread"] == exact["spread"]


def test_movement_is_relative_to_the_quantization_error() -> None:
    before = torch.zeros(4, 3)
    after = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    assert codebook_movement(after, before, 0.5) == pytest.approx((50 / 4 / 0.5) ** 0.5)


def test_latents_that_differ_by_rounding_errors_do_not_vary() -> None:
    def statistics(mean: float, variance: float) -> LatentStatistics:
        return LatentStatistics(torch.tensor([mean]).double(), variance, 0.0, torch.zeros(()))

    assert varies(statistics(1.0, 1e-10), statistics(1.0, 1e-10))
    assert not varies(statistics(1.0, 1e-12), statistics(1.0, 1e-12))
    # Residuals of latents of length 1 that are equal to their codes.
    assert not varies(statistics(0.0, 1e-14), statistics(0.0, 1.0))
    assert not varies(statistics(0.0, 0.0), statistics(0.0, 0.0))


def test_shared_codebook_uses_the_latents_of_all_levels() -> None:
    """The statistics are those of the pooled latents, but outlier codes are far from the latents of every level."""
    random = np.random.default_rng(0)
    first, second = random.normal(0, 4, size=(400, 3)), random.normal(1, 0.2, size=(400, 3))
    codes = np.concatenate([random.normal(0, 4, size=(20, 3)), random.normal(1, 0.2, size=(4, 3)), [[9.5, 9.5, 9.5]]])
    codes[3] = codes[4] + 1e-3
    (first_counts, wide), (second_counts, narrow) = latents(first, codes), latents(second, codes)
    counts, pooled = latents(np.concatenate([first, second]), codes)
    assert torch.equal(counts, first_counts + second_counts)
    assert first_counts[-1] == 0
    result = codebook_statistics(torch.from_numpy(codes), counts, wide, narrow)
    expected = codebook_statistics(torch.from_numpy(codes), counts, pooled)
    for name in ("spread", "duplicates", "halving"):
        assert result[name] == pytest.approx(expected[name], rel=1e-9)
    # The last code is about 16 from the mean of the wide latents, whose standard deviation is 6.9; the limit is 28.
    assert (result["outside"], codebook_statistics(torch.from_numpy(codes), counts, narrow)["outside"] > 0) == (0, True)
    codes[-1] *= 2
    assert codebook_statistics(torch.from_numpy(codes), counts, wide, narrow)["outside"] == 1


def test_pool_latents_of_levels() -> None:
    random = np.random.default_rng(0)
    codes = random.normal(size=(5, 3))
    levels = [random.normal(mean, 2, size=(300, 3)) for mean in (0, 3, -1)]
    pooled = pool_latents([latents(vectors, codes)[1] for vectors in levels])
    expected = latents(np.concatenate(levels), codes)[1]
    torch.testing.assert_close(pooled.mean, expected.mean)
    torch.testing.assert_close(pooled.error_per_code, expected.error_per_code)
    assert pooled.variance == pytest.approx(expected.variance)
    assert pooled.quantization_error == pytest.approx(expected.quantization_error)
