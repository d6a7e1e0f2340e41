"""Initialisation of codes: random, or by k-means on the latents of the first training batches.

Shapes: N vectors, S vectors of the k-means sample, K codes, D dimensions.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vqtool.quantizers.base import Quantizer, QuantizerOutput
from vqtool.runtime.distributed import all_gather_rows, on_rank0
from vqtool.runtime.settings import Settings

# Default sample size: 64 latents per code, but at least 2^13 in total, because k-means on a small sample has additional
# local minima, and at most 2^16, or 4 per code if that is more.
_LATENTS_PER_CODE, _MIN_LATENTS_PER_CODE = 64, 4
_MIN_SAMPLE, _MAX_SAMPLE = 1 << 13, 1 << 16


class KMeansInit(nn.Module):
    """Collect a sample of latents in training, then initialise a quantizer's codes from it by k-means, once.

    Until then, vectors pass unquantized and the network trains as a plain autoencoder (Łańcucki et al. 2020, "Robust
    Training of Vector Quantized Bottleneck Models", 3.2). Sample and flag are buffers, so a resumed run continues with
    the same sample and does not initialise twice.

    Args:
        codebook_size: K.
        dim: D.
        latents_per_code: S / K. Default: 64, but at least 8,192 latents in total, and at most 65,536 (or 4 per code, if
            that is more).

    Attributes:
        sample_size: S, number of vectors of a complete sample.
        needs_init: whether the codes are still to be initialised; a copy of `not done` on the host.
        done: () bool, whether the codes are initialised.
        sample: (n, D), the preprocessed vectors of all processes collected so far; n may exceed S, and is 0 once the
            codes are initialised.
    """

    done: Tensor
    sample: Tensor

    def __init__(self, codebook_size: int, dim: int, latents_per_code: int | None = None) -> None:
        super().__init__()
        if latents_per_code:
            self.sample_size = latents_per_code * codebook_size
        else:
            max_sample = max(_MIN_LATENTS_PER_CODE * codebook_size, _MAX_SAMPLE)
            self.sample_size = min(max(_LATENTS_PER_CODE * codebook_size, _MIN_SAMPLE), max_sample)
        self._batches: list[Tensor] = []
        self.needs_init = True
        self.register_buffer("done", torch.tensor(False))
        self.register_buffer("sample", torch.empty(0, dim))

    def accumulate(self, vectors: Tensor) -> None:
        """Accumulate a training batch (N, D) for `apply_update`; no effect once the codes are initialised."""
        if self.needs_init:
            self._batches.append(vectors.detach())

    def pass_through(self, vectors: Tensor, indices: Tensor) -> QuantizerOutput:
        """Accumulate a preprocessed batch for the k-means sample, and return it unquantized.

        Args:
            vectors: (..., D), the preprocessed batch.
            indices: (...), or (..., Q) for a quantizer with levels.

        Returns:
            `vectors` and `indices`, unchanged, with a commitment loss and an entropy loss of 0.
        """
        self.accumulate(vectors.reshape(-1, vectors.shape[-1]))
        zero = vectors.new_zeros(())
        return QuantizerOutput(vectors, indices, zero, zero)

    @torch.no_grad()
    def apply_update(self) -> None:
        """Append the batches accumulated by all processes since the last update to the sample; all must call it."""
        if self.needs_init and self._batches:
            batches = [all_gather_rows(batch.to(self.sample.dtype)) for batch in self._batches]
            self.sample = torch.cat([self.sample, *batches])
            self.discard()

    @torch.no_grad()
    def run(self, quantizer: Quantizer, only_if_complete: bool = False) -> None:
        """Initialise the codes of `quantizer`, which contains this module, from the last S vectors of the sample.

        No effect if they are initialised already, or if the sample is empty. Rank 0 computes the new state and sends it
        to the other ranks, so that all are equal to the last bit; all ranks must call it.

        Args:
            quantizer: its `init_codes` computes the new codes.
            only_if_complete: initialise only if the sample has at least `sample_size` vectors.

        Raises:
            Stopped: a signal was received; `needs_init` is still true.
        """

        def initialised_state() -> dict[str, Tensor]:
            quantizer.init_codes(self.sample[-self.sample_size :])
            self.sample = self.sample[:0].clone()
            self.done.fill_(True)
            return dict(quantizer.state_dict())

        if self.needs_init and len(self.sample) >= (self.sample_size if only_if_complete else 1):
            quantizer.load_state_dict(on_rank0(initialised_state))

    def discard(self) -> None:
        """Drop the batches accumulated since the last update."""
        self._batches = []

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}sample" in state_dict:  # the sample grows, so its length differs from this module's
            self.sample = self.sample.new_empty(state_dict[f"{prefix}sample"].shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.needs_init = not bool(self.done)


class RandomInitSettings(Settings):
    """Initialise codes uniformly in (-1/K, 1/K); for simvq, normally with standard deviation 1 / sqrt(D)."""

    kind: Literal["random"] = "random"

    def build(self, codebook_size: int, dim: int) -> None:
        """Return None: codebooks are random from the start."""


class KMeansInitSettings(Settings):
    """Initialise codes by k-means on the latents of the first training batches.

    Until then, latents pass unquantized and the network trains as a plain autoencoder (Łańcucki et al. 2020, "Robust
    Training of Vector Quantized Bottleneck Models", 3.2).
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
        """Return the initialisation of K = `codebook_size` codes of dimension D = `dim`."""
        return KMeansInit(codebook_size, dim, self.latents_per_code)


CodebookInit = Annotated[RandomInitSettings | KMeansInitSettings, Field(discriminator="kind")]
