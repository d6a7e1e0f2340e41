import dataclasses
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training import (
    CODEBOOK_LOSS,
    ENTROPY,
    IDENTITY,
    assert_same,
    checkpoint,
    from_random,
    logged,
    model_of,
    stop_in_step,
    tiny,
    vectors,
)
from vqtool import load
from vqtool.config import RunSettings
from vqtool.data import BatchOrder
from vqtool.data.order import split
from vqtool.errors import Stopped, TrainingError
from vqtool.metrics.evaluation import Evaluation
from vqtool.quantizers import LevelStatistics, QuantizerOutput, VectorQuantizer
from vqtool.runs.checkpoint import load_checkpoint
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.distributed import BatchShard
from vqtool.training import step as step_module
from vqtool.training import train
from vqtool.training import validation as validator
from vqtool.training.optimizer import learning_rate
from vqtool.training.setup import set_up
from vqtool.training.trainer import Trainer


def numbers(line: dict[str, Any]) -> list[float]:
    return [value for value in line.values() if isinstance(value, int | float)]


def trainer_in(folder: Path, settings: RunSettings) -> tuple[Trainer, torch.nn.Module]:
    prepared, run = set_up(settings), RunDirectory(folder)
    run.create(prepared.settings)
    return Trainer(prepared, run, None, lambda line: None), prepared.model


# What a step does


def test_a_step_is_that_of_a_bare_loop(tmp_path: Path) -> None:
    loss_settings = {"commitment": 0.5, "entropy": 0.1}
    settings = from_random(tiny(tmp_path, learning=CODEBOOK_LOSS, loss=loss_settings, gradient_clip=0.05))
    train(settings, tmp_path / "run")
    prepared = set_up(settings)
    model, data, order = prepared.model, prepared.dataset.training, BatchOrder(48, 16, seed=0)
    spared = [p for n, p in model.named_parameters() if p.ndim == 1 or "codebook" in n]
    others = [p for n, p in model.named_parameters() if p.ndim > 1 and "codebook" not in n]
    adamw = torch.optim.AdamW([{"params": others, "weight_decay": 0.01}, {"params": spared, "weight_decay": 0.0}])
    for step in range(8):
        output = model(data.take(order.batch(step)))
        loss = (output.prediction - output.target).square().mean()
        loss = loss + 0.5 * output.quantizer.commitment_loss + 0.1 * output.quantizer.entropy_loss
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        for group in adamw.param_groups:
            group["lr"] = learning_rate(settings.training, step)
        adamw.step()
        model.hit_times.note(output.quantizer.indices, step + 1)
        model.quantizer.update()
        assert logged(tmp_path / "run")[step]["loss/total"] == pytest.approx(float(loss.detach()), rel=1e-5)
    model.hit_times.agree()
    for name, tensor in checkpoint(tmp_path / "run", 8)["model"].items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_the_log_shows_the_batch_before_the_step(tmp_path: Path) -> None:
    settings = from_random(tiny(tmp_path, loss={"commitment": 0.5, "entropy": 0.1}))
    train(settings, tmp_path / "run")
    prepared = set_up(settings)
    output = prepared.model(prepared.dataset.training.take(BatchOrder(48, 16, seed=0).batch(0)))
    first = logged(tmp_path / "run")[0]
    assert first["loss/reconstruction"] == pytest.approx(
        float((output.prediction - output.target).detach().square().mean())
    )
    assert first["loss/commitment"] == pytest.approx(float(output.quantizer.commitment_loss.detach()), rel=1e-5)
    assert first["loss/entropy"] == pytest.approx(float(output.quantizer.entropy_loss.detach()), rel=1e-5)
    terms = first["loss/reconstruction"] + 0.5 * first["loss/commitment"] + 0.1 * first["loss/entropy"]
    assert first["loss/total"] == pytest.approx(terms, rel=1e-5)
    assert [line["optimizer/learning_rate"] for line in logged(tmp_path / "run")] == [
        learning_rate(settings.training, step) for step in range(8)
    ]


def test_raw_terms_are_logged_without_the_weight_of_the_codebook_loss(tmp_path: Path) -> None:
    for weight in (1.0, 100.0):
        learning = {"kind": "codebook_loss", "weight": weight}
        settings = tiny(tmp_path, learning=learning, loss={"commitment": 0.25}, steps=1)
        train(from_random(settings), tmp_path / f"{weight}")
    light, heavy = logged(tmp_path / "1.0")[0], logged(tmp_path / "100.0")[0]
    assert light["loss/commitment"] == pytest.approx(heavy["loss/commitment"], rel=1e-6)
    assert heavy["loss/total"] - light["loss/total"] == pytest.approx(0.25 * 99 * light["loss/commitment"], rel=1e-4)


# Models without a network


@pytest.mark.parametrize(
    ("learning", "loss"), [({"kind": "ema"}, {}), ({"kind": "ema"}, {"entropy": 0.1}), (CODEBOOK_LOSS, {})]
)
def test_without_a_network_the_codes_go_to_the_data(
    tmp_path: Path, learning: dict[str, Any], loss: dict[str, float]
) -> None:
    settings = tiny(
        tmp_path, encoder=IDENTITY, learning=learning, loss=loss, steps=30, validate_every=1, learning_rate=0.2
    )
    train(from_random(settings), tmp_path / "run")
    errors = [line["validation/loss/reconstruction"] for line in logged(tmp_path / "run")]
    assert errors[-1] < 0.7 * errors[0]


def test_without_a_network_the_entropy_alone_spreads_the_codes(tmp_path: Path) -> None:
    settings = tiny(
        tmp_path,
        encoder=IDENTITY,
        learning=ENTROPY,
        loss={"entropy": 1.0},
        steps=30,
        validate_every=1,
        learning_rate=0.2,
    )
    train(from_random(settings), tmp_path / "run")
    lines = logged(tmp_path / "run")
    assert lines[-1]["codebook/usage"] > lines[0]["codebook/usage"]
    assert lines[-1]["codebook/soft_entropy"] > 0.8


def test_ema_codes_are_the_means_of_what_they_won(tmp_path: Path) -> None:
    ema = {"kind": "ema", "decay": 0.0}
    settings = from_random(tiny(tmp_path, encoder=IDENTITY, learning=ema, steps=1, batch_size=48))
    prepared = set_up(settings)
    x = prepared.dataset.training.read(0, 48)
    indices, latents = prepared.model.encode(x).flatten(), prepared.model.latents(x).flatten(0, 1)
    train(settings, tmp_path / "run")
    codes = model_of(tmp_path / "run")["quantizer.codebook.weight"]
    for code in indices.unique():
        torch.testing.assert_close(codes[code], latents[indices == code].mean(dim=0), rtol=1e-5, atol=1e-6)


# The best model


def script(monkeypatch: pytest.MonkeyPatch, metric: str, values: list[float]) -> list[dict[str, Tensor]]:
    """Let validations show these values of a metric; returns the weights that each of them saw."""
    seen: list[dict[str, Tensor]] = []
    evaluate = validator.evaluate_together

    def scripted(model: Any, *arguments: Any) -> Evaluation:
        value, evaluation = values[len(seen)], evaluate(model, *arguments)
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        name = metric.rpartition("/")[2]
        if metric.startswith("validation/loss/"):
            return dataclasses.replace(evaluation, losses={**evaluation.losses, name: value})
        level = dataclasses.replace(evaluation.levels[0], **{name: value})
        return dataclasses.replace(evaluation, levels=[level])

    monkeypatch.setattr(validator, "evaluate_together", scripted)
    return seen


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("validation/loss/reconstruction", [1.0, 2.0, 3.0, 4.0], 0),
        ("validation/loss/reconstruction", [4.0, 2.0, 1.0, 3.0], 2),
        ("validation/loss/total", [4.0, 3.0, 2.0, 1.0], 3),
        ("validation/loss/entropy", [-1.0, -3.0, -2.0, -1.0], 1),
        ("validation/loss/commitment", [0.0, 1.0, 0.0, 1.0], 0),
        ("codebook/perplexity", [4.0, 3.0, 2.0, 1.0], 0),
        ("codebook/perplexity", [1.0, 2.0, 4.0, 3.0], 2),
        ("codebook/usage", [0.0, 0.5, 0.5, 0.25], 1),
    ],
)
def test_the_model_kept_is_the_one_with_the_best_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, values: list[float], best: int
) -> None:
    seen = script(monkeypatch, metric, values)
    summary = train(tiny(tmp_path, best_metric=metric, validate_every=2), tmp_path / "run")
    assert summary["best_step"] == 2 * (best + 1)
    assert summary["best_metric"] == metric
    assert summary["best"][metric] == values[best]
    assert summary["final"][metric] == values[-1]
    kept = model_of(tmp_path / "run")
    counts, distinct = kept.pop("validation.counts.0"), kept.pop("validation.distinct")
    assert_same(kept, seen[best])
    assert counts.sum() == distinct[0] == 12
    assert not torch.equal(seen[best]["encoder.net.0.weight"], seen[best - 1]["encoder.net.0.weight"])


def test_the_best_is_not_forgotten_on_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = script(monkeypatch, "validation/loss/reconstruction", [1.0, 2.0, 3.0, 4.0])
    settings = tiny(tmp_path, validate_every=2)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 5)
        with pytest.raises(Stopped):
            train(settings, tmp_path / "run")
    summary = train(settings, tmp_path / "run", resume=True)
    assert summary["best_step"] == 2
    kept = model_of(tmp_path / "run")
    assert_same({name: kept[name] for name in seen[0]}, seen[0])


def test_what_was_logged_chooses_the_best(tmp_path: Path) -> None:
    summary = train(tiny(tmp_path, validate_every=1, learning_rate=0.3, warmup_steps=0), tmp_path / "run")
    errors = [line["validation/loss/reconstruction"] for line in logged(tmp_path / "run")]
    assert summary["best_step"] == 1 + errors.index(min(errors))
    report = load(tmp_path / "run").evaluate()
    assert report.evaluation.losses["reconstruction"] == min(errors)


# Stopping


def test_a_signal_stops_after_the_step_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_in_step(monkeypatch, 4)
    with pytest.raises(Stopped, match="stopped by SIGTERM after step 4; checkpoint saved; --resume") as stopped:
        train(tiny(tmp_path, checkpoint_every=100), tmp_path / "run")
    assert stopped.value.signal == signal.SIGTERM
    assert [path.stem for path in RunDirectory(tmp_path / "run").checkpoints.glob("*.pt")] == ["step-000000004"]
    assert logged(tmp_path / "run")[-1]["step"] == 4
    assert not RunDirectory(tmp_path / "run").summary.exists()


def test_after_a_signal_in_the_last_step_its_validation_is_still_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_in_step(patch, 8)
        with pytest.raises(Stopped, match="after step 8; checkpoint saved"):
            train(tiny(tmp_path), tmp_path / "run")
    assert logged(tmp_path / "run")[-1]["step"] == 7
    assert train(tiny(tmp_path), tmp_path / "run", resume=True)["steps"] == 8
    assert "validation/loss/total" in logged(tmp_path / "run")[-1]


# Non-finite losses


def poison(patch: pytest.MonkeyPatch, term: str, step: int) -> None:
    """Make a term of the loss, or its gradient, infinite in a step counted from 1."""
    forward, reconstruction, steps = VectorQuantizer.forward, step_module.reconstruction_loss, []

    def bad_forward(quantizer: VectorQuantizer, x: Tensor) -> Any:
        output = forward(quantizer, x)
        if quantizer.training:
            steps.append(1)
        if not quantizer.training or len(steps) != step or term not in ("commitment", "entropy"):
            return output
        return output._replace(**{f"{term}_loss": output.commitment_loss + math.inf})

    def bad_reconstruction(name: str, prediction: Tensor, target: Tensor, shard: BatchShard) -> Tensor:
        loss = reconstruction(name, prediction, target, shard)
        if len(steps) != step:
            return loss
        return {"reconstruction": loss * math.inf, "gradient": loss + (0 * prediction.sum()).sqrt()}.get(term, loss)

    patch.setattr(VectorQuantizer, "forward", bad_forward)
    patch.setattr(step_module, "reconstruction_loss", bad_reconstruction)


@pytest.mark.parametrize("term", ["reconstruction", "commitment", "entropy", "gradient"])
@pytest.mark.parametrize("learning", [{"kind": "ema"}, CODEBOOK_LOSS], ids=["ema", "codebook_loss"])
def test_a_loss_that_is_not_finite_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, term: str, learning: dict[str, Any]
) -> None:
    settings = tiny(tmp_path, learning=learning, loss={"entropy": 0.1}, checkpoint_every=2, keep_checkpoints=9)
    train(settings, tmp_path / "clean")
    with monkeypatch.context() as patch:
        poison(patch, term, 5)
        loop, model = trainer_in(tmp_path / "run", settings)
        with pytest.raises(TrainingError) as error:
            loop.train()
    rows = ", ".join(map(str, split(60, 0.2, 0)[0][BatchOrder(48, 16, seed=0).batch(4)[:8]]))
    name = term if term == "gradient" else f"{term} loss"
    assert str(error.value).startswith(f"step 5: the {name} is NaN or infinite; ")
    assert "; lower training.learning_rate" in str(error.value)
    assert str(error.value).endswith(f": {rows}, ...")
    assert_same(dict(model.state_dict()), dict(checkpoint(tmp_path / "clean", 4)["model"]))
    model.quantizer.update()  # type: ignore[operator]
    assert_same(dict(model.state_dict()), dict(checkpoint(tmp_path / "clean", 4)["model"]))
    assert logged(tmp_path / "run")[-1]["step"] == 4
    train(settings, tmp_path / "run", resume=True)
    assert_same(checkpoint(tmp_path / "run", 8)["model"], checkpoint(tmp_path / "clean", 8)["model"])


def counted_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each step that begins."""
    taken: list[int] = []
    forward = step_module.Stepper.forward
    monkeypatch.setattr(step_module.Stepper, "forward", lambda self, x: (taken.append(1), forward(self, x))[1])
    return taken


@pytest.mark.parametrize("learning", [{"kind": "ema"}, CODEBOOK_LOSS], ids=["ema", "codebook_loss"])
def test_between_looks_nothing_changes_after_a_bad_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learning: dict[str, Any]
) -> None:
    settings = from_random(
        tiny(
            tmp_path,
            learning=learning,
            loss={"entropy": 0.1},
            log_every=7,
            checkpoint_every=2,
            validate_every=7,
            keep_checkpoints=9,
        )
    )
    train(settings, tmp_path / "clean")
    taken = counted_steps(monkeypatch)
    poison(monkeypatch, "commitment", 3)
    monkeypatch.setattr(step_module, "_known_at_once", lambda device: False)
    loop, model = trainer_in(tmp_path / "run", settings)
    with pytest.raises(TrainingError, match="step 3: the commitment loss is NaN or infinite; the step was not applied"):
        loop.train()
    assert len(taken) == 4  # the next look is before the checkpoint of step 4
    assert_same(dict(model.state_dict()), dict(checkpoint(tmp_path / "clean", 2)["model"]))


def test_a_cpu_is_looked_at_after_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = counted_steps(monkeypatch)
    poison(monkeypatch, "commitment", 3)
    settings = from_random(tiny(tmp_path, log_every=7, checkpoint_every=7, validate_every=7))
    with pytest.raises(TrainingError, match="step 3: the commitment loss is NaN"):
        train(settings, tmp_path / "run")
    assert len(taken) == 3


def test_without_parameters_it_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, "commitment", 2)
    loop, model = trainer_in(
        tmp_path / "run", from_random(tiny(tmp_path, encoder=IDENTITY, learning={"kind": "ema", "decay": 0.99}))
    )
    with pytest.raises(TrainingError, match="step 2: the commitment loss is NaN"):
        loop.train()
    assert model.get_buffer("quantizer.codebook.counts").sum() == pytest.approx(16 * 0.01)


def too_large(tmp_path: Path) -> RunSettings:
    """A run on data whose squares float32 cannot hold."""
    array = vectors()
    array[:] = 1e30
    array[::2] = -1e30
    return tiny(tmp_path, array, encoder=IDENTITY, data={"normalize": "none"})


def test_every_bad_term_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match="step 1: the reconstruction loss and the commitment loss are NaN or infinite"
    ):
        train(from_random(too_large(tmp_path)), tmp_path / "run")


def test_a_distance_that_is_not_finite_is_told_while_codes_wait_too(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="NaN or infinite"):
        train(too_large(tmp_path), tmp_path / "run")


def test_an_entropy_that_is_not_finite_does_no_harm_at_weight_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, "entropy", 5)
    assert train(tiny(tmp_path), tmp_path / "run")["steps"] == 8


def test_a_validation_that_is_not_finite_ends_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, "validation/loss/entropy", [-1.0, math.nan])
    with pytest.raises(TrainingError, match=r"step 6: .*validation"):
        train(tiny(tmp_path), tmp_path / "run")
    assert load_checkpoint(RunDirectory(tmp_path / "run")).step == 3  # type: ignore[union-attr]
    assert model_of(tmp_path / "run")


# Precision


@pytest.mark.parametrize(
    ("encoder", "array"),
    [
        ({"kind": "mlp", "width": 8}, None),
        (
            {"kind": "conv2d", "width": 8, "downsamples": 1, "res_blocks": 1},
            np.random.default_rng(0).integers(0, 3, (20, 4, 4)),
        ),
        (
            {"kind": "transformer", "width": 8, "depth": 1, "patch_size": 2},
            np.random.default_rng(0).random((20, 1, 4, 5)),
        ),
    ],
    ids=["mlp", "conv2d", "transformer"],
)
def test_bfloat16_is_for_the_networks_in_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: dict[str, Any], array: Any
) -> None:
    seen: set[tuple[bool, torch.dtype, torch.dtype]] = set()
    forward, evaluate_padded = VectorQuantizer.forward, VectorQuantizer.evaluate_padded

    def watched(quantizer: VectorQuantizer, x: Tensor) -> QuantizerOutput:
        output = forward(quantizer, x)
        seen.add((quantizer.training, x.dtype, output.commitment_loss.dtype))
        return output

    def assessed(quantizer: VectorQuantizer, x: Tensor, samples: int) -> tuple[QuantizerOutput, list[LevelStatistics]]:
        output, levels = evaluate_padded(quantizer, x, samples)
        seen.add((quantizer.training, x.dtype, output.commitment_loss.dtype))
        return output, levels

    monkeypatch.setattr(VectorQuantizer, "forward", watched)
    monkeypatch.setattr(VectorQuantizer, "evaluate_padded", assessed)
    settings = tiny(tmp_path, array, encoder=encoder, precision="bfloat16", steps=4)
    summary = train(settings, tmp_path / "run")
    assert seen == {(True, torch.bfloat16, torch.float32), (False, torch.float32, torch.float32)}
    assert all(math.isfinite(value) for line in logged(tmp_path / "run") for value in numbers(line))
    assert all(
        t.dtype in (torch.float32, torch.int64, torch.int32, torch.bool) for t in model_of(tmp_path / "run").values()
    )
    report = load(tmp_path / "run").evaluate()
    assert report.evaluation.losses["total"] == summary["best"]["validation/loss/total"]


def test_bfloat16_trains_about_as_float32(tmp_path: Path) -> None:
    results = [
        train(tiny(tmp_path, precision=precision, steps=12), tmp_path / precision)["final"][
            "validation/loss/reconstruction"
        ]
        for precision in ("float32", "bfloat16")
    ]
    assert results[1] == pytest.approx(results[0], rel=0.2)
    assert results[1] != results[0]


# What is said


def test_each_validation_is_told(tmp_path: Path) -> None:
    lines: list[str] = []
    train(tiny(tmp_path), tmp_path / "run", say=lines.append)
    assert lines[1] == "step 1: codebook initialised by k-means; quantization is now active"
    told = [line.split("  ") for line in lines if "  val_reconstruction " in line]
    assert [fields[0] for fields in told] == ["step 3/8", "step 6/8", "step 8/8"]
    assert [fields[-1].startswith("ETA ") for fields in told] == [True, True, False]
    last = logged(tmp_path / "run")[-1]
    assert told[-1][1:] == [
        f"val_reconstruction {last['validation/loss/reconstruction']:.4g}",
        f"usage {last['codebook/usage']:.1%}",
        f"perplexity {last['codebook/perplexity']:.1f} of 8",
        f"collision_rate {last['codebook/collision_rate']:.2%}",
    ]
