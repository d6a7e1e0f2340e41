"""Evaluation of a model over a data set: losses, codebook usage, latent statistics; in validation and in `eval`.

Shapes: n samples, L tokens per sample, D code dimension, K codes, Q levels; `row` is the shape of one row of the
user's array.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from vqtool.data import Samples
from vqtool.metrics.collisions import IdCounter, IdCounts
from vqtool.metrics.latent_statistics import LatentStatistics
from vqtool.metrics.usage import Usage, normalized_entropy, shannon_entropy, usage_from_counts
from vqtool.models.autoencoder import Autoencoder
from vqtool.models.chunks import chunk_rows, chunks
from vqtool.models.losses import LossSettings, reconstruction_loss
from vqtool.quantizers import LevelStatistics
from vqtool.quantizers.losses import negative_entropy
from vqtool.runtime.distributed import all_reduce_sum, rank, world_size
from vqtool.runtime.progress import pass_bar


@dataclass(frozen=True)
class Evaluation:
    """Losses and codebook usage over a whole pass.

    Attributes:
        losses: `total`, `reconstruction`, `commitment` and `entropy`, in normalised units. Commitment and entropy are
            unweighted: without codebook loss and sample entropy, which `total` includes.
        levels: usage of each level.
        soft_entropies: entropy of the mean soft assignment divided by ln K, for each level.
        sample_entropies: mean entropy of the soft assignments of the latents divided by ln K, for each level; 0 if each
            latent is assigned to one code.
        samples: number of samples.
        distinct: number of rows and of distinct ids, if samples are vectors.
        latent_statistics: statistics of the latents of each level.
    """

    losses: dict[str, float]
    levels: list[Usage]
    soft_entropies: list[float]
    sample_entropies: list[float]
    samples: int
    distinct: IdCounts | None
    latent_statistics: list[LatentStatistics]

    @property
    def counts(self) -> list[Tensor]:
        """Hits (K,) of the codes of each level."""
        return [torch.tensor(level.counts) for level in self.levels]


@dataclass(frozen=True)
class ReconstructedChunk:
    """One chunk of a pass, on the CPU, without padding."""

    rows: Tensor
    """(n, *row) rows of the user's array."""
    decoded: Tensor
    """(n, *row) their reconstructions, as `decode` would write them."""
    indices: Tensor
    """(n, L) indices; (n, L, Q) for residual and product quantizers."""
    reconstruction_loss: float
    """Mean over the chunk."""
    commitment_loss: float
    """Mean over the chunk, with the codebook loss if the codebook update has one."""
    statistics: list[LevelStatistics]
    """Sums over the chunk, for each level."""


def iter_reconstructions(
    model: Autoencoder, samples: Samples, loss: LossSettings, progress_name: str, rank: int = 0, world_size: int = 1
) -> Iterator[ReconstructedChunk]:
    """Encode, quantize and decode samples chunk by chunk, with the computation of `encode` and `decode`.

    The model is in evaluation mode during the pass. With several processes, chunk i goes to rank i mod world_size. All
    ranks get the same number of chunks; the last ones may be empty.

    Args:
        progress_name: name of the progress bar.
        rank: rank of this process.
        world_size: number of processes.

    Yields:
        The chunks of this rank, in order.
    """
    rows = chunk_rows(model, samples.size)
    with eval_mode(model), pass_bar(progress_name, len(samples)) as bar:
        for first in range(0, len(samples), rows * world_size):
            start = min(first + rank * rows, len(samples))
            raw = samples.read_rows(start, min(start + rows, len(samples)))
            yield _reconstruct_chunk(model, raw, rows, loss)
            bar.update(min(rows * world_size, len(samples) - first))


@contextmanager
def eval_mode(model: Autoencoder) -> Iterator[None]:
    """Put the model in evaluation mode within the context; restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def _reconstruct_chunk(model: Autoencoder, raw: Tensor, rows: int, loss: LossSettings) -> ReconstructedChunk:
    ((x, n),) = chunks(model.spec.to_samples(raw).to(_device(model)), rows)
    size = model.size_of(x)
    quantized, statistics = model.quantizer.evaluate_padded(model.latents(x), n)
    ((indices, _),) = chunks(quantized.indices, rows)
    prediction = model.predict(indices, size)[:n]
    return ReconstructedChunk(
        rows=raw,
        decoded=model.spec.to_rows(model.data_io.postprocess(prediction).cpu()),
        indices=quantized.indices.cpu(),
        reconstruction_loss=float(reconstruction_loss(loss.reconstruction, prediction, model.data_io.target(x[:n]))),
        commitment_loss=float(quantized.commitment_loss),
        statistics=statistics,
    )


class EvaluationAccumulator:
    """Accumulates the chunks of a pass into an `Evaluation`.

    Args:
        model: the model that reconstructed the chunks.
        loss: weights of the losses.
    """

    def __init__(self, model: Autoencoder, loss: LossSettings) -> None:
        self._sample_entropy_weight = model.quantizer.sample_entropy_weight
        self._loss = loss
        self._samples = 0
        # Sums over samples.
        self._reconstruction = 0.0
        self._commitment = 0.0
        self._levels: list[LevelStatistics] = []
        self._ids = IdCounter() if not model.spec.size else None

    def add(self, chunk: ReconstructedChunk) -> None:
        """Add a chunk; its losses are weighted by its number of samples."""
        n = len(chunk.rows)
        self._samples += n
        self._reconstruction += n * chunk.reconstruction_loss
        self._commitment += n * chunk.commitment_loss
        if self._ids:
            self._ids.add(chunk.indices.numpy())
        if not self._levels:
            self._levels = chunk.statistics
        else:
            self._levels = [
                LevelStatistics(*(total + term for total, term in zip(totals, terms, strict=True)))
                for totals, terms in zip(self._levels, chunk.statistics, strict=True)
            ]

    def all_reduce(self) -> None:
        """Add the chunks of all other processes; all processes must call it, after at least one `add` each."""
        sums = torch.tensor([self._samples, self._reconstruction, self._commitment], dtype=torch.float64)
        samples, self._reconstruction, self._commitment = all_reduce_sum(sums).tolist()
        self._samples = int(samples)
        self._levels = all_reduce_statistics(self._levels)
        if self._ids:
            self._ids.all_reduce()

    def result(self) -> Evaluation:
        """Return the evaluation of all added chunks; at least one sample must have been added."""
        reconstruction = self._reconstruction / self._samples
        commitment, entropy = unweighted_losses(self._levels)
        sample_entropies = [float(level.sample_entropy / level.counts.sum()) for level in self._levels]
        total = reconstruction + self._loss.commitment * self._commitment / self._samples
        total += self._loss.entropy * (entropy + self._sample_entropy_weight * fmean(sample_entropies))
        sizes = [len(level.counts) for level in self._levels]
        # A scalar quantizer has one factor per dimension, and their entropies add up.
        soft_entropies = [sum(shannon_entropy(factor) for factor in level.soft_assignment) for level in self._levels]
        return Evaluation(
            losses={
                "total": total,
                "reconstruction": reconstruction,
                "commitment": commitment,
                "entropy": entropy,
            },
            levels=[usage_from_counts(level.counts) for level in self._levels],
            soft_entropies=list(map(normalized_entropy, soft_entropies, sizes)),
            sample_entropies=list(map(normalized_entropy, sample_entropies, sizes)),
            samples=self._samples,
            distinct=self._ids.result() if self._ids else None,
            latent_statistics=[_latent_statistics(level) for level in self._levels],
        )


def evaluate(model: Autoencoder, samples: Samples, loss: LossSettings) -> Evaluation:
    """Return losses and usage over all samples."""
    accumulator = EvaluationAccumulator(model, loss)
    for chunk in iter_reconstructions(model, samples, loss, "validate"):
        accumulator.add(chunk)
    return accumulator.result()


def evaluate_distributed(model: Autoencoder, samples: Samples, loss: LossSettings) -> Evaluation:
    """Return `evaluate` of all samples in all processes; each process computes its part of the chunks."""
    accumulator = EvaluationAccumulator(model, loss)
    for chunk in iter_reconstructions(model, samples, loss, "validate", rank(), world_size()):
        accumulator.add(chunk)
    accumulator.all_reduce()
    return accumulator.result()


@torch.no_grad()
def shuffled_loss(model: Autoencoder, samples: Samples, loss: LossSettings) -> tuple[float, float]:
    """Return the reconstruction loss of one chunk of samples, with their own indices and with shuffled indices.

    Equal losses mean that the decoder ignores the codes. The n samples are evenly spaced over the data. Shuffling rolls
    the indices by n // 2 samples, because adjacent samples (windows of one recording, for example) may be similar.
    """
    rows = chunk_rows(model, samples.size)
    numbers = np.linspace(0, len(samples) - 1, min(rows, len(samples))).round().astype(np.int64)
    x = samples.take(numbers).to(_device(model))
    ((padded, n),) = chunks(x, rows)
    losses = []
    with eval_mode(model):
        target, indices = model.data_io.target(x), model.encode(padded)[:n]
        for chunk_indices in (indices, indices.roll(n // 2, dims=0)):
            ((padded_indices, _),) = chunks(chunk_indices, rows)
            prediction = model.predict(padded_indices, model.size_of(x))[:n]
            losses.append(float(reconstruction_loss(loss.reconstruction, prediction, target)))
    return losses[0], losses[1]


def all_reduce_statistics(levels: Sequence[LevelStatistics]) -> list[LevelStatistics]:
    """Return the statistics of each level, summed over all processes."""
    return [LevelStatistics(*map(all_reduce_sum, level)) for level in levels]


def unweighted_losses(levels: Sequence[LevelStatistics]) -> tuple[float, float]:
    """Return commitment and entropy loss over all added vectors, without any weight, averaged over levels.

    commitment = mean over all elements of (z - e[indices])²; entropy = sum over k of p[k]·ln(p[k] + 1e-10), with p the
    mean soft assignment.
    """
    commitment = entropy = 0.0
    for level in levels:
        vectors = int(level.counts.sum())
        commitment += float(level.squared_distance / level.elements)
        entropy += float(negative_entropy(level.soft_assignment / vectors))
    return commitment / len(levels), entropy / len(levels)


def _latent_statistics(level: LevelStatistics) -> LatentStatistics:
    vectors = int(level.counts.sum())
    mean = level.vector_sum / vectors
    variance = float(level.squared_norm_sum / vectors - mean.square().sum())
    error = float(level.squared_distance) / vectors
    return LatentStatistics(mean, max(0.0, variance), error, level.squared_distance_per_code)


def _device(model: Autoencoder) -> torch.device:
    # Not from a parameter: a model with identity networks and EMA codes has none.
    return next(iter(model.state_dict().values())).device
