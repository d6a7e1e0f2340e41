"""The one pass over data behind a report, which keeps a bounded amount of all that it sees.

Shapes: n of N samples, L positions per sample, D dimensions of a code, K codes, Q levels, M places, S latents.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.data import Samples
from vqtool.inference.tokenizer import Tokenizer
from vqtool.inspection.pairs import Pairs, Relation
from vqtool.inspection.report.nearest import Nearest
from vqtool.metrics.code_counter import CodeCounter
from vqtool.models.chunks import chunk_rows, chunks
from vqtool.quantizers import Quantizer
from vqtool.runtime.progress import pass_bar

# Levels of which latents are kept.
LEVELS = 4
# Latents kept a level.
_LATENTS = 10_000
# Samples kept of each code.
PLACES = 6
# Codebooks up to this size have their codes drawn and their samples kept.
_MOST_CODES = 1 << 17


@dataclass(frozen=True)
class Collected:
    """What is left of a pass.

    Attributes:
        tally: the hits of each code.
        relations: of neighbouring codes.
        codes: of each level (K, D); none where there are too many to be drawn.
        latents: of each of these levels (S, D), evenly spread over the pass, as codes were compared with them.
        places: of each of these levels (K, M), for each code the tokens n·L + l that lie nearest to it; -1: there are
            fewer.
    """

    tally: CodeCounter
    relations: list[Relation]
    codes: list[NDArray[np.float32]]
    latents: list[NDArray[np.float32]]
    places: list[NDArray[np.int64]]


def collect(tokenizer: Tokenizer, samples: Samples) -> Collected:
    """Pass over samples once."""
    collector = _Collector(tokenizer, samples)
    rows = chunk_rows(tokenizer.model, samples.size)
    with pass_bar("inspect", len(samples)) as bar, torch.inference_mode():
        for start in range(0, len(samples), rows):
            ((x, n),) = chunks(samples.read(start, min(start + rows, len(samples))), rows)
            collector.add(start, tokenizer.model.latents(x.to(tokenizer.device)), n)
            bar.update(n)
    return collector.result()


class _Collector:
    def __init__(self, tokenizer: Tokenizer, samples: Samples) -> None:
        self._quantizer = quantizer = tokenizer.model.quantizer
        grid = tokenizer.model.grid(samples.size)
        self._positions = math.prod(grid)
        self._every = max(1, math.ceil(len(samples) * self._positions / _LATENTS))
        self._tally = CodeCounter(quantizer.codebook_sizes, ids=not samples.size)
        self._pairs = Pairs(quantizer.codebook_sizes, grid, len(samples))
        self._codes = _codes(quantizer)
        self._latents: list[list[NDArray[np.float32]]] = [[] for _ in self._codes]
        self._nearest = [Nearest(len(codes), PLACES) for codes in self._codes]

    def add(self, start: int, vectors: Tensor, n: int) -> None:
        """Look at the first n of vectors (rows, L, D), which is padded as it is where codes are written."""
        indices = self._quantizer.encode(vectors)[:n].cpu()
        self._tally.add(indices.numpy())
        self._pairs.add(start, indices.numpy())
        if self._codes:
            preprocessed = self._quantizer.preprocess(vectors.float())[:n].float().cpu()
            self._look(start * self._positions, preprocessed.flatten(0, 1), indices.reshape(n * self._positions, -1))

    def result(self) -> Collected:
        latents = [np.concatenate(kept) for kept in self._latents]
        codes = [codes.numpy() for codes in self._codes]
        places = [nearest.places for nearest in self._nearest]
        return Collected(self._tally, self._pairs.result(), codes, latents, places)

    def _look(self, first: int, preprocessed: Tensor, indices: Tensor) -> None:
        """At conditioned vectors (P, D) and their indices (P, Q), the tokens from number `first` on."""
        for level, vectors in enumerate(level_vectors(preprocessed, indices, self._codes)):
            self._latents[level].append(vectors[-first % self._every :: self._every].numpy().copy())
            chosen = indices[:, level]
            distances = (vectors - self._codes[level][chosen]).square().sum(dim=1).double()
            self._nearest[level].add(chosen.numpy(), distances.numpy(), first + np.arange(len(chosen)))


def level_vectors(preprocessed: Tensor, indices: Tensor, codes: list[Tensor]) -> list[Tensor]:
    """What each of the first levels chose its codes for (P, d), of conditioned vectors (P, D) and indices (P, Q).

    A group of dimensions has as many levels as there are indices for each group, and each quantizes what those before
    it left over.
    """
    width = codes[0].shape[1]
    groups = preprocessed.shape[1] // width
    depth = indices.shape[1] // groups
    found: list[Tensor] = []
    for level, own in enumerate(codes):
        part = preprocessed[:, level // depth * width :][:, :width]
        if level % depth:
            before = level - 1
            part = found[before] - codes[before][indices[:, before]]
        found.append(part)
        assert own.shape[1] == width
    return found


def _codes(quantizer: Quantizer) -> list[Tensor]:
    """The codes (K, D) of the first levels; none of codebooks too large to be drawn."""
    if max(quantizer.codebook_sizes) > _MOST_CODES:
        return []
    codes = quantizer.codes.detach().float().cpu()
    return list(codes[:LEVELS] if codes.ndim == 3 else codes[None])
