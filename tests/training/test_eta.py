"""Time left in a run, and time and memory of the k-means initialisation."""

import ctypes
import gc
import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training import tiny_settings, with_random_init
from vqtool.config import RunSettings, TrainingSettings
from vqtool.quantizers import ResidualQuantizer, VectorQuantizer
from vqtool.quantizers.kmeans import KMeansSpeed
from vqtool.runtime.memory import peak_memory
from vqtool.training import train
from vqtool.training.eta import Eta, InitEstimate, estimate_init_seconds, pending_inits, validations_after
from vqtool.training.setup import set_up


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def training(**settings: int) -> TrainingSettings:
    return TrainingSettings.model_validate({"steps": 100, "validate_every": 40, **settings})


def step(eta: Eta, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    eta.after_step()


def test_time_left_is_unknown_before_the_first_step(clock: Clock) -> None:
    assert Eta(training(), 5.0, clock).seconds(0) is None


def test_time_left_is_mean_step_time_times_remaining_steps(clock: Clock) -> None:
    eta = Eta(training(), clock=clock)
    for seconds in (9.0, 1.0, 3.0):
        step(eta, clock, seconds)
    assert eta.seconds(3) == 97 * 2.0  # the first step, which loads kernels, is dropped


def test_first_step_counts_while_it_is_the_only_one(clock: Clock) -> None:
    eta = Eta(training(), clock=clock)
    step(eta, clock, 9.0)
    assert eta.seconds(1) == 99 * 9.0


def test_time_left_includes_initialisation_until_done(clock: Clock) -> None:
    eta = Eta(training(), 50.0, clock)
    for _ in range(3):
        step(eta, clock, 1.0)
    assert eta.seconds(3) == 97 + 50
    clock.now += 70
    eta.after_init()
    assert eta.seconds(3) == 97


def test_initialisation_is_not_step_time_and_restarts_the_mean(clock: Clock) -> None:
    eta = Eta(training(), 50.0, clock)
    for _ in range(3):
        step(eta, clock, 1.0)
    clock.now += 70
    eta.after_init()
    for seconds in (8.0, 4.0, 2.0):
        step(eta, clock, seconds)
    assert eta.seconds(6) == 94 * 3.0


def test_validations_are_timed_separately_from_steps(clock: Clock) -> None:
    eta = Eta(training(), clock=clock)
    for _ in range(3):
        step(eta, clock, 1.0)
    clock.now += 10
    eta.after_validation()
    assert eta.seconds(40) == 60 + 2 * 10
    clock.now += 2
    eta.after_report()
    step(eta, clock, 1.0)
    assert eta.seconds(41) == 59 + 2 * 12


@pytest.mark.parametrize(
    ("steps", "step", "expected"), [(100, 0, 3), (100, 39, 3), (100, 40, 2), (100, 80, 1), (100, 100, 0), (80, 79, 1)]
)
def test_number_of_remaining_validations(steps: int, step: int, expected: int) -> None:
    assert validations_after(training(steps=steps), step) == expected


# K-means initialisation


def settings_with(folder: Path, quantizer: dict[str, Any], **training: Any) -> RunSettings:
    fields = tiny_settings(folder, **training).model_dump()
    fields["model"]["quantizer"] = quantizer
    return RunSettings.model_validate(fields)


def vector(latents_per_code: int) -> dict[str, Any]:
    return {"kind": "vector", "codebook_size": 8, "init": {"kind": "kmeans", "latents_per_code": latents_per_code}}


def residual(latents_per_code: int, **settings: Any) -> dict[str, Any]:
    return {"kind": "residual", "levels": 3, "quantizer": vector(latents_per_code), **settings}


@pytest.mark.parametrize(
    ("quantizer", "training"),
    [
        (vector(5), {"steps": 60, "validate_every": 50}),  # the sample is complete after three batches
        (vector(100), {"steps": 60, "validate_every": 50}),  # the deadline: a tenth of the run
        (vector(100), {"steps": 60, "validate_every": 4}),
        (vector(100), {"steps": 1, "validate_every": 4}),
        (residual(5), {"steps": 60, "validate_every": 50}),
        (residual(5, shared=True), {"steps": 60, "validate_every": 50}),
    ],
)
def test_estimated_sample_size_is_that_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: dict[str, Any], training: dict[str, int]
) -> None:
    sample_sizes: list[int] = []
    init_codes = VectorQuantizer.init_codes

    def record_size(quantizer: VectorQuantizer, preprocessed: Tensor) -> None:
        sample_sizes.append(len(preprocessed))
        init_codes(quantizer, preprocessed)

    monkeypatch.setattr(VectorQuantizer, "init_codes", record_size)
    settings = settings_with(tmp_path, quantizer, **training)
    (expected,) = pending_inits(set_up(settings))
    train(settings, tmp_path / "run")
    size = expected.sample_size
    assert sample_sizes == [size * (level + 1 if expected.shared else 1) for level in range(expected.levels)]


def test_each_group_of_a_product_quantizer_has_an_initialisation(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, {"kind": "product", "groups": 2, "quantizer": vector(5)})
    assert [tuple(init.codes.shape) for init in pending_inits(set_up(settings))] == [(8, 4)] * 2


def test_random_initialisation_has_no_estimate(tmp_path: Path) -> None:
    setup = set_up(with_random_init(tiny_settings(tmp_path)))
    assert pending_inits(setup) == []
    assert estimate_init_seconds(setup) == 0


def test_estimated_time_counts_all_passes_of_all_levels(tmp_path: Path) -> None:
    ticks = itertools.count()
    seconds = {
        name: estimate_init_seconds(
            set_up(settings_with(tmp_path, quantizer, steps=60, validate_every=50)), lambda: float(next(ticks))
        )
        for name, quantizer in (("separate", residual(5)), ("shared", residual(5, shared=True)), ("vector", vector(5)))
    }
    # The clock advances by 1 s per call, so assigning all 40 latents, or a round of seeding with them, takes 1 s. After
    # k-means latents are assigned once to count hits, and with several levels once more.
    speed = KMeansSpeed(1 / 40, 1 / 40)
    assert seconds["vector"] == pytest.approx(speed.seconds(40, 8, 8) + 1)
    assert seconds["separate"] == pytest.approx(3 * (speed.seconds(40, 8, 8) + 2))
    assert seconds["shared"] == pytest.approx(sum(speed.seconds(40 * level, 8, 8) + 2 * level for level in (1, 2, 3)))


def peak_growth(function: Callable[[], object]) -> int:
    """Return the bytes by which the memory of the process grows at most while `function` runs."""
    # Memory that is free but still held by the process, as after other tests, would hide growth.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _, before = peak_memory(lambda: None)
    _, peak = peak_memory(function)
    return peak - before


@pytest.mark.parametrize(("levels", "shared"), [(1, False), (2, False), (2, True)])
def test_allocated_memory_is_that_of_the_initialisation(
    levels: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A private limit, because samples large enough to measure would otherwise take a minute: one or two exchanges.
    kmeans_module = importlib.import_module("vqtool.quantizers.kmeans")  # its package has a function of this name
    monkeypatch.setattr(kmeans_module, "_MAX_EXCHANGE_FLOPS", 3 << 30)
    sample = torch.randn(1 << 13, 2048, generator=torch.Generator().manual_seed(0))
    quantizers = [VectorQuantizer(4, 2048)] * levels if shared else [VectorQuantizer(4, 2048) for _ in range(levels)]
    quantizer = ResidualQuantizer(quantizers) if levels > 1 else quantizers[0]
    actual = peak_growth(lambda: quantizer.init_codes(sample))
    allocated = peak_growth(InitEstimate(len(sample), quantizers[0].codes, levels, shared).allocate_memory)
    # The test itself already holds one sample.
    assert allocated - sample.nbytes == pytest.approx(actual, rel=0.25)
