"""Codes that move together, as the image of fixed ones under one learned linear map.

Shapes: N vectors, S vectors of a sample, K codes, D dimensions.
"""

import torch
from torch import Tensor, nn

from vqtool.quantizers.codebook import GradientCodebook


class LinearCodebook(GradientCodebook):
    """Codes `basis` (K, D) times `transform` (D, D), of which the transform alone is learned, by the codebook loss.

    Every code moves with every step, whether it won a vector or not (SimVQ: Zhu et al. 2024, "Addressing Representation
    Collapse in Vector Quantized Models with One Linear Layer", eq. 6). The basis is drawn normal with a standard
    deviation of 1 / sqrt(D), the transform starts as the identity.
    """

    basis: Tensor

    def _set_weight(self, weight: Tensor) -> None:
        dim = weight.shape[1]
        self.register_buffer("basis", torch.randn_like(weight) * dim**-0.5)
        self.transform = nn.Parameter(torch.eye(dim, dtype=weight.dtype, device=weight.device))

    @property
    def codes(self) -> Tensor:
        return self.basis @ self.transform

    @torch.no_grad()
    def initialise(self, codes: Tensor, counts: Tensor) -> None:
        self.basis.copy_(codes)
        self.transform.copy_(torch.eye(len(self.transform)))

    @torch.no_grad()
    def replace(self, which: Tensor, codes: Tensor) -> None:
        # The rows of the basis that the transform takes to those codes, or as near to them as it reaches.
        basis = codes.to(self.basis.dtype) @ torch.linalg.pinv(self.transform)
        self.basis.copy_(torch.where(which[:, None], basis, self.basis))
