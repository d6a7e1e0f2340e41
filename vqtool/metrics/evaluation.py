"""Evaluation of a model over a data set: losses, codebook usage, latent statistics; in validation and in `eval`.

Shapes: n samples, L tokens per sample, K codes, Q levels; `row` is the shape of one row of the user's array.
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
        losses: means over the pass.
            `reconstruction`: reconstruction loss of the settings, on normalised values or on classes.
            `commitment`: commitment loss of `unweighted_losses`, which excludes the codebook loss.
            `entropy`: entropy loss of `unweighted_losses`, which excludes the sample entropy.
            `total`: sum of the losses with the weights of `LossSettings`; includes codebook loss and sample entropy.
        levels: usage of each level.
        soft_entropies: entropy of the mean soft assignment divided by ln K, for each level: 0 to 1, where 1 is even
            usage; 1 if K is 1.
        sample_entropies: mean entropy of the latents' soft assignments divided by ln K, for each level: 0 to 1, where 0
            assigns each latent to one code; 1 if K is 1.
        samples: number of samples.
        distinct: number of rows and of distinct ids if samples are vectors, otherwise None.
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
        """Hits (K,) int64 of the codes of each level."""
        return [torch.tensor(level.counts) for level in self.levels]


@dataclass(frozen=True)
class ReconstructedChunk:
    """One chunk of a pass, on the CPU, without padding; n is 0 for an empty chunk."""

    rows: Tensor
    """(n, *row) rows of the user's array."""
    decoded: Tensor
    """(n, *row) their reconstructions in the dtype of the user's array, as `decode` would write them."""
    indices: Tensor
    """(n, L) int64 indices; (n, L, Q) for residual and product quantizers."""
    reconstruction_loss: float
    """Mean over the chunk, on normalised values or on classes; 0 if the chunk is empty."""
    commitment_loss: float
    """`QuantizerOutput.commitment_loss`: mean over the chunk, with the codebook loss if the codebook update has one; 0
    if the chunk is empty."""
    statistics: list[LevelStatistics]
    """Sums over the chunk, for each level."""


def iter_reconstructions(
    model: Autoencoder, samples: Samples, loss: LossSettings, progress_name: str, rank: int = 0, world_size: int = 1
) -> Iterator[ReconstructedChunk]:
    """Encode, quantize and decode samples chunk by chunk, with the computation of `encode` and `decode`.

    The model is in evaluation mode until the iterator is exhausted or closed. Chunk i goes to rank i mod world_size.
    All ranks get the same number of chunks; the last chunk of a rank may be empty.

    Args:
        loss: settings that `resolve_reconstruction` returned.
        progress_name: name of the progress bar.
        rank: rank of this process.
        world_size: number of processes.

    Yields:
        The chunks of this rank, in order; nothing if there are no samples.

    Raises:
        Stopped: after a chunk, if a signal asked to stop.
    """
    rows_per_chunk = chunk_rows(model, samples.size)
    with eval_mode(model), pass_bar(progress_name, len(samples)) as bar:
        for first in range(0, len(samples), rows_per_chunk * world_size):
            start = min(first + rank * rows_per_chunk, len(samples))
            rows = samples.read_rows(start, min(start + rows_per_chunk, len(samples)))
            yield _reconstruct_chunk(model, rows, rows_per_chunk, loss)
            bar.update(min(rows_per_chunk * world_size, len(samples) - first))


@contextmanager
def eval_mode(model: Autoencoder) -> Iterator[None]:
    """Context in which the model is in evaluation mode; its mode is restored at the end, also after an exception."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def _reconstruct_chunk(model: Autoencoder, rows: Tensor, rows_per_chunk: int, loss: LossSettings) -> ReconstructedChunk:
    """Reconstruct rows (n, *row), computed as one chunk: padded to `rows_per_chunk`, which n does not exceed."""
    ((x, n),) = chunks(model.spec.to_samples(rows).to(_device(model)), rows_per_chunk)
    size = model.size_of(x)
    quantized, statistics = model.quantizer.evaluate_padded(model.latents(x), n)
    ((indices, _),) = chunks(quantized.indices, rows_per_chunk)
    prediction = model.predict(indices, size)[:n]
    return ReconstructedChunk(
        rows=rows,
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
        loss: weights of the losses in `Evaluation.losses["total"]`.
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
        """Add the chunks of all other processes, once, at the end of the pass.

        All processes must call it, after at least one `add` each; the chunk may be empty.
        """
        sums = torch.tensor([self._samples, self._reconstruction, self._commitment], dtype=torch.float64)
        samples, self._reconstruction, self._commitment = all_reduce_sum(sums).tolist()
        self._samples = int(samples)
        self._levels = all_reduce_statistics(self._levels)
        if self._ids:
            self._ids.all_reduce()

    def result(self) -> Evaluation:
        """Return the evaluation of the samples of all added chunks; there must be at least one sample."""
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
    """Evaluate all samples, at least one, in this process alone; raise `Stopped` as `iter_reconstructions` does."""
    accumulator = EvaluationAccumulator(model, loss)
    for chunk in iter_reconstructions(model, samples, loss, "validate"):
        accumulator.add(chunk)
    return accumulator.result()


def evaluate_distributed(model: Autoencoder, samples: Samples, loss: LossSettings) -> Evaluation:
    """Do the same as `evaluate` with the chunks distributed over all processes, which must all call it.

    All processes return the same evaluation. It may differ from that of `evaluate` by rounding, because the order of
    summation is different.
    """
    accumulator = EvaluationAccumulator(model, loss)
    for chunk in iter_reconstructions(model, samples, loss, "validate", rank(), world_size()):
        accumulator.add(chunk)
    accumulator.all_reduce()
    return accumulator.result()


@torch.no_grad()
def shuffled_loss(model: Autoencoder, samples: Samples, loss: LossSettings) -> tuple[float, float]:
    """Return the reconstruction loss of one chunk of samples: with their own indices, and with shuffled indices.

    Equal losses mean that the decoder ignores the codes. The samples, at most as many as a chunk holds (n), are evenly
    spaced over the data. Shuffling rolls the indices by n // 2 samples, because adjacent samples (windows of one
    recording, for example) may be similar. The losses of a single sample are always equal.
    """
    rows_per_chunk = chunk_rows(model, samples.size)
    sample_indices = np.linspace(0, len(samples) - 1, min(rows_per_chunk, len(samples))).round().astype(np.int64)
    x = samples.take(sample_indices).to(_device(model))
    ((padded, n),) = chunks(x, rows_per_chunk)
    losses = []
    with eval_mode(model):
        target, indices = model.data_io.target(x), model.encode(padded)[:n]
        for chunk_indices in (indices, indices.roll(n // 2, dims=0)):
            ((padded_indices, _),) = chunks(chunk_indices, rows_per_chunk)
            prediction = model.predict(padded_indices, model.size_of(x))[:n]
            losses.append(float(reconstruction_loss(loss.reconstruction, prediction, target)))
    return losses[0], losses[1]


def all_reduce_statistics(levels: Sequence[LevelStatistics]) -> list[LevelStatistics]:
    """Return the statistics of each level, summed over all processes, which must all call it."""
    return [LevelStatistics(*map(all_reduce_sum, level)) for level in levels]


def unweighted_losses(levels: Sequence[LevelStatistics]) -> tuple[float, float]:
    """Return commitment and entropy loss of the vectors in the statistics, without any weight, averaged over levels.

        commitment = mean over all elements of (z - e[indices])²
        entropy    = sum over k of p[k]·ln(p[k] + 1e-10), with p the mean soft assignment; in nats, -ln K for even usage

    z are preprocessed vectors (`Quantizer.preprocess`). Both are NaN if there are no vectors. A scalar quantizer has
    one p per dimension, and its entropy is the sum over dimensions.
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
