import importlib
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training import IDENTITY, logged_metrics, tiny_settings, with_random_init
from vqtool.config import RunSettings
from vqtool.errors import ConfigError, DataError
from vqtool.models.autoencoder import Autoencoder
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import dry_run, train
from vqtool.training.eta import InitEstimate


def test_result_agrees_with_data_and_settings(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((30, 1, 9, 8), dtype=np.float32)
    encoder = {"kind": "conv2d", "width": 8, "downsamples": 1, "res_blocks": 1}
    result = dry_run(tiny_settings(tmp_path, images, encoder=encoder, batch_size=16, steps=9), tmp_path / "run")
    assert (result.run_dir, result.exists, result.device) == (str(tmp_path / "run"), False, "cpu")
    assert (result.spec.layout, result.spec.row_shape, result.spec.dtype) == ("CHW", (1, 9, 8), "float32")
    assert result.normalize == "global"
    assert (result.training_samples, result.validation_samples) == (24, 6)
    assert (result.grid, result.codebook_sizes, result.codebook_dim) == ([5, 4], [8], 8)
    assert result.bits_per_sample == 20 * 3
    assert (result.steps, result.epochs) == (9, 9 * 16 / 24)


def test_parameters_and_memory(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, update={"kind": "codebook_loss"})
    result = dry_run(settings)
    # Two MLPs, 4 - 8 - 8 and 8 - 8 - 4, with a LayerNorm each; 8 codes of 8 dimensions.
    assert result.parameters == (4 * 8 + 8 + 16 + 8 * 8 + 8) + (8 * 8 + 8 + 16 + 8 * 4 + 4) + 64
    # A larger batch takes at least the activations that its layers keep: 64 numbers before and after three functions.
    wide, size = {"kind": "mlp", "width": 64, "layers": 3}, 1 << 16
    larger = dry_run(tiny_settings(tmp_path, encoder=wide, batch_size=size))
    assert larger.memory_bytes - result.memory_bytes > size * 64 * 4 * 6


@pytest.mark.parametrize("init", [with_random_init, lambda settings: settings], ids=["random", "kmeans"])
@pytest.mark.parametrize("update", ["ema", "codebook_loss"])
def test_first_loss_is_that_of_the_first_step(tmp_path: Path, update: str, init: Any) -> None:
    settings = init(tiny_settings(tmp_path, update={"kind": update}, steps=1))
    result = dry_run(settings, tmp_path / "run")
    train(settings, tmp_path / "run")
    assert math.isfinite(result.first_loss)
    assert result.first_loss == pytest.approx(logged_metrics(tmp_path / "run")[0]["loss/reconstruction"], rel=1e-6)


RESIDUAL = {"kind": "residual", "levels": 3, "quantizer": {"kind": "vector", "codebook_size": 32}}


@pytest.mark.parametrize(
    "quantizer", [None, RESIDUAL, {**RESIDUAL, "shared": True}], ids=["vector", "residual", "shared"]
)
def test_trial_steps_quantize_without_k_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: dict[str, Any] | None
) -> None:
    settings = tiny_settings(tmp_path)
    if quantizer:  # with more codes than a batch has latents
        fields = settings.model_dump()
        fields["model"]["quantizer"] = quantizer
        settings = RunSettings.model_validate(fields)
    needs_init, distinct_codes, seeded_sizes, allocated = [], [], [], []
    kmeans_module = importlib.import_module("vqtool.quantizers.kmeans")  # its package has a function of this name
    forward, kmeans_plus_plus = Autoencoder.forward, kmeans_module.kmeans_plus_plus

    def record_forward(model: Autoencoder, x: torch.Tensor) -> Any:
        if model.training:
            needs_init.append(model.quantizer.needs_init)
            learned_codes = [codes for codes in model.quantizer.learned_codes if codes is not None]
            distinct_codes.append([len(codes.unique(dim=0)) for codes in learned_codes])
        return forward(model, x)

    def record_seeding(vectors: torch.Tensor, codebook_size: int, *arguments: Any) -> torch.Tensor:
        seeded_sizes.append(codebook_size)
        return kmeans_plus_plus(vectors, codebook_size, *arguments)

    monkeypatch.setattr(Autoencoder, "forward", record_forward)
    monkeypatch.setattr(kmeans_module, "kmeans_plus_plus", record_seeding)
    monkeypatch.setattr(InitEstimate, "allocate_memory", lambda init: allocated.append(init))
    result = dry_run(settings)
    assert len(allocated) == 1
    assert needs_init[:3] == [True, False, False]
    assert distinct_codes[1] == result.codebook_sizes  # equal codes would make the search slower
    assert not seeded_sizes


def test_estimated_time_is_that_of_steps_validations_and_initialisation(tmp_path: Path) -> None:
    ticks = itertools.count()
    result = dry_run(
        tiny_settings(tmp_path, steps=50, validate_every=20, log_every=4), clock=lambda: float(next(ticks))
    )
    # The clock advances by 1 s per call. One step is timed: 3 s, and 1 s for its metrics, in every fourth step only.
    assert result.seconds_per_step == 3 + 1 / 4
    assert result.seconds_per_validation == 2  # one chunk, and one more for the shuffled loss
    assert result.seconds_of_initialisation > 0
    assert result.seconds == 50 * result.seconds_per_step + 3 * 2 + result.seconds_of_initialisation
    assert dry_run(with_random_init(tiny_settings(tmp_path))).seconds_of_initialisation == 0


@pytest.mark.parametrize("update", ["ema", "codebook_loss", "entropy_only"])
def test_identity_encoder(tmp_path: Path, update: str) -> None:
    settings = tiny_settings(tmp_path, encoder=IDENTITY, update={"kind": update}, loss={"entropy": 0.1})
    result = dry_run(settings)
    assert result.grid == [1]
    assert result.parameters == (0 if update == "ema" else 8 * 4)


def test_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_settings(tmp_path)
    monkeypatch.chdir(tmp_path)
    dry_run(settings, tmp_path / "run")
    dry_run(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["data.npy"]


def test_existing_run_is_reported_and_unchanged(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, steps=1)
    train(settings, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert dry_run(settings, tmp_path / "run").exists
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_default_run_directory_is_named_after_the_run(tmp_path: Path) -> None:
    assert dry_run(tiny_settings(tmp_path)).run_dir == str(Path("runs") / "tiny")


def test_dry_run_does_not_affect_training(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path), tmp_path / "alone")
    dry_run(tiny_settings(tmp_path), tmp_path / "after")
    train(tiny_settings(tmp_path), tmp_path / "after")
    assert RunDirectory(tmp_path / "after").model.read_bytes() == RunDirectory(tmp_path / "alone").model.read_bytes()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"encoder": {"kind": "conv2d"}}, ConfigError, r"model\.encoder\.kind: conv2d"),
        (
            {"loss": {"reconstruction": "cross_entropy"}},
            ConfigError,
            r"loss\.reconstruction: cross_entropy",
        ),
        ({"data": {"layout": "CHW"}}, DataError, r"data\.layout: CHW .*\(4,\)"),
        ({"data": {"channels": 5}}, DataError, r"data\.channels .*5.*4"),
        ({"array": np.full((9, 4), np.nan)}, DataError, r"data\.npy: row 0 .*NaN"),
    ],
)
def test_dry_run_raises_the_errors_of_training(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    for use in (dry_run, train):
        with pytest.raises(error, match=message):
            use(tiny_settings(tmp_path, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
