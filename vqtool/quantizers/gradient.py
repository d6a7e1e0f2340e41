"""How the gradient passes the choice of a code, which has none of its own.

Shapes: N vectors, D dimensions.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

GradientName = Literal["straight_through", "rotation"]


def straight_through(vectors: Tensor, codes: Tensor) -> Tensor:
    """The codes (N, D), with the gradient handed to the vectors (N, D) as it is (Bengio et al. 2013, 3)."""
    return (codes.detach() - vectors.detach()).add_(vectors)


def rotation(vectors: Tensor, codes: Tensor) -> Tensor:
    """The codes (N, D), with the gradient turned and scaled as the vector was to reach its code.

    The rotation trick (Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick", eq. 4): to the
    gradient, a code is |e|/|z| · R z, where R, held constant, rotates z to the direction of e. A zero vector, which has
    no direction, gets no gradient.
    """
    fixed, target = vectors.detach(), codes.detach()
    from_, to = F.normalize(fixed, dim=-1), F.normalize(target, dim=-1)
    middle = F.normalize(from_ + to, dim=-1, eps=1e-4)  # opposite, but for rounding: there is no direction between
    reflected = 2 * (vectors * middle).sum(dim=-1, keepdim=True) * middle
    turned = vectors - reflected + 2 * (vectors * from_).sum(dim=-1, keepdim=True) * to
    norm = fixed.norm(dim=-1, keepdim=True)
    scale = (target.norm(dim=-1, keepdim=True) / norm).where(norm > 0, 0.0)
    turned = scale * turned
    return turned + (target - turned).detach()


# The one table of gradients: `gradient` chooses.
GRADIENTS: dict[GradientName, Callable[[Tensor, Tensor], Tensor]] = {
    "straight_through": straight_through,
    "rotation": rotation,
}
