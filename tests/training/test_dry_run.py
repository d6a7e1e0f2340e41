import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training import IDENTITY, from_random, logged, tiny
from vqtool.config import RunSettings
from vqtool.errors import ConfigError, DataError
from vqtool.quantizers import kmeans
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import dry_run, train
from vqtool.training.initialisation import Initialisation
from vqtool.training.step import Stepper


def test_it_agrees_with_data_and_settings(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((30, 1, 9, 8), dtype=np.float32)
    encoder = {"kind": "conv2d", "width": 8, "downsamples": 1, "res_blocks": 1}
    plan = dry_run(tiny(tmp_path, images, encoder=encoder, batch_size=16, steps=9), tmp_path / "run")
    assert (plan.run_dir, plan.exists, plan.device) == (str(tmp_path / "run"), False, "cpu")
    assert (plan.spec.layout, plan.spec.row_shape, plan.spec.dtype) == ("CHW", (1, 9, 8), "float32")
    assert plan.normalize == "global"
    assert (plan.training_samples, plan.validation_samples) == (24, 6)
    assert (plan.grid, plan.codebook_sizes, plan.codebook_dim) == ([5, 4], [8], 8)
    assert plan.bits_per_sample == 20 * 3
    assert (plan.steps, plan.epochs) == (9, 9 * 16 / 24)


def test_it_counts_parameters_and_memory(tmp_path: Path) -> None:
    settings = tiny(tmp_path, learning={"kind": "codebook_loss"})
    plan = dry_run(settings)
    # Two perceptrons 4 - 8 - 8 and 8 - 8 - 4 with a LayerNorm each, and 8 codes of 8.
    assert plan.parameters == (4 * 8 + 8 + 16 + 8 * 8 + 8) + (8 * 8 + 8 + 16 + 8 * 4 + 4) + 64
    # A wider batch holds at least what its layers keep of it: 64 numbers before, and 64 after, three functions.
    wide, size = {"kind": "mlp", "width": 64, "layers": 3}, 1 << 16
    larger = dry_run(tiny(tmp_path, encoder=wide, batch_size=size))
    assert larger.memory_bytes - plan.memory_bytes > size * 64 * 4 * 6


@pytest.mark.parametrize("init", [from_random, lambda settings: settings], ids=["random", "kmeans"])
@pytest.mark.parametrize("learning", ["ema", "codebook_loss"])
def test_its_first_loss_is_that_of_the_first_step(tmp_path: Path, learning: str, init: Any) -> None:
    settings = init(tiny(tmp_path, learning={"kind": learning}, steps=1))
    plan = dry_run(settings, tmp_path / "run")
    train(settings, tmp_path / "run")
    assert math.isfinite(plan.first_loss)
    assert plan.first_loss == pytest.approx(logged(tmp_path / "run")[0]["loss/reconstruction"], rel=1e-6)


RESIDUAL = {"kind": "residual", "levels": 3, "quantizer": {"kind": "vector", "codebook_size": 32}}


@pytest.mark.parametrize("quantizer", [None, RESIDUAL, {**RESIDUAL, "shared": True}], ids=["vector", "own", "shared"])
def test_it_rehearses_steps_that_quantize_without_k_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: dict[str, Any] | None
) -> None:
    settings = tiny(tmp_path)
    if quantizer:  # of more codes than a batch has latents
        fields = settings.model_dump()
        fields["model"]["quantizer"] = quantizer
        settings = RunSettings.model_validate(fields)
    waiting, distinct, seeded, held = [], [], [], []
    forward, seeds = Stepper.forward, kmeans.__globals__["seeds"]

    def watched(stepper: Stepper, x: torch.Tensor) -> Any:
        model = stepper._model
        waiting.append(model.quantizer.needs_init)
        distinct.append([len(codes.unique(dim=0)) for codes in model.quantizer.learned_codes if codes is not None])
        return forward(stepper, x)

    def counted(vectors: torch.Tensor, clusters: int, *arguments: Any) -> torch.Tensor:
        seeded.append(clusters)
        return seeds(vectors, clusters, *arguments)

    monkeypatch.setattr(Stepper, "forward", watched)
    monkeypatch.setitem(kmeans.__globals__, "seeds", counted)
    monkeypatch.setattr(Initialisation, "hold_memory", lambda each: held.append(each))
    plan = dry_run(settings)
    assert len(held) == 1
    assert waiting[:3] == [True, False, False]
    assert distinct[1] == plan.codebook_sizes  # equal codes would make the search slow
    assert not seeded


def test_its_time_is_that_of_steps_validations_and_initialisation(tmp_path: Path) -> None:
    ticks = itertools.count()
    plan = dry_run(tiny(tmp_path, steps=50, validate_every=20, log_every=4), clock=lambda: float(next(ticks)))
    # With a clock that advances at every look: one step, of which a quarter measures, and the check of its time.
    assert plan.seconds_per_step == 3 + 1 / 4
    assert plan.seconds_per_validation == 2  # one chunk, and another for the shuffled indices
    assert plan.seconds_of_initialisation > 0
    assert plan.seconds == 50 * plan.seconds_per_step + 3 * 2 + plan.seconds_of_initialisation
    assert dry_run(from_random(tiny(tmp_path))).seconds_of_initialisation == 0


@pytest.mark.parametrize("learning", ["ema", "codebook_loss", "entropy_only"])
def test_it_plans_without_a_network_too(tmp_path: Path, learning: str) -> None:
    settings = tiny(tmp_path, encoder=IDENTITY, learning={"kind": learning}, loss={"entropy": 0.1})
    plan = dry_run(settings)
    assert plan.grid == [1]
    assert plan.parameters == (0 if learning == "ema" else 8 * 4)


def test_it_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny(tmp_path)
    monkeypatch.chdir(tmp_path)
    dry_run(settings, tmp_path / "run")
    dry_run(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["data.npy"]


def test_it_sees_a_run_that_is_there_and_leaves_it(tmp_path: Path) -> None:
    settings = tiny(tmp_path, steps=1)
    train(settings, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert dry_run(settings, tmp_path / "run").exists
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_left_out_the_folder_is_named_after_the_run(tmp_path: Path) -> None:
    assert dry_run(tiny(tmp_path)).run_dir == str(Path("runs") / "tiny")


def test_planning_does_not_change_what_is_trained(tmp_path: Path) -> None:
    train(tiny(tmp_path), tmp_path / "alone")
    dry_run(tiny(tmp_path), tmp_path / "planned")
    train(tiny(tmp_path), tmp_path / "planned")
    assert RunDirectory(tmp_path / "planned").model.read_bytes() == RunDirectory(tmp_path / "alone").model.read_bytes()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"encoder": {"kind": "conv2d"}}, ConfigError, r"model\.encoder\.kind: conv2d takes images"),
        (
            {"loss": {"reconstruction": "cross_entropy"}},
            ConfigError,
            r"loss\.reconstruction: cross_entropy .* continuous values",
        ),
        ({"data": {"layout": "CHW"}}, DataError, r"data\.layout: CHW .* 3 axes.*\(4,\)"),
        ({"data": {"channels": 5}}, DataError, r"data\.channels is 5, but the array has 4"),
        ({"array": np.full((9, 4), np.nan)}, DataError, r"data\.npy: row 0 contains NaN"),
    ],
)
def test_it_refuses_what_training_would(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    for use in (dry_run, train):
        with pytest.raises(error, match=message):
            use(tiny(tmp_path, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
