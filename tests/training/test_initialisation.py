"""What is known of an initialisation beforehand, beside what it then is."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training import from_random, tiny
from vqtool.config import RunSettings
from vqtool.quantizers import ResidualQuantizer, VectorQuantizer, kmeans
from vqtool.quantizers.kmeans import KMeansSpeed
from vqtool.runtime.memory import peak_memory
from vqtool.training import train
from vqtool.training.initialisation import Initialisation, initialisation_seconds, initialisations
from vqtool.training.setup import set_up


def settings_of(folder: Path, quantizer: dict[str, Any], **training: Any) -> RunSettings:
    fields = tiny(folder, **training).model_dump()
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
        (vector(100), {"steps": 60, "validate_every": 50}),  # a tenth of the run
        (vector(100), {"steps": 60, "validate_every": 4}),
        (vector(100), {"steps": 1, "validate_every": 4}),
        (residual(5), {"steps": 60, "validate_every": 50}),
        (residual(5, shared=True), {"steps": 60, "validate_every": 50}),
    ],
)
def test_the_sample_is_as_large_as_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: dict[str, Any], training: dict[str, int]
) -> None:
    fitted: list[int] = []
    init_codes = VectorQuantizer.init_codes

    def watched(quantizer: VectorQuantizer, preprocessed: Tensor) -> None:
        fitted.append(len(preprocessed))
        init_codes(quantizer, preprocessed)

    monkeypatch.setattr(VectorQuantizer, "init_codes", watched)
    settings = settings_of(tmp_path, quantizer, **training)
    (expected,) = initialisations(set_up(settings))
    train(settings, tmp_path / "run")
    vectors = expected.vectors
    assert fitted == [vectors * (level + 1 if expected.shared else 1) for level in range(expected.levels)]


def test_each_group_of_a_product_is_initialised(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"kind": "product", "groups": 2, "quantizer": vector(5)})
    assert [tuple(each.codes.shape) for each in initialisations(set_up(settings))] == [(8, 4)] * 2


def test_without_k_means_there_is_none(tmp_path: Path) -> None:
    prepared = set_up(from_random(tiny(tmp_path)))
    assert initialisations(prepared) == []
    assert initialisation_seconds(prepared) == 0


def test_its_time_is_that_of_all_passes(tmp_path: Path) -> None:
    ticks = itertools.count()
    every = {
        name: initialisation_seconds(
            set_up(settings_of(tmp_path, quantizer, steps=60, validate_every=50)), lambda: float(next(ticks))
        )
        for name, quantizer in (("own", residual(5)), ("shared", residual(5, shared=True)), ("vector", vector(5)))
    }
    # The clock advances at every look: a second for the assignment, or a round of seeding, of all 40 latents. Codes
    # are assigned after k-means to count them, and those of several levels once more.
    speed = KMeansSpeed(1 / 40, 1 / 40)
    assert every["vector"] == pytest.approx(speed.seconds(40, 8, 8) + 1)
    assert every["own"] == pytest.approx(3 * (speed.seconds(40, 8, 8) + 2))
    assert every["shared"] == pytest.approx(sum(speed.seconds(40 * each, 8, 8) + 2 * each for each in (1, 2, 3)))


@pytest.mark.parametrize(("levels", "shared"), [(1, False), (2, False), (2, True)])
def test_the_memory_held_is_that_of_the_initialisation(
    levels: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kmeans.__globals__, "_EXCHANGE_LIMIT", 3 << 30)  # one or two exchanges do
    sample = torch.randn(1 << 13, 2048, generator=torch.Generator().manual_seed(0))
    depths = [VectorQuantizer(4, 2048)] * levels if shared else [VectorQuantizer(4, 2048) for _ in range(levels)]
    quantizer = ResidualQuantizer(depths) if levels > 1 else depths[0]
    _, before = peak_memory(lambda: None)
    _, actual = peak_memory(lambda: quantizer.init_codes(sample))
    _, held = peak_memory(Initialisation(len(sample), depths[0].codes, levels, shared).hold_memory)
    # Beside the sample, which this test holds anyway.
    assert held - sample.nbytes - before == pytest.approx(actual - before, rel=0.25)
