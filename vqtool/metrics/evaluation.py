"""Evaluate a model over a data set: losses and codebook usage, for validation during training and for `eval`.

Shapes: n samples, L tokens per sample, D code dimension, K codes, Q levels.
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
from vqtool.quantizers.entropy import negative_entropy
from vqtool.runtime.distributed import all_reduce_sum, rank, world_size
from vqtool.runtime.progress import pass_bar


@dataclass(frozen=True)
class Evaluation:
    """Losses and codebook usage over a whole pass.

    Attributes:
        losses: total, reconstruction, commitment, entropy, in normalised units.
        levels: usage of each level.
        soft_entropies: entropy of the mean soft assignment of each level, divided by ln K.
        sample_entropies: mean entropy of the soft assignment per sample, divided by ln K, for each level; 0: hard.
        samples: number of samples.
        distinct: distinct ids, if samples are vectors.
        latents: statistics of the vectors that each level quantized.
    """

    losses: dict[str, float]
    levels: list[Usage]
    soft_entropies: list[float]
    sample_entropies: list[float]
    samples: int
    distinct: IdCounts | None
    latents: list[LatentStatistics]

    @property
    def counts(self) -> list[Tensor]:
        """Hits (K,) of the codes of each level."""
        return [torch.tensor(level.counts) for level in self.levels]


@dataclass(frozen=True)
class Reconstruction:
    """One chunk of a pass, on the CPU, without padding."""

    rows: Tensor
    """(n, *row) as they are in the user's array."""
    restored: Tensor
    """(n, *row) as decode would write them."""
    indices: Tensor
    """(n, L), or (n, L, Q)"""
    reconstruction_loss: float
    """mean over the chunk."""
    commitment_loss: float
    """mean over the chunk, the codebook loss included."""
    statistics: list[LevelStatistics]
    """raw terms of each level."""


def reconstruct(
    model: Autoencoder, samples: Samples, loss: LossSettings, progress: str, rank: int = 0, of: int = 1
) -> Iterator[Reconstruction]:
    """Pass samples through encoder, quantizer and decoder just as encode and decode do.

    The model is in evaluation mode meanwhile.

    Args:
        progress: what the bar is called.
        rank, of: where that many processes take chunks in turn, which of them this is. Each gets as many, some of which
            may be empty.
    """
    rows = chunk_rows(model, samples.size)
    with eval_mode(model), pass_bar(progress, len(samples)) as bar:
        for turn in range(0, len(samples), rows * of):
            start = min(turn + rank * rows, len(samples))
            raw = samples.read_rows(start, min(start + rows, len(samples)))
            yield _reconstruct_chunk(model, raw, rows, loss)
            bar.update(min(rows * of, len(samples) - turn))


@contextmanager
def eval_mode(model: Autoencoder) -> Iterator[None]:
    """Within, the model is in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def _reconstruct_chunk(model: Autoencoder, raw: Tensor, rows: int, loss: LossSettings) -> Reconstruction:
    device = next(iter(model.state_dict().values())).device
    ((x, n),) = chunks(model.spec.samples(raw).to(device), rows)
    size = model.size_of(x)
    quantized, statistics = model.quantizer.evaluate_padded(model.latents(x), n)
    ((indices, _),) = chunks(quantized.indices, rows)
    prediction = model.predict(indices, size)[:n]
    return Reconstruction(
        rows=raw,
        restored=model.spec.rows(model.modality.restore(prediction).cpu()),
        indices=quantized.indices.cpu(),
        reconstruction_loss=float(reconstruction_loss(loss.reconstruction, prediction, model.modality.target(x[:n]))),
        commitment_loss=float(quantized.commitment_loss),
        statistics=statistics,
    )


class EvaluationAccumulator:
    """Sums the chunks of a pass into an evaluation."""

    def __init__(self, model: Autoencoder, loss: LossSettings) -> None:
        self._sample_entropy_weight = model.quantizer.sample_entropy_weight
        self._loss = loss
        self._samples = 0
        self._reconstruction = 0.0
        self._commitment = 0.0
        self._levels: list[LevelStatistics] = []
        self._ids = IdCounter() if not model.spec.size else None

    def add(self, chunk: Reconstruction) -> None:
        """Count a chunk in, weighted by its samples."""
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
                LevelStatistics(*(mine + other for mine, other in zip(level, added, strict=True)))
                for level, added in zip(self._levels, chunk.statistics, strict=True)
            ]

    def add_others(self) -> None:
        """Count in what all other processes have added."""
        sums = torch.tensor([self._samples, self._reconstruction, self._commitment], dtype=torch.float64)
        samples, self._reconstruction, self._commitment = all_reduce_sum(sums).tolist()
        self._samples = int(samples)
        self._levels = all_reduce_statistics(self._levels)
        if self._ids:
            self._ids.add_others()

    def result(self) -> Evaluation:
        """The evaluation of all that was added, at least one chunk."""
        reconstruction = self._reconstruction / self._samples
        commitment, entropy = raw_losses(self._levels)
        sample_entropy = fmean(float(level.sample_entropy / level.counts.sum()) for level in self._levels)
        total = reconstruction + self._loss.commitment * self._commitment / self._samples
        total += self._loss.entropy * (entropy + self._sample_entropy_weight * sample_entropy)
        return Evaluation(
            losses={
                "total": total,
                "reconstruction": reconstruction,
                "commitment": commitment,
                "entropy": entropy,
            },
            levels=[usage_from_counts(level.counts) for level in self._levels],
            soft_entropies=[normalized_entropy(_soft_entropy(level), len(level.counts)) for level in self._levels],
            sample_entropies=[
                normalized_entropy(float(level.sample_entropy / level.counts.sum()), len(level.counts))
                for level in self._levels
            ],
            samples=self._samples,
            distinct=self._ids.result() if self._ids else None,
            latents=[_latents(level) for level in self._levels],
        )


def evaluate(model: Autoencoder, samples: Samples, loss: LossSettings) -> Evaluation:
    """Losses and usage over all samples."""
    whole = EvaluationAccumulator(model, loss)
    for chunk in reconstruct(model, samples, loss, "validate"):
        whole.add(chunk)
    return whole.result()


def evaluate_distributed(model: Autoencoder, samples: Samples, loss: LossSettings) -> Evaluation:
    """As `evaluate`, by all processes, each of which passes its share of the chunks; all get the whole."""
    whole = EvaluationAccumulator(model, loss)
    for chunk in reconstruct(model, samples, loss, "validate", rank(), world_size()):
        whole.add(chunk)
    whole.add_others()
    return whole.result()


@torch.no_grad()
def shuffled_loss(model: Autoencoder, samples: Samples, loss: LossSettings) -> tuple[float, float]:
    """The reconstruction loss of some samples from their own indices, and from each other's.

    Where the decoder ignores the codes both are the same. The samples are spread over all of them, and each gets the
    indices of one far away: neighbours may be all but the same, as the windows of one recording are.
    """
    rows = chunk_rows(model, samples.size)
    device = next(iter(model.state_dict().values())).device
    numbers = np.linspace(0, len(samples) - 1, min(rows, len(samples))).round().astype(np.int64)
    x = samples.take(numbers).to(device)
    ((padded, n),) = chunks(x, rows)
    found = []
    with eval_mode(model):
        target, indices = model.modality.target(x), model.encode(padded)
        for chosen in (indices[:n], indices[:n].roll(n // 2, dims=0)):
            ((whole, _),) = chunks(chosen, rows)
            prediction = model.predict(whole, model.size_of(x))[:n]
            found.append(float(reconstruction_loss(loss.reconstruction, prediction, target)))
    return found[0], found[1]


def all_reduce_statistics(levels: Sequence[LevelStatistics]) -> list[LevelStatistics]:
    """The statistics of what all processes have seen."""
    return [LevelStatistics(*map(all_reduce_sum, level)) for level in levels]


def raw_losses(levels: Sequence[LevelStatistics]) -> tuple[float, float]:
    """Commitment and entropy without any weight, averaged over levels."""
    commitment = entropy = 0.0
    for level in levels:
        vectors = int(level.counts.sum())
        commitment += float(level.squared_distance / level.elements)
        entropy += float(negative_entropy(level.soft_assignment / vectors))
    return commitment / len(levels), entropy / len(levels)


def _latents(level: LevelStatistics) -> LatentStatistics:
    vectors = int(level.counts.sum())
    mean = level.total / vectors
    variance = float(level.squares / vectors - mean.square().sum())
    return LatentStatistics(mean, max(0.0, variance), float(level.squared_distance) / vectors, level.errors)


def _soft_entropy(level: LevelStatistics) -> float:
    """Of the mean soft assignment, in nats: factors add up."""
    return sum(shannon_entropy(factor) for factor in level.soft_assignment)
