"""The quantizers of vector-quantize-pytorch in the place of vqtool's, for scripts that set them side by side."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import vector_quantize_pytorch as peer
from torch import Tensor, nn

from vqtool.quantizers import QuantizerOutput


@dataclass(frozen=True)
class PeerSettings:
    """One of the settings that vector-quantize-pytorch is tried with; what is not named is its own default."""

    kind: str
    commitment: float
    rotation: bool

    def build(self, codebook_size: int, dim: int) -> "PeerQuantizer":
        """The quantizer."""
        if self.kind == "simvq":
            return PeerQuantizer(
                peer.SimVQ(
                    dim=dim,
                    codebook_size=codebook_size,
                    commitment_weight=self.commitment,
                    rotation_trick=self.rotation,
                )
            )
        return PeerQuantizer(
            peer.VectorQuantize(
                dim=dim,
                codebook_size=codebook_size,
                codebook_dim=8 if self.kind == "cosine, 8 dimensions" else None,
                use_cosine_sim=self.kind != "ema",
                kmeans_init=True,
                threshold_ema_dead_code=2,
                commitment_weight=self.commitment,
                rotation_trick=self.rotation,
            )
        )

    def __str__(self) -> str:
        return f"{self.kind}, commitment {self.commitment:g}, rotation {'on' if self.rotation else 'off'}"


class PeerQuantizer(nn.Module):
    """Gives vqtool's output; its loss is weighted already."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, vectors: Tensor) -> QuantizerOutput:
        """Quantize (B, L, D)."""
        quantized, indices, loss = self.inner(vectors)
        return QuantizerOutput(quantized, indices, loss.sum(), torch.zeros(()))

    def update(self) -> None:
        """It has updated itself in forward."""


def settings() -> Iterator[PeerSettings]:
    """EMA with k-means and revival, cosine, cosine with 8 dimensions, SimVQ; each weight, each gradient."""
    for kind in ("ema", "cosine", "cosine, 8 dimensions", "simvq"):
        for commitment in (0.25, 1.0, 4.0):
            for rotation in (False, True):
                yield PeerSettings(kind, commitment, rotation)
