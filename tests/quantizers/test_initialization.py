"""Codes that start by k-means: what happens until then, when it happens, and that it happens once."""

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
    assert_same,
    checkpoint,
    logged,
    stop_in_step,
    tiny,
    without_speed,
)
from vqtool.config import RunSettings
from vqtool.errors import Stopped
from vqtool.quantizers import CodebookLossUpdate, EmaUpdate, VectorQuantizer, VectorQuantizerSettings, kmeans
from vqtool.quantizers.codebook_update import SimVQUpdate
from vqtool.quantizers.dead_codes import DeadCodeResetSettings
from vqtool.quantizers.initialization import _LEAST, KMeansInit, KMeansInitSettings, RandomInitSettings
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train

K, D, FULL = 5, 3, 20
LEARNINGS = [EmaUpdate(), CodebookLossUpdate(), SimVQUpdate()]


def quantizer(learning=None, **options):
    torch.manual_seed(0)
    learning = learning or EmaUpdate()
    return VectorQuantizer(
        K, D, update=learning, init=KMeansInitSettings(latents_per_code=FULL // K), **options
    ).train()


def vectors(n, seed=1, dtype=torch.float32):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def step(model, batch):
    output = model(batch)
    model.update()
    return output


def started_by_hand(sample):
    return kmeans(sample, K, torch.Generator().manual_seed(0))


# While codes wait


@pytest.mark.parametrize("learning", LEARNINGS)
@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_vectors_pass_as_they_are_while_codes_wait(learning, gradient):
    model, z = quantizer(learning, gradient_estimator=gradient, sample_entropy_weight=0.5), vectors(8).requires_grad_()
    output = model(z)
    assert torch.equal(output.quantized, z)
    assert torch.equal(output.indices, model.encode(z))
    slopes = vectors(8, seed=2)
    assert torch.equal(torch.autograd.grad(output.quantized, z, slopes)[0], slopes)
    for loss in (output.commitment_loss, output.entropy_loss):
        assert float(loss) == 0
        assert loss.shape == ()
        assert not loss.requires_grad


def test_they_pass_with_their_leading_axes_and_in_their_own_type():
    z = vectors(24, dtype=torch.bfloat16).reshape(4, 6, D)
    output = quantizer()(z)
    assert output.quantized.dtype == torch.bfloat16
    assert torch.equal(output.quantized, z)
    assert output.indices.shape == (4, 6)
    assert output.commitment_loss.dtype == torch.float32


def test_in_evaluation_the_codes_are_used_such_as_they_are():
    model, z = quantizer().eval(), vectors(30)
    output = model(z)
    torch.testing.assert_close(output.quantized, model.codes[output.indices])
    assert float(output.commitment_loss) > 0
    model.update()
    assert len(model.initializer.sample) == 0


def test_nothing_else_learns_while_codes_wait():
    model = quantizer(temperature_unit="quantization_error", dead_code_reset=DeadCodeResetSettings(window_hits=1))
    before = state(model)
    for seed in range(2):
        step(model, vectors(8, seed))
    after = state(model)
    assert after.pop("initializer.sample").shape == (16, D)
    before.pop("initializer.sample")
    assert_same_state(after, before)


def test_forward_changes_no_state_while_codes_wait():
    model = quantizer()
    before = state(model)
    model(vectors(50))
    assert_same_state(state(model), before)


# When they start


def test_they_start_exactly_when_the_sample_is_full():
    model, z = quantizer(EmaUpdate(decay=0.9)), vectors(FULL)
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
    assert torch.equal(model.codes, started_by_hand(z))
    counts = torch.bincount(model.encode(z), minlength=K)
    rate = (1 - torch.exp(-counts / 15)).clamp_max(0.1)
    torch.testing.assert_close(model.codebook.counts, rate * counts)
    torch.testing.assert_close(model.codebook.sums, (rate * counts)[:, None] * model.codes)


def test_from_then_on_they_quantize_and_learn():
    model = quantizer(EmaUpdate(decay=0.5))
    step(model, vectors(FULL))
    before, z = state(model), vectors(8, seed=2)
    output = step(model, z)
    codes = before["codebook.weight"]
    torch.testing.assert_close(output.quantized, codes[output.indices])
    torch.testing.assert_close(output.commitment_loss, (z - codes[output.indices]).square().mean())
    assert float(output.entropy_loss) < 0
    assert not torch.equal(model.codes, codes)
    assert len(model.initializer.sample) == 0


def test_the_sample_is_of_the_last_vectors():
    model, z = quantizer(), vectors(24)
    for first in (0, 8, 16):
        step(model, z[first : first + 8])
    assert torch.equal(model.codes, started_by_hand(z[4:]))


def test_several_batches_before_an_update_all_count_in_order():
    model, z = quantizer(), vectors(FULL)
    for first in (0, 8, 16):
        model(z[first : first + 8])
    assert len(model.initializer.sample) == 0
    model.update()
    assert torch.equal(model.codes, started_by_hand(z))


@pytest.mark.parametrize("learning", LEARNINGS)
def test_any_way_of_learning_starts_from_the_same_codes(learning):
    model, z = quantizer(learning), vectors(FULL)
    step(model, z)
    assert torch.equal(model.codes, started_by_hand(z))


def test_unit_codes_start_from_unit_vectors():
    model, z = quantizer(metric="cosine"), vectors(FULL)
    step(model, z)
    unit = torch.nn.functional.normalize(z, dim=-1)
    torch.testing.assert_close(model.codebook.weight, started_by_hand(unit))
    torch.testing.assert_close(model.codes.norm(dim=1), torch.ones(K))


def test_the_error_scale_is_known_from_the_start():
    model, z = quantizer(temperature_unit="quantization_error"), vectors(FULL)
    step(model, z)
    error = (z - model.codes[model.encode(z)]).square().mean()
    torch.testing.assert_close(model.scale(), error)


def test_they_can_start_with_what_there_is():
    model, z = quantizer(), vectors(16)
    step(model, z[:8])
    step(model, z[8:])
    model.run_init()
    assert model.initializer.done
    assert torch.equal(model.codes, started_by_hand(z))
    before = state(model)
    model.run_init()
    assert_same_state(state(model), before)


def test_they_can_start_with_fewer_vectors_than_codes():
    model, z = quantizer(), vectors(2)
    step(model, z)
    model.run_init()
    output = step(model, z)
    torch.testing.assert_close(output.quantized, z)
    assert float(output.commitment_loss) == pytest.approx(0, abs=1e-12)
    assert all(tensor.isfinite().all() for tensor in state(model).values())


def test_with_nothing_they_wait_on():
    model = quantizer()
    before = state(model)
    model.run_init()
    assert_same_state(state(model), before)
    assert torch.equal(model(vectors(8)).quantized, vectors(8))


def test_discarded_batches_are_not_in_the_sample():
    model, z = quantizer(), vectors(FULL)
    step(model, z[:10])
    model(torch.full((30, D), torch.nan))
    model.discard()
    model.update()
    assert torch.equal(model.initializer.sample, z[:10])
    step(model, z[10:])
    assert torch.equal(model.codes, started_by_hand(z))


class Recorder(torch.nn.Module):
    """All that a start asks of a quantizer, whose part it is."""

    def __init__(self, initializer):
        super().__init__()
        self.initializer = initializer
        self.sizes = []

    def init_codes(self, sample):
        self.sizes.append(len(sample))


@pytest.mark.parametrize(
    ("codes", "each", "expected"),
    [
        (10, None, 8192),  # 64 a code would be 640
        (128, None, 8192),
        (129, None, 8256),
        (1000, None, 64_000),
        (1025, None, 1 << 16),  # 64 a code would be 65,600
        (100_000, None, 400_000),  # four a code are more than 2^16
        (10, 20, 200),
        (10_000, 20, 200_000),
        (100_000, 1, 100_000),
    ],
)
def test_left_out_small_codebooks_start_from_more_vectors_a_code_and_large_ones_from_fewer(
    codes, each, expected, monkeypatch
):
    monkeypatch.setattr("vqtool.quantizers.initialization._LEAST", _LEAST)
    initializer = KMeansInit(codes, 1, each)
    recorder = Recorder(initializer)
    initializer.gather(torch.zeros(expected - 1, 1))
    initializer.apply_update()
    initializer.start(recorder, only_if_complete=True)
    assert (recorder.sizes, initializer.pending) == ([], True)
    initializer.gather(torch.zeros(3, 1))
    initializer.apply_update()
    initializer.start(recorder, only_if_complete=True)
    assert (recorder.sizes, initializer.pending) == ([expected], False)


# What is kept


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_start_goes_on_in_a_fresh_module(steps):
    one, batches = quantizer(), [vectors(8, seed) for seed in range(5)]  # full with the third
    for batch in batches[:steps]:
        step(one, batch)
    other = quantizer()
    with torch.no_grad():
        other.codebook.weight.normal_()
    other.load_state_dict(state(one))
    assert_same_state(state(other), state(one))
    assert other.initializer.pending == (steps < 3)
    for batch in batches[steps:]:
        outputs = step(one, batch), step(other, batch)
        for mine, theirs in zip(*outputs, strict=True):
            assert torch.equal(mine, theirs)
        assert_same_state(state(other), state(one))
    assert other.initializer.done


def test_codes_that_have_started_do_not_start_again():
    one = quantizer()
    step(one, vectors(FULL))
    other = quantizer()
    step(other, vectors(8, seed=3))  # in the middle of a start of its own
    other.load_state_dict(state(one))
    z = vectors(FULL, seed=4)
    output = step(other, z)
    torch.testing.assert_close(output.quantized, one.codes[output.indices])
    before = other.codes.clone()
    other.run_init()
    assert torch.equal(other.codes, before)
    assert len(other.initializer.sample) == 0


def test_a_module_that_has_started_can_go_back_to_a_start_in_the_middle():
    one, other = quantizer(), quantizer()
    step(one, vectors(8))
    step(other, vectors(FULL, seed=3))
    other.load_state_dict(state(one))
    rest = vectors(12, seed=4)
    step(other, rest)
    assert torch.equal(other.codes, started_by_hand(torch.cat([vectors(8), rest])))


# In training


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a run this short codes would start in the first step."""
    monkeypatch.setattr("vqtool.training.trainer.LONGEST_WAIT", 1.0)


def waiting(settings: RunSettings, vectors: int) -> RunSettings:
    """The same, starting from a sample of so many vectors a code."""
    quantizer = settings.model.quantizer.model_copy(update={"init": KMeansInitSettings(latents_per_code=vectors)})
    return settings.model_copy(update={"model": settings.model.model_copy(update={"quantizer": quantizer})})


def sample_sizes(folder: Path, steps: int) -> list[tuple[bool, int]]:
    """Of each checkpoint: has it started, and from how many vectors it would."""
    models = [checkpoint(folder, step)["model"] for step in range(1, steps + 1)]
    return [(bool(model["quantizer.initializer.done"]), len(model["quantizer.initializer.sample"])) for model in models]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("encoder", "learning", "step"),
    [
        (MLP, {"kind": "ema"}, 2),
        (MLP, CODEBOOK_LOSS, 4),
        (IDENTITY, {"kind": "ema"}, 5),
        (IDENTITY, CODEBOOK_LOSS, 3),
        (MLP, {"kind": "simvq"}, 6),
    ],
    ids=lambda value: value.get("kind", "") if isinstance(value, dict) else str(value),
)
def test_interrupted_and_resumed_around_a_start_is_as_never_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: dict[str, Any], learning: dict[str, Any], step: int
) -> None:
    often = {"validate_every": 100, "checkpoint_every": 1, "keep_checkpoints": 9}
    # Eight codes, ten vectors each, in batches of 16: full with the fifth step.
    settings = waiting(tiny(tmp_path, encoder=encoder, learning=learning, **often), vectors=10)
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
    states = [checkpoint(tmp_path / name, 8) for name in ("resumed", "straight")]
    for name in ("model", "optimizer", "last", "step"):
        assert_same(states[0][name], states[1][name])
    assert without_speed(logged(tmp_path / "resumed")) == without_speed(logged(tmp_path / "straight"))


@pytest.mark.usefixtures("patient")
def test_a_run_begins_as_a_plain_autoencoder(tmp_path: Path) -> None:
    settings = tiny(tmp_path, learning=CODEBOOK_LOSS, loss={"entropy": 0.1}, validate_every=100)
    train(waiting(settings, vectors=10), tmp_path / "run")
    lines = logged(tmp_path / "run")
    for line in lines[:5]:
        assert line["loss/total"] == line["loss/reconstruction"]
        assert not {"loss/commitment", "loss/entropy"} & line.keys()
    for line in lines[5:]:
        assert line["loss/total"] != line["loss/reconstruction"]
        assert {"loss/commitment", "loss/entropy"} <= line.keys()


@pytest.mark.parametrize(("steps", "first"), [(20, 2), (21, 3), (9, 1), (60, 5)])  # the sample is full with the fifth
def test_codes_wait_for_a_tenth_of_the_run_at_most(tmp_path: Path, steps: int, first: int) -> None:
    settings = tiny(tmp_path, steps=steps, validate_every=100, checkpoint_every=1, keep_checkpoints=99)
    said: list[str] = []
    train(waiting(settings, vectors=10), tmp_path / "run", say=said.append)
    assert sample_sizes(tmp_path / "run", first) == [*((False, 16 * step) for step in range(1, first)), (True, 0)]
    assert [line.partition(":")[0] for line in said if "initialised by k-means" in line] == [f"step {first}"]
    assert ["loss/commitment" in line for line in logged(tmp_path / "run")[: first + 1]] == [False] * first + [True]


@pytest.mark.usefixtures("patient")
def test_a_validation_starts_the_codes_with_what_there_is(tmp_path: Path) -> None:
    settings = tiny(tmp_path, validate_every=2, checkpoint_every=1, keep_checkpoints=9)
    train(waiting(settings, vectors=10), tmp_path / "run")
    assert sample_sizes(tmp_path / "run", 8) == [(False, 16), *[(True, 0)] * 7]


# Settings


def test_settings_choose_the_start_by_kind():
    settings = VectorQuantizerSettings.model_validate({"init": {"kind": "kmeans", "latents_per_code": 3}})
    assert settings.init == KMeansInitSettings(latents_per_code=3)
    assert VectorQuantizerSettings().init == KMeansInitSettings(latents_per_code=None)
    assert VectorQuantizerSettings.model_validate({"init": {"kind": "random"}}).init == RandomInitSettings()
    with pytest.raises(ValidationError, match="latents_per_code"):
        VectorQuantizerSettings.model_validate({"init": {"kind": "random", "latents_per_code": 3}})
    with pytest.raises(ValidationError, match="latents_per_code"):
        KMeansInitSettings(latents_per_code=0)


def test_settings_build_what_gathers_the_sample():
    assert RandomInitSettings().build(K, D) is None
    initializer = KMeansInitSettings(latents_per_code=4).build(K, D)
    assert set(initializer.state_dict()) == {"done", "sample"}
    assert initializer.sample.shape == (0, D)
    recorder = Recorder(initializer)
    initializer.gather(torch.zeros(FULL, D))
    initializer.apply_update()
    initializer.start(recorder, only_if_complete=True)
    assert recorder.sizes == [FULL]


def test_more_latents_than_anyone_waits_for_are_refused() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 65536"):
        KMeansInitSettings(latents_per_code=2**62)
