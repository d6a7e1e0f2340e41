"""Everything that a report page shows about a run or an index file, gathered in one pass over the data.

Shapes: n of N samples, L tokens per sample, Q levels, K codes, D code dimension, S latents, M nearest tokens per code,
B tokens of a block. The token at position l of sample i has the number i·L + l.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.data import Samples, open_dataset
from vqtool.errors import ConfigError, DataError
from vqtool.inference.tokenizer import Tokenizer, load
from vqtool.inspection.inspect_targets import (
    Inspection,
    count_index_file,
    inspect_target,
    inspection_from_data,
    inspection_from_file,
)
from vqtool.inspection.report.cooccurrence import Cooccurrence, CooccurrenceCollector
from vqtool.metrics.usage import CodeCounter
from vqtool.models.chunks import chunk_rows, chunks
from vqtool.quantizers import Quantizer
from vqtool.runs.index_file import read_indices
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.progress import pass_bar

# Codes and latents are drawn for this many levels, from the first.
MAX_LEVELS = 4
# M.
EXAMPLES_PER_CODE = 6
_MAX_LATENTS_PER_LEVEL = 10_000
# Codebooks with more codes are neither drawn nor shown by examples.
_MAX_CODES = 1 << 17
_PREVIEW_SAMPLES = 6


class NearestTokens:
    """Keeps the M nearest tokens of each code, block by block.

    Attributes:
        distances: (K, M), squared, ascending; inf where a code has fewer than M tokens.
        tokens: (K, M), the token numbers; -1 where a code has fewer than M tokens.
    """

    def __init__(self, codebook_size: int, tokens_per_code: int) -> None:
        self.distances = np.full((codebook_size, tokens_per_code), np.inf)
        self.tokens = np.full((codebook_size, tokens_per_code), -1, dtype=np.int64)

    def add(self, codes: NDArray[np.int64], distances: NDArray[np.float64], tokens: NDArray[np.int64]) -> None:
        """Add a block of tokens, and keep the M nearest tokens of each code.

        Tokens at equal distances are ranked in the order in which they were added.

        Args:
            codes: (B,), the code of each token.
            distances: (B,), squared, between each token's latent and its code.
            tokens: (B,), the token numbers.
        """
        closer = distances < self.distances[codes, -1]
        codes, distances, tokens = codes[closer], distances[closer], tokens[closer]
        changed, tokens_per_code = np.unique(codes), self.distances.shape[1]
        if not len(changed):
            return
        # The stable sort keeps previous tokens before new ones of equal distance.
        codes = np.concatenate([np.repeat(changed, tokens_per_code), codes])
        distances = np.concatenate([self.distances[changed].reshape(-1), distances])
        tokens = np.concatenate([self.tokens[changed].reshape(-1), tokens])
        order = np.lexsort((distances, codes))
        starts = np.searchsorted(codes[order], changed)
        nearest = order[starts[:, None] + np.arange(tokens_per_code)]
        self.distances[changed], self.tokens[changed] = distances[nearest], tokens[nearest]


@dataclass(frozen=True)
class DataPass:
    """Results of one pass of the model over a dataset.

    `codebooks`, `latents` and `nearest_tokens` have one entry for each of the first `MAX_LEVELS` levels. They are empty
    if the codebook is too large to draw.

    Attributes:
        counter: the hits of each code.
        cooccurrences: statistics of neighbouring codes.
        codebooks: codes (K, D) of each level.
        latents: preprocessed latents (S, D) of each level, at regular intervals over the pass. From the second level of
            a residual quantizer on they are residuals.
        nearest_tokens: (K, M) for each level, the numbers of those tokens of each code whose latents are nearest to it,
            nearest first; -1 where a code has fewer than M tokens.
    """

    counter: CodeCounter
    cooccurrences: list[Cooccurrence]
    codebooks: list[NDArray[np.float32]]
    latents: list[NDArray[np.float32]]
    nearest_tokens: list[NDArray[np.int64]]


@dataclass(frozen=True)
class ModelSamples:
    """A model, a dataset, and the results of encoding the dataset.

    Attributes:
        samples: the N samples that `data_pass` covers.
        preview_rows: rows (n, *row) of the first 6 samples, or of all if there are fewer.
        preview_indices: their indices, (n, L, Q), also for Q = 1.
        preview_reconstructions: their reconstructions, (n, *row).
    """

    tokenizer: Tokenizer
    samples: Samples
    data_pass: DataPass
    preview_rows: Tensor
    preview_indices: Tensor
    preview_reconstructions: Tensor

    @property
    def grid(self) -> tuple[int, ...]:
        """The token grid of a sample, in row-major order; its product is L."""
        return self.tokenizer.model.grid(self.samples.size)

    def row_index(self, sample: int) -> int:
        """Return the index of a sample in the user's array."""
        return sample if self.samples.row_indices is None else int(self.samples.row_indices[sample])

    def take_rows(self, samples: Sequence[int]) -> Tensor:
        """Return the rows (n, *row) of the given sample numbers, in their order."""
        row_indices = np.array([self.row_index(sample) for sample in samples], dtype=np.int64)
        return self.samples.rows.take(row_indices)

    def encode(self, rows: Tensor) -> Tensor:
        """Return the indices (n, L) or (n, L, Q) of rows (n, *row)."""
        return self.tokenizer.encode_batch(self.tokenizer.spec.to_samples(rows))

    def decode(self, indices: Tensor) -> Tensor:
        """Return the reconstructions (n, *row) of indices (n, L) or (n, L, Q), in the dtype of the user's array."""
        return self.tokenizer.decode(indices, self.samples.rows.shape)


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the report page of one run or index file shows.

    Attributes:
        cooccurrences: statistics of neighbouring codes.
        config: text of the run's config.yaml; empty for an index file.
        metrics: metrics by tag, and `step`, of each logged step; empty for an index file.
        model_samples: the model and its encoded data; None for an index file, or if the data of the run cannot be read.
        data_error: a sentence that says why the data of the run cannot be read; None if they can, or for an index file.
    """

    inspection: Inspection
    cooccurrences: list[Cooccurrence] = field(default_factory=list)
    config: str = ""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    model_samples: ModelSamples | None = None
    data_error: str | None = None


def collect_inputs(
    target: Path, data: str | None = None, key: str | None = None, device: str | None = None
) -> ReportInputs:
    """Gather the report inputs of one run or index file.

    If `data` is None and the run's own data cannot be read, the result has no `model_samples` but a `data_error`.

    Args:
        data, key: the dataset to encode; None: the validation split of the run.

    Raises:
        CheckpointError: the run cannot be loaded.
        ConfigError: config.yaml is invalid, or the device is not available.
        DataError: the index file or `data` cannot be read, or `data` is given with an index file.
    """
    if target.is_file():
        if data is not None:
            inspect_target(target, data)  # raises DataError
        array, manifest = read_indices(target)
        # The last column of unique ids distinguishes rows with equal codes; it is not a level.
        levels = 1 if array.ndim == 2 else array.shape[2] - manifest.unique
        collector = CooccurrenceCollector(manifest.codebook_sizes[:levels], manifest.grid, len(array))
        counter = count_index_file(target, collector.add)
        return ReportInputs(inspection_from_file(target, counter), collector.result())
    run, tokenizer = RunDirectory(target), load(target, device)
    config, metrics = run.config.read_text(encoding="utf-8"), run.read_metrics()
    if data is not None:
        model_samples = _apply_model(tokenizer, tokenizer.open_scanned(data, key))
        inspection = inspection_from_data(target, data, model_samples.data_pass.counter)
    else:
        inspection = inspect_target(target)
        try:
            samples = open_dataset(tokenizer.settings.data, tokenizer.settings.seed).validation
        except (ConfigError, DataError) as error:
            message = f"The data of the run cannot be read, so the sections that need them are missing: {error}."
            return ReportInputs(inspection, config=config, metrics=metrics, data_error=message)
        model_samples = _apply_model(tokenizer, samples)
    return ReportInputs(inspection, model_samples.data_pass.cooccurrences, config, metrics, model_samples)


def _apply_model(tokenizer: Tokenizer, samples: Samples) -> ModelSamples:
    data_pass = collect_data_pass(tokenizer, samples)
    rows = samples.read_rows(0, min(_PREVIEW_SAMPLES, len(samples)))
    indices = tokenizer.encode_batch(tokenizer.spec.to_samples(rows))
    reconstructions = tokenizer.decode(indices, samples.rows.shape)
    return ModelSamples(tokenizer, samples, data_pass, rows, indices.reshape(*indices.shape[:2], -1), reconstructions)


def collect_data_pass(tokenizer: Tokenizer, samples: Samples, max_latents: int = _MAX_LATENTS_PER_LEVEL) -> DataPass:
    """Encode all samples once, and return code counts, co-occurrences, latents and nearest tokens.

    Args:
        max_latents: upper limit of S.
    """
    quantizer, grid = tokenizer.model.quantizer, tokenizer.model.grid(samples.size)
    tokens_per_sample = math.prod(grid)
    latent_step = max(1, math.ceil(len(samples) * tokens_per_sample / max_latents))
    counter = CodeCounter(quantizer.codebook_sizes, ids=not samples.size)
    collector = CooccurrenceCollector(quantizer.codebook_sizes, grid, len(samples))
    codebooks = _drawable_codebooks(quantizer)
    latents: list[list[NDArray[np.float32]]] = [[] for _ in codebooks]
    nearest = [NearestTokens(len(codes), EXAMPLES_PER_CODE) for codes in codebooks]
    rows_per_chunk = chunk_rows(tokenizer.model, samples.size)
    with pass_bar("inspect", len(samples)) as bar, torch.inference_mode():
        for start in range(0, len(samples), rows_per_chunk):
            ((x, n),) = chunks(samples.read(start, min(start + rows_per_chunk, len(samples))), rows_per_chunk)
            z = tokenizer.model.latents(x.to(tokenizer.device))
            # Encode the padding after the n rows too: a chunk of another shape could give other indices.
            indices = quantizer.encode(z)[:n].cpu()
            counter.add(indices.numpy())
            collector.add(start, indices.numpy())
            bar.update(n)
            if not codebooks:
                continue
            preprocessed = quantizer.preprocess(z.float())[:n].float().cpu().flatten(0, 1)
            indices = indices.reshape(n * tokens_per_sample, -1)
            first_token = start * tokens_per_sample
            for level, vectors in enumerate(level_latents(preprocessed, indices, codebooks)):
                latents[level].append(vectors[-first_token % latent_step :: latent_step].numpy().copy())
                codes = indices[:, level]
                distances = (vectors - codebooks[level][codes]).square().sum(dim=1).double()
                nearest[level].add(codes.numpy(), distances.numpy(), first_token + np.arange(len(codes)))
    return DataPass(
        counter=counter,
        cooccurrences=collector.result(),
        codebooks=[codes.numpy() for codes in codebooks],
        latents=[np.concatenate(blocks) for blocks in latents],
        nearest_tokens=[level_nearest.tokens for level_nearest in nearest],
    )


def level_latents(preprocessed: Tensor, indices: Tensor, codebooks: list[Tensor]) -> list[Tensor]:
    """Return, for each of the first levels, the vectors (B, D) that it quantizes.

    A product quantizer splits its input into G groups of D dimensions; other quantizers have one group. Each group has
    Q / G consecutive levels. The first level of a group quantizes the D dimensions of the group, r[0] = z. Level q of a
    group quantizes the residual r[q] = r[q-1] - e[q-1,indices[q-1]].

    Args:
        preprocessed: (B, G·D), the output of `Quantizer.preprocess`.
        indices: (B, Q).
        codebooks: codes (K, D) of the first levels, at least one and at most Q.
    """
    dim = codebooks[0].shape[1]
    groups = preprocessed.shape[1] // dim
    levels_per_group = indices.shape[1] // groups
    vectors: list[Tensor] = []
    for level, codes in enumerate(codebooks):
        assert codes.shape[1] == dim
        if level % levels_per_group:
            vectors.append(vectors[-1] - codebooks[level - 1][indices[:, level - 1]])
        else:
            vectors.append(preprocessed[:, level // levels_per_group * dim :][:, :dim])
    return vectors


def _drawable_codebooks(quantizer: Quantizer) -> list[Tensor]:
    """Return the codes (K, D) of the first levels, float32 on the CPU; empty if a codebook is too large to draw."""
    if max(quantizer.codebook_sizes) > _MAX_CODES:
        return []
    codes = quantizer.codes.detach().float().cpu()
    return list(codes[:MAX_LEVELS] if codes.ndim == 3 else codes[None])
