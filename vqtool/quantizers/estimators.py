"""Gradient estimators for the argmin over codes, which has no gradient.

Shapes: N vectors, D dimensions.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

GradientEstimator = Literal["straight_through", "rotation"]


def straight_through(vectors: Tensor, codes: Tensor) -> Tensor:
    """Return the codes (N, D) and pass their gradient to the vectors (N, D) unchanged (Bengio et al. 2013, 3)."""
    return (codes.detach() - vectors.detach()).add_(vectors)


def rotation(vectors: Tensor, codes: Tensor) -> Tensor:
    """Return the codes (N, D) and pass their gradient to the vectors (N, D) rotated and scaled.

    The rotation trick (Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick", eq. 4). The
    backward pass treats a code as |e|/|z| · R z, where the constant R rotates z to the direction of e. A zero vector
    has no direction and gets no gradient.
    """
    fixed, target = vectors.detach(), codes.detach()
    from_, to = F.normalize(fixed, dim=-1), F.normalize(target, dim=-1)
    middle = F.normalize(from_ + to, dim=-1, eps=1e-4)  # z and e point in opposite directions: no bisector
    reflected = 2 * (vectors * middle).sum(dim=-1, keepdim=True) * middle
    turned = vectors - reflected + 2 * (vectors * from_).sum(dim=-1, keepdim=True) * to
    norm = fixed.norm(dim=-1, keepdim=True)
    scale = (target.norm(dim=-1, keepdim=True) / norm).where(norm > 0, 0.0)
    turned = scale * turned
    return turned + (target - turned).detach()


# The one table of estimators, by the value of `gradient_estimator`.
GRADIENT_ESTIMATORS: dict[GradientEstimator, Callable[[Tensor, Tensor], Tensor]] = {
    "straight_through": straight_through,
    "rotation": rotation,
}
