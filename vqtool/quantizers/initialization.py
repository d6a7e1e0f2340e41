"""How codes start: at random, or by k-means on the encoder's first vectors.

Shapes: N vectors, S of them in the sample, K codes, D dimensions.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vqtool.quantizers.base import Quantizer
from vqtool.quantizers.output import QuantizerOutput
from vqtool.runtime.distributed import all_gather_rows, on_rank0
from vqtool.runtime.settings import Settings

# Vectors of the sample for each code.
_EACH = 64
# A sample of fewer vectors has local minima of its own.
_LEAST = 1 << 13
# For large codebooks the sample is as many vectors as this, or four a code.
_LARGE = 1 << 16


class KMeansInit(nn.Module):
    """Gathers a sample of the encoder's vectors and then sets the codes by k-means, once.

    Until then there are no codes worth quantizing by: vectors pass as they are, and encoder and decoder begin as a
    plain autoencoder (Łańcucki et al. 2020, "Robust Training of Vector Quantized Bottleneck Models", 3.2). Sample and
    flag are buffers, so that a run that goes on neither starts again nor starts differently.

    Args:
        codebook_size: K.
        dim: D.
        vectors: to wait for, for each code; left out, 64, but 8,192 in all at least, and no more than 65,536 in all or
            four for each code.

    Attributes:
        needed: S of a full sample.
        done: () bool.
        sample: (S, D) so far; emptied when done.
    """

    done: Tensor
    sample: Tensor

    def __init__(self, codebook_size: int, dim: int, vectors: int | None = None) -> None:
        super().__init__()
        self.needed = vectors * codebook_size if vectors else _sample(codebook_size)
        self._gathered: list[Tensor] = []
        self.pending = True  # what `done` says, known without asking the device
        self.register_buffer("done", torch.tensor(False))
        self.register_buffer("sample", torch.empty(0, dim))

    def gather(self, vectors: Tensor) -> None:
        """Add a training batch (N, D) to the sample."""
        if self.pending:
            self._gathered.append(vectors.detach())

    def pass_on(self, vectors: Tensor, indices: Tensor) -> QuantizerOutput:
        """The output while codes wait: vectors (..., D) as they are, gathered; nothing to lose by."""
        self.gather(vectors.reshape(-1, vectors.shape[-1]))
        nothing = vectors.new_zeros(())
        return QuantizerOutput(vectors, indices, nothing, nothing)

    @torch.no_grad()
    def apply_update(self) -> None:
        """Add to the sample what all processes gathered since the last time."""
        if self.pending and self._gathered:
            batches = [all_gather_rows(batch.to(self.sample.dtype)) for batch in self._gathered]
            self.sample = torch.cat([self.sample, *batches])
            self.discard()

    @torch.no_grad()
    def start(self, quantizer: Quantizer, only_if_complete: bool = False) -> None:
        """Start `quantizer`, of which this is a part, from the sample, unless that is done, or there is nothing in it.

        Of several processes the first does it for all: no two need round alike.

        Args:
            only_if_complete: only if the sample is as large as it is to be.

        Raises:
            Stopped: a signal came; the quantizer is as it was.
        """
        if self.pending and len(self.sample) >= (self.needed if only_if_complete else 1):
            quantizer.load_state_dict(on_rank0(lambda: self._started(quantizer)))

    def _started(self, quantizer: Quantizer) -> dict[str, Tensor]:
        """The state of `quantizer` once it has started."""
        quantizer.init_codes(self.sample[-self.needed :])
        self.sample = self.sample[:0].clone()
        self.done.fill_(True)
        return dict(quantizer.state_dict())

    def discard(self) -> None:
        """Forget what was gathered since the last update."""
        self._gathered = []

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}sample" in state_dict:  # of any length
            self.sample = self.sample.new_empty(state_dict[f"{prefix}sample"].shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.pending = not bool(self.done)


def _sample(codebook_size: int) -> int:
    return min(max(_EACH * codebook_size, _LEAST), max(4 * codebook_size, _LARGE))


class RandomInitSettings(Settings):
    """Initialise codes uniformly in (-1/K, 1/K)."""

    kind: Literal["random"] = "random"

    def build(self, codebook_size: int, dim: int) -> None:
        return None


class KMeansInitSettings(Settings):
    """Initialise codes by k-means on the latents of the first training batches.

    Until the sample is complete, latents pass unquantized and the network trains as a plain autoencoder (Łańcucki et
    al. 2020, "Robust Training of Vector Quantized Bottleneck Models", 3.2).
    """

    kind: Literal["kmeans"] = "kmeans"
    latents_per_code: int | None = Field(
        None,
        ge=1,
        le=1 << 16,
        description="number of latents per code in the k-means sample; null: 64, but at least 8,192 latents in total "
        "and at most 65,536 (or 4 per code, if larger)",
    )

    def build(self, codebook_size: int, dim: int) -> KMeansInit:
        return KMeansInit(codebook_size, dim, self.latents_per_code)


CodebookInit = Annotated[RandomInitSettings | KMeansInitSettings, Field(discriminator="kind")]
