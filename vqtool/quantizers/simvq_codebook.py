"""SimVQ: codes that are the product of a fixed random basis and one learned linear map.

Shapes: N vectors, S vectors of a sample, K codes, D dimensions.
"""

import torch
from torch import Tensor, nn

from vqtool.quantizers.codebook import GradientCodebook


class SimVQCodebook(GradientCodebook):
    """Codes `basis` (K, D) @ `transform` (D, D), where only the transform is learned, by the codebook loss.

    Every step moves every code, with or without hits (SimVQ: Zhu et al. 2024, "Addressing Representation Collapse in
    Vector Quantized Models with One Linear Layer", eq. 6). The basis is normal with standard deviation 1 / sqrt(D);
    the transform is initialised with the identity.
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
    def init_codes(self, codes: Tensor, counts: Tensor) -> None:
        self.basis.copy_(codes)
        self.transform.copy_(torch.eye(len(self.transform)))

    @torch.no_grad()
    def replace(self, which: Tensor, codes: Tensor) -> None:
        # The rows of the basis that the transform takes to those codes, or as near to them as it reaches.
        basis = codes.to(self.basis.dtype) @ torch.linalg.pinv(self.transform)
        self.basis.copy_(torch.where(which[:, None], basis, self.basis))
