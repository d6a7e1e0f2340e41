"""Estimates of time and memory: time left in a run, and the cost of initialising codebooks by k-means.

Shapes: S latents of the k-means sample, K codes, D code dimension, Q levels.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vqtool.config import TrainingSettings
from vqtool.quantizers import ResidualQuantizer, VectorQuantizer
from vqtool.quantizers.kmeans import KMeansSpeed, allocate_kmeans_memory
from vqtool.runtime.memory import check_fits_memory
from vqtool.training.setup import TrainingSetup

# Returns seconds since an arbitrary moment.
Clock = Callable[[], float]
# Codebooks are initialised after this fraction of the run, even if the sample is still incomplete.
INIT_DEADLINE_FRACTION = 0.1
# Maximum number of copies of the sample that k-means holds, beside the sample itself.
_KMEANS_SAMPLE_COPIES = 4


class Eta:
    """Estimates the time left in a run from the mean time of its steps and validations so far.

    Each `after_...` method measures the time since the previous call of any of them. The time per step therefore
    includes neither the initialisation, whose time is dropped, nor validations. Validations count as 0 seconds until
    the first one.

    Args:
        training: gives the total number of steps and of validations.
        init_seconds: estimated time of an initialisation of codebooks that is still to come; 0 if there is none.
        clock: returns seconds since an arbitrary moment.
    """

    def __init__(self, training: TrainingSettings, init_seconds: float = 0.0, clock: Clock = time.perf_counter) -> None:
        self._training = training
        self._init_seconds = init_seconds
        self._clock = clock
        self._last_call = clock()
        self._steps, self._step_seconds = 0, 0.0
        self._validations, self._validation_seconds = 0, 0.0
        self._steps_in_phase = 0  # steps since the start, or since the initialisation

    def after_step(self) -> None:
        """Count a step, and the time since the previous call as its duration."""
        if self._steps_in_phase < 2:  # the first step of a phase loads kernels: dropped once there is a second one
            self._steps, self._step_seconds = 0, 0.0
        self._steps_in_phase += 1
        self._steps += 1
        self._step_seconds += self._elapsed()

    def after_init(self) -> None:
        """Count the initialisation as done. Steps before it did not quantize, so they no longer count."""
        self._elapsed()
        self._init_seconds = 0.0
        self._steps_in_phase = 0

    def after_validation(self) -> None:
        """Count a validation, and the time since the previous call as its duration."""
        self._validations += 1
        self._validation_seconds += self._elapsed()

    def after_report(self) -> None:
        """Add the time since `after_validation` to that validation: logging, diagnosis, writing the model."""
        self._validation_seconds += self._elapsed()

    def seconds(self, step: int) -> float | None:
        """Return the estimated seconds left after `step` steps; None before the first step of this process."""
        if not self._steps:
            return None
        seconds_per_step = self._step_seconds / self._steps
        seconds_per_validation = self._validation_seconds / max(1, self._validations)
        return (
            self._init_seconds
            + (self._training.steps - step) * seconds_per_step
            + validations_after(self._training, step) * seconds_per_validation
        )

    def _elapsed(self) -> float:
        """Return the seconds since the previous call."""
        previous, self._last_call = self._last_call, self._clock()
        return self._last_call - previous


def validations_after(training: TrainingSettings, step: int) -> int:
    """Return the number of validations that follow after `step` steps; the last step always has one."""
    if step >= training.steps:
        return 0
    regular = training.steps // training.validate_every - step // training.validate_every
    return regular + (training.steps % training.validate_every != 0)


class InitEstimate(NamedTuple):
    """Cost of initialising one codebook, or all levels of a residual quantizer, by k-means."""

    sample_size: int
    """S, number of latents in the sample when k-means runs."""
    codes: Tensor
    """(K, D) codes of the first level, not initialised."""
    levels: int
    """Q"""
    shared: bool
    """Whether all levels share one codebook. Level q (from 1) is then fitted to the q·S vectors of levels 1 to q."""

    def seconds(self, clock: Clock = time.perf_counter) -> float:
        """Return an upper estimate of the seconds that the initialisation of all levels takes.

        The speed of k-means is measured first, on the device of `codes`.
        """
        speed = KMeansSpeed.measure(self.sample_size, self.codes, clock)
        # After k-means the sample is assigned to count hits; with several levels, again to compute the residual.
        assignments = 2 if self.levels > 1 else 1
        sample_sizes = [(level + 1 if self.shared else 1) * self.sample_size for level in range(self.levels)]
        return sum(
            speed.seconds(size, *self.codes.shape) + assignments * size * speed.assignment for size in sample_sizes
        )

    def allocate_memory(self) -> None:
        """Allocate as much memory as the initialisation takes, and free it.

        Raises:
            DataError: on a CPU, too little memory is free.
            torch.OutOfMemoryError: on a GPU.
        """
        (codebook_size, dim), device = self.codes.shape, self.codes.device
        samples = self.levels if self.shared else 1
        if device.type == "cpu":
            elements = (self.levels + (1 + _KMEANS_SAMPLE_COPIES) * samples) * self.sample_size * dim
            check_fits_memory(4 * elements, "model.quantizer.init: k-means", "lower latents_per_code")
        residuals = torch.ones(self.levels, self.sample_size, dim, device=device)
        allocate_kmeans_memory(residuals.flatten(0, 1).clone() if self.shared else residuals[-1], codebook_size)


def pending_inits(setup: TrainingSetup) -> list[InitEstimate]:
    """Return the cost of each k-means initialisation still to come: one per codebook, or per residual quantizer."""
    inits = []
    training, quantizer = setup.settings.training, setup.model.quantizer
    tokens_per_batch = math.prod(setup.model.grid(setup.dataset.spec.size)) * training.batch_size
    for module in quantizer.modules():
        if (
            isinstance(module, VectorQuantizer | ResidualQuantizer)
            and module.initializer
            and module.initializer.needs_init
        ):
            (codes, *_), complete_size = module.learned_codes, module.initializer.sample_size
            assert codes is not None
            steps = min(-(-complete_size // tokens_per_batch), latest_init_step(training))
            levels = len(module.codebook_sizes)
            shared = isinstance(module, ResidualQuantizer) and len(module.levels) < levels
            inits.append(InitEstimate(min(complete_size, steps * tokens_per_batch), codes.detach(), levels, shared))
    return inits


def estimate_init_seconds(setup: TrainingSetup, clock: Clock = time.perf_counter) -> float:
    """Measure the speed of k-means, and return an upper estimate of the seconds of all pending initialisations."""
    seconds_by_size: dict[tuple[int, ...], float] = {}  # the groups of a product quantizer have one size
    total = 0.0
    for init in pending_inits(setup):
        size = (init.sample_size, *init.codes.shape, init.levels)
        if size not in seconds_by_size:
            seconds_by_size[size] = init.seconds(clock)
        total += seconds_by_size[size]
    return total


def latest_init_step(training: TrainingSettings) -> int:
    """Return the number of steps after which codebooks are initialised at the latest.

    `INIT_DEADLINE_FRACTION` of the run, but no later than the first validation.
    """
    return min(math.ceil(training.steps * INIT_DEADLINE_FRACTION), training.validate_every, training.steps)
