"""Where codes lie: beside each other, and beside the latents.

Shapes: K codes, D dimensions, S codes looked at.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Codes looked at: of a larger codebook these speak for the rest.
_LOOKED_AT = 2048
# Elements of one block of distances.
_BLOCK = 1 << 24
# Codes are duplicates where they are nearer to each other than this part of the quantizing error.
_DUPLICATE = 0.02
# A code is outside where it is further from the latents' mean than this many times their own root mean square.
_OUTSIDE = 4.0


class Latents(NamedTuple):
    """The vectors that a level quantizes, over a pass."""

    mean: Tensor
    """(D,) float64"""
    variance: float
    """mean squared distance from the mean"""
    error: float
    """mean squared distance to the chosen code"""


def geometry(codes: Tensor, counts: Tensor, latents: Latents) -> dict[str, float]:
    """Figures of codes (K, D) that were hit `counts` (K,) times by latents.

    Returns:
        `spread`: of the codes, as root mean square about the latents' mean, over that of the latents. `outside`: codes
        far from all latents. `duplicates`: codes of which another is all but the same. `halving`: what the quantizing
        error would be multiplied by if every other code went, and its latents to the code next to it.
    """
    codes = codes.detach().cpu().double()
    radii = (codes - latents.mean).square().sum(dim=1)
    looked = torch.arange(len(codes))[:: -(-len(codes) // _LOOKED_AT)]
    gaps = _gaps(codes, looked)
    share = len(codes) / len(looked)
    moved = float((counts[looked].double() * gaps.nan_to_num(posinf=0.0)).sum()) * share / 2
    error = max(latents.error, 1e-30)
    return {
        "spread": (float(radii.mean()) / max(latents.variance, 1e-30)) ** 0.5,
        "outside": float((radii > _OUTSIDE**2 * latents.variance).sum()),
        "duplicates": round(float((gaps <= _DUPLICATE * latents.error).sum()) * share),
        "halving": 1 + moved / max(1, int(counts.sum())) / error,
    }


@torch.no_grad()
def movement(codes: Tensor, before: Tensor, error: float) -> float:
    """How far codes (K, D) have moved, as root mean square, over that of the quantizing error."""
    moved = (codes - before.to(codes)).double().square().sum(dim=1).mean()
    return float((moved / max(error, 1e-30)).sqrt())


def _gaps(codes: Tensor, looked: Tensor) -> Tensor:
    """Squared distances (S,) of some codes to the code nearest to each; infinite where there is but one."""
    found = []
    for some in looked.split(max(1, _BLOCK // codes.numel())):
        squared = (codes[some][:, None] - codes).square().sum(dim=2)
        squared[torch.arange(len(some)), some] = torch.inf
        found.append(squared.min(dim=1).values)
    return torch.cat(found)
