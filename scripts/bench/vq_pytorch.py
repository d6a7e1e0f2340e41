"""The quantizers of vector-quantize-pytorch behind the interface of vqtool's, for comparisons."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import vector_quantize_pytorch as peer
from torch import Tensor, nn

from vqtool.quantizers import QuantizerOutput


@dataclass(frozen=True)
class PeerSettings:
    """Settings of a quantizer of vector-quantize-pytorch; all others are its defaults."""

    kind: str
    """`ema`, `cosine`, `cosine, 8 dimensions` or `simvq`."""
    commitment: float
    """Weight of the commitment loss."""
    rotation: bool
    """Whether gradients pass the argmin by the rotation trick."""

    def build(self, codebook_size: int, dim: int) -> "PeerQuantizer":
        """Return the quantizer with K = `codebook_size` codes for latents of width `dim`."""
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
    """A quantizer of vector-quantize-pytorch that returns vqtool's output type.

    Its `commitment_loss` is the peer's whole loss, which includes the commitment weight; its `entropy_loss` is 0.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, vectors: Tensor) -> QuantizerOutput:
        """Quantize latents (B, L, D); in training mode this also updates the codebook."""
        quantized, indices, loss = self.inner(vectors)
        return QuantizerOutput(quantized, indices, loss.sum(), torch.zeros(()))

    def update(self) -> None:
        """Do nothing: `forward` updates the codebook."""


def settings() -> Iterator[PeerSettings]:
    """Yield 24 settings: each of four kinds with each of three commitment weights, with and without rotation trick."""
    for kind in ("ema", "cosine", "cosine, 8 dimensions", "simvq"):
        for commitment in (0.25, 1.0, 4.0):
            for rotation in (False, True):
                yield PeerSettings(kind, commitment, rotation)
