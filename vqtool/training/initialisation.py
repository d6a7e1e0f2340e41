"""The initialisation of the codebooks, seen from before: when it comes, how long it takes and how much memory.

Shapes: S vectors of the sample, K codes, D dimensions, Q levels.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vqtool.config import TrainingSettings
from vqtool.quantizers import ResidualQuantizer, VectorQuantizer
from vqtool.quantizers.kmeans import KMeansSpeed, hold_memory
from vqtool.runtime.memory import check_fits_memory
from vqtool.training.setup import TrainingSetup

# Fraction of a run after which codebooks are initialised, however small the sample is.
LONGEST_WAIT = 0.1
# Copies of the sample that k-means holds beside the sample itself, at most.
_COPIES = 4


class Initialisation(NamedTuple):
    """The initialisation of a codebook, or of all levels of a residual quantizer."""

    vectors: int
    """S"""
    codes: Tensor
    """(K, D) of the first level, as they are before."""
    levels: int
    """Q"""
    shared: bool
    """Whether all levels have one codebook, which is fitted again for each level, to one more sample every time."""

    def seconds(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """Estimate how long it takes at most."""
        speed = KMeansSpeed.measure(self.vectors, self.codes, clock)
        beside = 2 if self.levels > 1 else 1  # the fitted codes are assigned to count them, and for the next level
        samples = range(1, self.levels + 1) if self.shared else [1] * self.levels
        vectors = [each * self.vectors for each in samples]
        return sum(speed.seconds(each, *self.codes.shape) + beside * each * speed.assignment for each in vectors)

    def hold_memory(self) -> None:
        """Hold, for a moment, the memory that it takes.

        Raises:
            DataError: there is too little.
        """
        (clusters, dim), device = self.codes.shape, self.codes.device
        samples = self.levels if self.shared else 1
        if device.type == "cpu":
            elements = (self.levels + (1 + _COPIES) * samples) * self.vectors * dim
            check_fits_memory(4 * elements, "model.quantizer.init: k-means", "lower latents_per_code")
        remainders = torch.ones(self.levels, self.vectors, dim, device=device)
        hold_memory(remainders.flatten(0, 1).clone() if self.shared else remainders[-1], clusters)


def initialisations(prepared: TrainingSetup) -> list[Initialisation]:
    """The initialisations that are still to come, in order."""
    found = []
    tokens = math.prod(prepared.model.grid(prepared.dataset.spec.size)) * prepared.settings.training.batch_size
    for module in prepared.model.quantizer.modules():
        if (
            isinstance(module, VectorQuantizer | ResidualQuantizer)
            and module.initializer
            and module.initializer.pending
        ):
            (codes, *_), needed = module.learned_codes, module.initializer.needed
            assert codes is not None
            steps = min(-(-needed // tokens), latest_step(prepared.settings.training))
            levels = len(module.codebook_sizes)
            shared = isinstance(module, ResidualQuantizer) and len(module.levels) < levels
            found.append(Initialisation(min(needed, steps * tokens), codes.detach(), levels, shared))
    return found


def initialisation_seconds(prepared: TrainingSetup, clock: Callable[[], float] = time.perf_counter) -> float:
    """Estimate how long all initialisations that are still to come take at most."""
    timed: dict[tuple[int, ...], float] = {}  # groups of a product quantizer are alike
    total = 0.0
    for each in initialisations(prepared):
        sizes = (each.vectors, *each.codes.shape, each.levels)
        if sizes not in timed:
            timed[sizes] = each.seconds(clock)
        total += timed[sizes]
    return total


def latest_step(training: TrainingSettings) -> int:
    """The step after which codebooks are initialised at the latest: a model to validate must quantize."""
    return min(math.ceil(training.steps * LONGEST_WAIT), training.validate_every, training.steps)
