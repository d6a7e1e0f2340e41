"""K-means initialisation: training before it, the step in which it runs, resuming, and settings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.quantizers import assert_same_state, state
from tests.training import (
    CODEBOOK_LOSS,
    IDENTITY,
    MLP,
    assert_equal_states,
    logged_metrics,
    read_checkpoint,
    reproducible_log,
    stop_in_step,
    tiny_settings,
)
from vqtool.config import RunSettings
from vqtool.errors import Stopped
from vqtool.quantizers import CodebookLossUpdate, EmaUpdate, VectorQuantizer, VectorQuantizerSettings, kmeans
from vqtool.quantizers.codebook_update import SimVQUpdate
from vqtool.quantizers.dead_codes import DeadCodeResetSettings
from vqtool.quantizers.initialization import KMeansInit, KMeansInitSettings, RandomInitSettings
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train

K, D, SAMPLE_SIZE = 5, 3, 20
UPDATES = [EmaUpdate(), CodebookLossUpdate(), SimVQUpdate()]


def quantizer(update=None, **options):
    torch.manual_seed(0)
    update = update or EmaUpdate()
    return VectorQuantizer(
        K, D, update=update, init=KMeansInitSettings(latents_per_code=SAMPLE_SIZE // K), **options
    ).train()


def vectors(n, seed=1, dtype=torch.float32):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def step(model, batch):
    output = model(batch)
    model.update()
    return output


def kmeans_codes(sample):
    return kmeans(sample, K, torch.Generator().manual_seed(0))


# Before the initialisation


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_before_init_vectors_pass_unquantized_with_zero_losses(update, gradient):
    model, z = quantizer(update, gradient_estimator=gradient, sample_entropy_weight=0.5), vectors(8).requires_grad_()
    output = model(z)
    assert torch.equal(output.quantized, z)
    assert torch.equal(output.indices, model.encode(z))
    slopes = vectors(8, seed=2)
    assert torch.equal(torch.autograd.grad(output.quantized, z, slopes)[0], slopes)
    for loss in (output.commitment_loss, output.entropy_loss):
        assert float(loss) == 0
        assert loss.shape == ()
        assert not loss.requires_grad


def test_before_init_vectors_keep_shape_and_dtype():
    z = vectors(24, dtype=torch.bfloat16).reshape(4, 6, D)
    output = quantizer()(z)
    assert output.quantized.dtype == torch.bfloat16
    assert torch.equal(output.quantized, z)
    assert output.indices.shape == (4, 6)
    assert output.commitment_loss.dtype == torch.float32


def test_in_evaluation_codes_quantize_before_init():
    model, z = quantizer().eval(), vectors(30)
    output = model(z)
    torch.testing.assert_close(output.quantized, model.codes[output.indices])
    assert float(output.commitment_loss) > 0
    model.update()
    assert len(model.initializer.sample) == 0


def test_before_init_updates_change_only_the_sample():
    model = quantizer(temperature_unit="quantization_error", dead_code_reset=DeadCodeResetSettings(window_hits=1))
    before = state(model)
    for seed in range(2):
        step(model, vectors(8, seed))
    after = state(model)
    assert after.pop("initializer.sample").shape == (16, D)
    before.pop("initializer.sample")
    assert_same_state(after, before)


def test_before_init_forward_changes_no_state():
    model = quantizer()
    before = state(model)
    model(vectors(50))
    assert_same_state(state(model), before)


# The initialisation


def test_codes_are_initialised_when_the_sample_is_complete():
    model, z = quantizer(EmaUpdate(decay=0.9)), vectors(SAMPLE_SIZE)
    for first in (0, 8):
        step(model, z[first : first + 8])
        assert not model.initializer.done
        assert torch.equal(model.initializer.sample, z[: first + 8])
    step(model, z[16:19])
    assert not model.initializer.done
    last = step(model, z[19:])
    assert torch.equal(last.quantized, z[19:])
    assert model.initializer.done
    assert model.initializer.sample.shape == (0, D)
    assert torch.equal(model.codes, kmeans_codes(z))
    counts = torch.bincount(model.encode(z), minlength=K)
    rate = (1 - torch.exp(-counts / 15)).clamp_max(0.1)
    torch.testing.assert_close(model.codebook.counts, rate * counts)
    torch.testing.assert_close(model.codebook.sums, (rate * counts)[:, None] * model.codes)


def test_after_init_codes_quantize_and_are_updated():
    model = quantizer(EmaUpdate(decay=0.5))
    step(model, vectors(SAMPLE_SIZE))
    before, z = state(model), vectors(8, seed=2)
    output = step(model, z)
    codes = before["codebook.weight"]
    torch.testing.assert_close(output.quantized, codes[output.indices])
    torch.testing.assert_close(output.commitment_loss, (z - codes[output.indices]).square().mean())
    assert float(output.entropy_loss) < 0
    assert not torch.equal(model.codes, codes)
    assert len(model.initializer.sample) == 0


def test_init_uses_the_last_vectors_of_the_sample():
    model, z = quantizer(), vectors(24)
    for first in (0, 8, 16):
        step(model, z[first : first + 8])
    assert torch.equal(model.codes, kmeans_codes(z[4:]))


def test_all_batches_before_an_update_join_the_sample_in_order():
    model, z = quantizer(), vectors(SAMPLE_SIZE)
    for first in (0, 8, 16):
        model(z[first : first + 8])
    assert len(model.initializer.sample) == 0
    model.update()
    assert torch.equal(model.codes, kmeans_codes(z))


@pytest.mark.parametrize("update", UPDATES)
def test_initial_codes_are_the_same_for_every_update(update):
    model, z = quantizer(update), vectors(SAMPLE_SIZE)
    step(model, z)
    assert torch.equal(model.codes, kmeans_codes(z))


def test_cosine_codes_are_initialised_from_unit_vectors():
    model, z = quantizer(metric="cosine"), vectors(SAMPLE_SIZE)
    step(model, z)
    unit = torch.nn.functional.normalize(z, dim=-1)
    torch.testing.assert_close(model.codebook.weight, kmeans_codes(unit))
    torch.testing.assert_close(model.codes.norm(dim=1), torch.ones(K))


def test_init_sets_the_error_scale():
    model, z = quantizer(temperature_unit="quantization_error"), vectors(SAMPLE_SIZE)
    step(model, z)
    error = (z - model.codes[model.encode(z)]).square().mean()
    torch.testing.assert_close(model.error_scale(), error)


def test_run_init_uses_an_incomplete_sample():
    model, z = quantizer(), vectors(16)
    step(model, z[:8])
    step(model, z[8:])
    model.run_init()
    assert model.initializer.done
    assert torch.equal(model.codes, kmeans_codes(z))
    before = state(model)
    model.run_init()
    assert_same_state(state(model), before)


def test_run_init_with_fewer_vectors_than_codes():
    model, z = quantizer(), vectors(2)
    step(model, z)
    model.run_init()
    output = step(model, z)
    torch.testing.assert_close(output.quantized, z)
    assert float(output.commitment_loss) == pytest.approx(0, abs=1e-12)
    assert all(tensor.isfinite().all() for tensor in state(model).values())


def test_run_init_without_a_sample_has_no_effect():
    model = quantizer()
    before = state(model)
    model.run_init()
    assert_same_state(state(model), before)
    assert torch.equal(model(vectors(8)).quantized, vectors(8))


def test_discarded_batches_are_not_in_the_sample():
    model, z = quantizer(), vectors(SAMPLE_SIZE)
    step(model, z[:10])
    model(torch.full((30, D), torch.nan))
    model.discard()
    model.update()
    assert torch.equal(model.initializer.sample, z[:10])
    step(model, z[10:])
    assert torch.equal(model.codes, kmeans_codes(z))


class Recorder(torch.nn.Module):
    """Stand-in for a quantizer that contains the initializer: records the size of the sample."""

    def __init__(self, initializer):
        super().__init__()
        self.initializer = initializer
        self.sizes = []

    def init_codes(self, sample):
        self.sizes.append(len(sample))


@pytest.mark.parametrize(
    ("codebook_size", "latents_per_code", "expected"),
    [
        (10, None, 8192),  # 64 per code would be 640
        (128, None, 8192),
        (129, None, 8256),
        (1000, None, 64_000),
        (1025, None, 1 << 16),  # 64 per code would be 65,600
        (100_000, None, 400_000),  # 4 per code are more than 2^16
        (10, 20, 200),
        (10_000, 20, 200_000),
        (100_000, 1, 100_000),
    ],
)
def test_default_sample_size(codebook_size, latents_per_code, expected):
    initializer = KMeansInit(codebook_size, 1, latents_per_code)
    recorder = Recorder(initializer)
    initializer.accumulate(torch.zeros(expected - 1, 1))
    initializer.apply_update()
    initializer.run(recorder, only_if_complete=True)
    assert (recorder.sizes, initializer.needs_init) == ([], True)
    initializer.accumulate(torch.zeros(3, 1))
    initializer.apply_update()
    initializer.run(recorder, only_if_complete=True)
    assert (recorder.sizes, initializer.needs_init) == ([expected], False)


# State dict


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_init_continues_after_loading_the_state_dict(steps):
    one, batches = quantizer(), [vectors(8, seed) for seed in range(5)]  # complete after the third
    for batch in batches[:steps]:
        step(one, batch)
    other = quantizer()
    with torch.no_grad():
        other.codebook.weight.normal_()
    other.load_state_dict(state(one))
    assert_same_state(state(other), state(one))
    assert other.initializer.needs_init == (steps < 3)
    for batch in batches[steps:]:
        outputs = step(one, batch), step(other, batch)
        for actual, expected in zip(*outputs, strict=True):
            assert torch.equal(actual, expected)
        assert_same_state(state(other), state(one))
    assert other.initializer.done


def test_loaded_initialised_codes_are_not_initialised_again():
    one = quantizer()
    step(one, vectors(SAMPLE_SIZE))
    other = quantizer()
    step(other, vectors(8, seed=3))  # with an incomplete sample
    other.load_state_dict(state(one))
    z = vectors(SAMPLE_SIZE, seed=4)
    output = step(other, z)
    torch.testing.assert_close(output.quantized, one.codes[output.indices])
    before = other.codes.clone()
    other.run_init()
    assert torch.equal(other.codes, before)
    assert len(other.initializer.sample) == 0


def test_an_initialised_module_can_load_a_state_before_init():
    one, other = quantizer(), quantizer()
    step(one, vectors(8))
    step(other, vectors(SAMPLE_SIZE, seed=3))
    other.load_state_dict(state(one))
    rest = vectors(12, seed=4)
    step(other, rest)
    assert torch.equal(other.codes, kmeans_codes(torch.cat([vectors(8), rest])))


# In training


@pytest.fixture
def no_latest_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift the limit of a tenth of the run, so that a sample that is complete in step 5 needs no run of 50 steps."""
    monkeypatch.setattr("vqtool.training.trainer.INIT_DEADLINE_FRACTION", 1.0)


def with_kmeans_init(settings: RunSettings, vectors: int) -> RunSettings:
    """The settings with k-means initialisation from `vectors` latents per code."""
    quantizer = settings.model.quantizer.model_copy(update={"init": KMeansInitSettings(latents_per_code=vectors)})
    return settings.model_copy(update={"model": settings.model.model_copy(update={"quantizer": quantizer})})


def sample_sizes(folder: Path, steps: int) -> list[tuple[bool, int]]:
    """(whether codes are initialised, size of the sample) in the checkpoint of each step."""
    models = [read_checkpoint(folder, step)["model"] for step in range(1, steps + 1)]
    return [(bool(model["quantizer.initializer.done"]), len(model["quantizer.initializer.sample"])) for model in models]


@pytest.mark.usefixtures("no_latest_step")
@pytest.mark.parametrize(
    ("encoder", "update", "step"),
    [
        (MLP, {"kind": "ema"}, 2),
        (MLP, CODEBOOK_LOSS, 4),
        (IDENTITY, {"kind": "ema"}, 5),
        (IDENTITY, CODEBOOK_LOSS, 3),
        (MLP, {"kind": "simvq"}, 6),
    ],
    ids=lambda value: value.get("kind", "") if isinstance(value, dict) else str(value),
)
def test_resume_around_the_init_step_is_byte_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: dict[str, Any], update: dict[str, Any], step: int
) -> None:
    often = {"validate_every": 100, "checkpoint_every": 1, "keep_checkpoints": 9}
    # 8 codes with 10 latents each, in batches of 16: the sample is complete in step 5.
    settings = with_kmeans_init(tiny_settings(tmp_path, encoder=encoder, update=update, **often), vectors=10)
    train(settings, tmp_path / "straight")
    expected = [(False, 16), (False, 32), (False, 48), (False, 64), (True, 0), (True, 0), (True, 0), (True, 0)]
    assert sample_sizes(tmp_path / "straight", 8) == expected
    with monkeypatch.context() as patch:
        stop_in_step(patch, step)
        with pytest.raises(Stopped):
            train(settings, tmp_path / "resumed")
    train(settings, tmp_path / "resumed", resume=True)
    assert (
        RunDirectory(tmp_path / "resumed").model.read_bytes() == RunDirectory(tmp_path / "straight").model.read_bytes()
    )
    states = [read_checkpoint(tmp_path / name, 8) for name in ("resumed", "straight")]
    for name in ("model", "optimizer", "last_validation", "step"):
        assert_equal_states(states[0][name], states[1][name])
    assert reproducible_log(tmp_path / "resumed") == reproducible_log(tmp_path / "straight")


@pytest.mark.usefixtures("no_latest_step")
def test_before_init_a_run_trains_a_plain_autoencoder(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, update=CODEBOOK_LOSS, loss={"entropy": 0.1}, validate_every=100)
    train(with_kmeans_init(settings, vectors=10), tmp_path / "run")
    lines = logged_metrics(tmp_path / "run")
    for line in lines[:5]:
        assert line["loss/total"] == line["loss/reconstruction"]
        assert not {"loss/commitment", "loss/entropy"} & line.keys()
    for line in lines[5:]:
        assert line["loss/total"] != line["loss/reconstruction"]
        assert {"loss/commitment", "loss/entropy"} <= line.keys()


@pytest.mark.parametrize(("steps", "first"), [(20, 2), (21, 3), (9, 1), (60, 5)])  # complete in step 5
def test_codes_are_initialised_within_a_tenth_of_the_run(tmp_path: Path, steps: int, first: int) -> None:
    settings = tiny_settings(tmp_path, steps=steps, validate_every=100, checkpoint_every=1, keep_checkpoints=99)
    log: list[str] = []
    train(with_kmeans_init(settings, vectors=10), tmp_path / "run", log=log.append)
    assert sample_sizes(tmp_path / "run", first) == [*((False, 16 * step) for step in range(1, first)), (True, 0)]
    assert [line.partition(":")[0] for line in log if "initialised by k-means" in line] == [f"step {first}"]
    assert ["loss/commitment" in line for line in logged_metrics(tmp_path / "run")[: first + 1]] == [False] * first + [
        True
    ]


@pytest.mark.usefixtures("no_latest_step")
def test_a_validation_initialises_the_codes_from_an_incomplete_sample(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, validate_every=2, checkpoint_every=1, keep_checkpoints=9)
    train(with_kmeans_init(settings, vectors=10), tmp_path / "run")
    assert sample_sizes(tmp_path / "run", 8) == [(False, 16), *[(True, 0)] * 7]


# Settings


def test_init_settings_are_selected_by_kind():
    settings = VectorQuantizerSettings.model_validate({"init": {"kind": "kmeans", "latents_per_code": 3}})
    assert settings.init == KMeansInitSettings(latents_per_code=3)
    assert VectorQuantizerSettings().init == KMeansInitSettings(latents_per_code=None)
    assert VectorQuantizerSettings.model_validate({"init": {"kind": "random"}}).init == RandomInitSettings()
    with pytest.raises(ValidationError, match="latents_per_code"):
        VectorQuantizerSettings.model_validate({"init": {"kind": "random", "latents_per_code": 3}})
    with pytest.raises(ValidationError, match="latents_per_code"):
        KMeansInitSettings(latents_per_code=0)


def test_init_settings_build_the_initializer():
    assert RandomInitSettings().build(K, D) is None
    initializer = KMeansInitSettings(latents_per_code=4).build(K, D)
    assert set(initializer.state_dict()) == {"done", "sample"}
    assert initializer.sample.shape == (0, D)
    recorder = Recorder(initializer)
    initializer.accumulate(torch.zeros(SAMPLE_SIZE, D))
    initializer.apply_update()
    initializer.run(recorder, only_if_complete=True)
    assert recorder.sizes == [SAMPLE_SIZE]


def test_latents_per_code_beyond_the_limit_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"latents_per_code\n.*\b65536\b"):
        KMeansInitSettings(latents_per_code=2**62)
