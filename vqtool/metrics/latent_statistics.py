"""Statistics of the latents of a pass, and of where the codes lie relative to them and to each other.

Shapes: K codes, D dimensions, N latents, M sampled codes.

For codes e with hits c[k], N = sum over k of c[k], and preprocessed latents z with mean m, variance v and quantization
error E (`LatentStatistics`); j is the code nearest to code k, and g[k] = |e_k - e_j|²:

    spread     = sqrt(sum over k of c[k]·|e_k - m|² / N / v)
    outside    = number of k with c[k] = 0 and |e_k - m|² > 4²·v
    duplicates = number of k with g[k] <= 0.02·E[k,j] / D, where E[k,j] is the mean of |z - e[index]|² over the latents
                 of codes k and j; E if they have none
    halving    = 1 + sum over k of (c[k]·c[j] / (c[k] + c[j])·g[k]) / 2 / N / E

`spread` is the RMS distance of the latents' codes from m, relative to the standard deviation of the latents. `outside`
counts outlier codes. `halving` estimates by which factor the quantization error grows if each code is merged with its
nearest code: merging two clusters adds c[k]·c[j] / (c[k] + c[j])·g[k] to the sum of squared errors (Ward 1963,
"Hierarchical Grouping to Optimize an Objective Function").
"""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

# Limits of the search for the nearest other code, which computes M · K distances: M, M · K, and distances per block.
_MAX_SAMPLED_CODES = 2048
_MAX_DISTANCES = 1 << 25
_DISTANCES_PER_BLOCK = 1 << 22
# Two codes are duplicates if their squared distance is at most this fraction of their quantization error per dimension.
# Two codes that split one Gaussian cluster are at least 8 / pi = 2.5 such errors apart, for any number of dimensions.
_DUPLICATE_FRACTION = 0.02
# An outlier code is further from the mean of the latents than this many standard deviations. It also has no hits: codes
# of rare latents may be as far away.
_OUTLIER_DISTANCE = 4.0
# Variances of latents below this fraction of their mean square, and squared distances between codes below this fraction
# of the variance of the latents, are rounding errors.
_ROUNDING = 1e-11


class LatentStatistics(NamedTuple):
    """Statistics of the preprocessed latents z_n (D,) that a level quantizes in a pass; e are its codes.

    Latents of a later level of a residual quantizer are residuals. See `Quantizer.preprocess`.
    """

    mean: Tensor
    """(D,) float64, mean over n of z_n."""
    variance: float
    """mean over n of |z_n - mean|², summed over dimensions; at least 0."""
    quantization_error: float
    """mean over n of |z_n - e[indices[n]]|², summed over dimensions."""
    error_per_code: Tensor
    """(K,) float64, sum of |z_n - e_k|² over the latents with index k; () without a learned codebook."""


def codebook_statistics(
    codes: Tensor,
    counts: Tensor,
    *levels: LatentStatistics,
    max_sampled_codes: int = _MAX_SAMPLED_CODES,
    distances_per_block: int = _DISTANCES_PER_BLOCK,
) -> dict[str, float]:
    """Return `spread`, `outside`, `duplicates` and `halving` of a codebook, as defined at the top of this module.

    If several levels share the codebook, m, v and E are those of the latents of all levels (`pool_latents`), and an
    outlier code is far from the latents of every level. For large codebooks, `duplicates` and `halving` are estimated
    from M evenly spaced codes k. The denominator E of `halving` and the limit for duplicates are at least 1e-11·v,
    because smaller distances are rounding errors.

    Args:
        codes: e, (K, D).
        counts: c, (K,), summed over the levels.
        levels: statistics of the latents of each level that uses this codebook, at least one; their pooled variance
            must be above 0 (see `varies`).
        max_sampled_codes: upper limit of M.
        distances_per_block: distances in memory at a time.

    Returns:
        `spread` >= 0, `outside` and `duplicates` (numbers of codes, 0 to K), `halving` >= 1; `duplicates` is 0 and
        `halving` 1 if K is 1.
    """
    codes = codes.detach().cpu().double()
    counts, latents = counts.double(), pool_latents(levels)
    tokens = counts.sum().clamp_min(1)
    rounding = _ROUNDING * latents.variance
    squared_radii = (codes - latents.mean).square().sum(dim=1)

    outside = counts == 0
    for level in levels:
        outside &= (codes - level.mean).square().sum(dim=1) > _OUTLIER_DISTANCE**2 * level.variance

    limit = max(1, min(max_sampled_codes, _MAX_DISTANCES // len(codes)))
    sampled = torch.arange(len(codes))[:: -(-len(codes) // limit)]
    codes_per_sample = len(codes) / len(sampled)
    nearest, gaps = _nearest_other_codes(codes, sampled, distances_per_block)
    hits = counts[sampled] + counts[nearest]
    errors = (latents.error_per_code[sampled] + latents.error_per_code[nearest]) / hits
    errors = torch.where(hits > 0, errors, latents.quantization_error)
    duplicates = gaps <= (_DUPLICATE_FRACTION * errors / codes.shape[1]).clamp_min(rounding)
    weights = counts[sampled] * counts[nearest] / hits.clamp_min(1)
    added_error = float((weights * gaps.nan_to_num(posinf=0.0)).sum()) * codes_per_sample / 2
    return {
        "spread": float((squared_radii @ counts / tokens / latents.variance).sqrt()),
        "outside": float(outside.sum()),
        "duplicates": round(float(duplicates.sum()) * codes_per_sample),
        "halving": 1 + added_error / float(tokens) / max(latents.quantization_error, rounding),
    }


def pool_latents(levels: Sequence[LatentStatistics]) -> LatentStatistics:
    """Return the statistics of the latents of all levels together: one level or more, with equal numbers of latents."""
    if len(levels) == 1:
        return levels[0]
    mean = torch.stack([level.mean for level in levels]).mean(dim=0)
    variances = [level.variance + float((level.mean - mean).square().sum()) for level in levels]
    error_per_code = torch.stack([level.error_per_code for level in levels]).sum(dim=0)
    return LatentStatistics(mean, fmean(variances), fmean(level.quantization_error for level in levels), error_per_code)


def varies(latents: LatentStatistics, first_level: LatentStatistics) -> bool:
    """Return whether the variance of the latents of a level is more than rounding error.

        latents.variance > 1e-11·(first_level.variance + |first_level.mean|²) + 1e-30

    Args:
        latents: latents of a level; for a residual quantizer, residuals of `first_level`.
        first_level: latents of the first level, the preprocessed encoder output.
    """
    mean_square = first_level.variance + float(first_level.mean.square().sum())
    return latents.variance > _ROUNDING * mean_square + 1e-30


@torch.no_grad()
def codebook_movement(codes: Tensor, previous: Tensor, quantization_error: float) -> float:
    """Return the RMS movement of codes, relative to the RMS quantization error.

        sqrt(mean over k of |codes_k - previous_k|² / quantization_error)

    Args:
        codes: (K, D).
        previous: (K, D), the codes at an earlier step, on any device.
        quantization_error: mean squared error, summed over dimensions; at least 1e-30 is used.
    """
    squared = (codes - previous.to(codes)).double().square().sum(dim=1).mean()
    return float((squared / max(quantization_error, 1e-30)).sqrt())


def _nearest_other_codes(codes: Tensor, sampled: Tensor, distances_per_block: int) -> tuple[Tensor, Tensor]:
    """Return the index of the nearest other code (M,) of each sampled code, and their squared distance (M,).

    If K = 1, the distance is infinite and the nearest code is the code itself.

    Args:
        codes: (K, D) float64.
        sampled: (M,) indices of codes.
        distances_per_block: distances in memory at a time.
    """
    centred = codes - codes.mean(dim=0)
    squared_norms = centred.square().sum(dim=1)
    blocks = []
    for block in sampled.split(max(1, distances_per_block // len(codes))):
        # |e_j|² - 2·e_k·e_j, which is |e_k - e_j|² up to a constant per row.
        distances = torch.addmm(squared_norms, centred[block], centred.T, alpha=-2)
        distances[torch.arange(len(block)), block] = torch.inf
        blocks.append(distances.argmin(dim=1))
    nearest = torch.cat(blocks)
    # Not taken from the product: for nearly equal codes its rounding errors exceed the distance.
    gaps = (codes[sampled] - codes[nearest]).square().sum(dim=1)
    return nearest, torch.where(nearest == sampled, torch.inf, gaps)
