"""Gradient estimators for the argmin over codes, which has no useful gradient of its own.

Shapes: D dimensions; (...) any leading axes.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

GradientEstimator = Literal["straight_through", "rotation"]


def straight_through(vectors: Tensor, codes: Tensor) -> Tensor:
    """Return the assigned codes e (..., D), up to rounding; the backward pass copies their gradient to z (..., D).

    The straight-through estimator z + stop(e - z) (Bengio et al. 2013, section 3). No gradient reaches the codes.
    """
    return (codes.detach() - vectors.detach()).add_(vectors)


def rotation(vectors: Tensor, codes: Tensor) -> Tensor:
    """Return the assigned codes e (..., D), up to rounding; the backward pass uses the gradient of |e|/|z| · R z.

    R = I - 2 r rᵀ + 2 ê ẑᵀ rotates ẑ to ê, where ẑ = z/|z|, ê = e/|e| and r = (ẑ + ê)/|ẑ + ê|. R and |e|/|z| are
    constants in the backward pass. This is the rotation trick (Fifty et al. 2024, "Restructuring Vector Quantization
    with the Rotation Trick", eq. 4). If z or e is 0, the gradient of z is 0. No gradient reaches the codes.

    Args:
        vectors: z (..., D).
        codes: e (..., D), the code assigned to each vector.
    """
    z, e = vectors.detach(), codes.detach()
    z_unit, e_unit = F.normalize(z, dim=-1), F.normalize(e, dim=-1)
    bisector = F.normalize(z_unit + e_unit, dim=-1, eps=1e-4)  # about 0 for opposite directions: R reflects along z
    reflected = 2 * (vectors * bisector).sum(dim=-1, keepdim=True) * bisector
    rotated = vectors - reflected + 2 * (vectors * z_unit).sum(dim=-1, keepdim=True) * e_unit
    norm = z.norm(dim=-1, keepdim=True)
    scale = (e.norm(dim=-1, keepdim=True) / norm).where(norm > 0, 0.0)
    rotated = scale * rotated
    return rotated + (e - rotated).detach()


# The one table of estimators, by the value of `gradient_estimator`.
GRADIENT_ESTIMATORS: dict[GradientEstimator, Callable[[Tensor, Tensor], Tensor]] = {
    "straight_through": straight_through,
    "rotation": rotation,
}
