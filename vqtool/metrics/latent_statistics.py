"""Where codes lie: beside each other, and beside the latents.

Shapes: K codes, D dimensions, S codes looked at.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

# Codes looked at: of a larger codebook these speak for the rest.
_LOOKED_AT = 2048
# Scores of one block, and of all blocks: of a codebook in which this is passed, fewer codes speak.
_BLOCK, _ALL_BLOCKS = 1 << 22, 1 << 25
# Codes are duplicates where their squared gap is at most this part of the quantizing error of their own latents, in one
# dimension. Two that share a Gaussian cluster between them lie 8 / pi = 2.5 such errors apart, in any number of
# dimensions. (The nearest latent is as far off as the whole error, which grows with the dimensions: against it, those
# two would be duplicates.)
_DUPLICATE = 0.02
# A code is outside where it is further from the latents' mean than this many times their own root mean square, and won
# nothing: rare latents may lie as far, and have codes by right.
_OUTSIDE = 4.0
# The part of the latents' mean square below which variance, and squared gaps, are rounding.
_ROUNDING = 1e-11


class LatentStatistics(NamedTuple):
    """The vectors that a level quantizes, over a pass."""

    mean: Tensor
    """(D,) float64"""
    variance: float
    """mean squared distance from the mean"""
    error: float
    """mean squared distance to the chosen code"""
    errors: Tensor
    """(K,) float64, summed by code; () where codes are given"""


def geometry(codes: Tensor, counts: Tensor, *clouds: LatentStatistics) -> dict[str, float]:
    """Figures of codes (K, D) that were hit `counts` (K,) times by latents, of each of the levels that share the codes.

    Returns:
        `spread`: of the codes that were chosen, as root mean square about the latents' mean, over that of the latents.
        `outside`: codes far from all latents. `duplicates`: codes of which another is all but the same. `halving`: what
        the quantizing error would be multiplied by if every code were merged with one next to it.
    """
    codes = codes.detach().cpu().double()
    counts, latents = counts.double(), pooled(clouds)
    radii = (codes - latents.mean).square().sum(dim=1)
    looked = _looked_at(codes)
    gaps, others = _gaps(codes, looked)
    share, hits = len(codes) / len(looked), counts[looked] + counts[others]
    # Two codes that become one, at the mean of their latents: what Ward (1963) calls the cost of a merger.
    together = counts[looked] * counts[others] / hits.clamp_min(1)
    merged = float((together * gaps.nan_to_num(posinf=0.0)).sum()) * share / 2
    tokens = counts.sum().clamp_min(1)
    own = torch.where(hits > 0, (latents.errors[looked] + latents.errors[others]) / hits, latents.error)
    same = (_DUPLICATE * own / codes.shape[1]).clamp_min(_ROUNDING * latents.variance)
    far = counts == 0
    for cloud in clouds:
        far &= (codes - cloud.mean).square().sum(dim=1) > _OUTSIDE**2 * cloud.variance
    return {
        "spread": float((radii @ counts / tokens / latents.variance).sqrt()),
        "outside": float(far.sum()),
        "duplicates": round(float((gaps <= same).sum()) * share),
        "halving": 1 + merged / float(tokens) / max(latents.error, _ROUNDING * latents.variance),
    }


def pooled(clouds: Sequence[LatentStatistics]) -> LatentStatistics:
    """The latents of several levels, as many of each, as those of one."""
    if len(clouds) == 1:
        return clouds[0]
    mean = torch.stack([cloud.mean for cloud in clouds]).mean(dim=0)
    apart = [cloud.variance + float((cloud.mean - mean).square().sum()) for cloud in clouds]
    errors = torch.stack([cloud.errors for cloud in clouds]).sum(dim=0)
    return LatentStatistics(mean, fmean(apart), fmean(cloud.error for cloud in clouds), errors)


def varies(latents: LatentStatistics, whole: LatentStatistics) -> bool:
    """Whether latents, which are all of `whole` or what is left over of it, differ by more than rounding."""
    return latents.variance > _ROUNDING * (whole.variance + float(whole.mean.square().sum())) + 1e-30


@torch.no_grad()
def movement(codes: Tensor, before: Tensor, error: float) -> float:
    """How far codes (K, D) have moved, as root mean square, over that of the quantizing error."""
    moved = (codes - before.to(codes)).double().square().sum(dim=1).mean()
    return float((moved / max(error, 1e-30)).sqrt())


def _looked_at(codes: Tensor) -> Tensor:
    """The numbers of codes, spread over all of them, that speak for the rest."""
    most = max(1, min(_LOOKED_AT, _ALL_BLOCKS // len(codes)))
    return torch.arange(len(codes))[:: -(-len(codes) // most)]


def _gaps(codes: Tensor, looked: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances (S,) of some codes to the code nearest to each, infinite where there is but one; and which."""
    centred = codes - codes.mean(dim=0)
    norms = centred.square().sum(dim=1)
    others = []
    for some in looked.split(max(1, _BLOCK // len(codes))):
        scores = torch.addmm(norms, centred[some], centred.T, alpha=-2)
        scores[torch.arange(len(some)), some] = torch.inf
        others.append(scores.argmin(dim=1))
    nearest = torch.cat(others)
    # Worked out anew: a product rounds, and of codes that are all but the same that would be all there is.
    gaps = (codes[looked] - codes[nearest]).square().sum(dim=1)
    return torch.where(nearest == looked, torch.inf, gaps), nearest
