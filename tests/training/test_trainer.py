import dataclasses
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.cli import mentions
from tests.training import (
    CODEBOOK_LOSS,
    ENTROPY,
    IDENTITY,
    assert_equal_states,
    best_model_tensors,
    logged_metrics,
    read_checkpoint,
    stop_in_step,
    tiny_settings,
    vectors,
    with_random_init,
)
from vqtool import load
from vqtool.config import RunSettings
from vqtool.data import BatchOrder, train_validation_split
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


def numeric_values(line: dict[str, Any]) -> list[float]:
    return [value for value in line.values() if isinstance(value, int | float)]


def trainer_in(folder: Path, settings: RunSettings) -> tuple[Trainer, torch.nn.Module]:
    setup, run = set_up(settings), RunDirectory(folder)
    run.create(setup.settings)
    return Trainer(setup, run, None, lambda line: None), setup.model


# Steps


def test_training_equals_a_plain_pytorch_loop(tmp_path: Path) -> None:
    loss_settings = {"commitment": 0.5, "entropy": 0.1}
    settings = with_random_init(tiny_settings(tmp_path, update=CODEBOOK_LOSS, loss=loss_settings, gradient_clip=0.05))
    train(settings, tmp_path / "run")
    setup = set_up(settings)
    model, data, order = setup.model, setup.dataset.training, BatchOrder(48, 16, seed=0)
    not_decayed = [p for n, p in model.named_parameters() if p.ndim == 1 or "codebook" in n]
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and "codebook" not in n]
    adamw = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": not_decayed, "weight_decay": 0.0}])
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
        model.hit_steps.record(output.quantizer.indices, step + 1)
        model.quantizer.update()
        assert logged_metrics(tmp_path / "run")[step]["loss/total"] == pytest.approx(float(loss.detach()), rel=1e-5)
    model.hit_steps.synchronize()
    for name, tensor in read_checkpoint(tmp_path / "run", 8)["model"].items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_logged_losses_are_those_before_the_update(tmp_path: Path) -> None:
    settings = with_random_init(tiny_settings(tmp_path, loss={"commitment": 0.5, "entropy": 0.1}))
    train(settings, tmp_path / "run")
    setup = set_up(settings)
    output = setup.model(setup.dataset.training.take(BatchOrder(48, 16, seed=0).batch(0)))
    first = logged_metrics(tmp_path / "run")[0]
    assert first["loss/reconstruction"] == pytest.approx(
        float((output.prediction - output.target).detach().square().mean())
    )
    assert first["loss/commitment"] == pytest.approx(float(output.quantizer.commitment_loss.detach()), rel=1e-5)
    assert first["loss/entropy"] == pytest.approx(float(output.quantizer.entropy_loss.detach()), rel=1e-5)
    terms = first["loss/reconstruction"] + 0.5 * first["loss/commitment"] + 0.1 * first["loss/entropy"]
    assert first["loss/total"] == pytest.approx(terms, rel=1e-5)
    assert [line["optimizer/learning_rate"] for line in logged_metrics(tmp_path / "run")] == [
        learning_rate(settings.training, step) for step in range(8)
    ]


def test_logged_commitment_loss_is_unweighted(tmp_path: Path) -> None:
    for weight in (1.0, 100.0):
        update = {"kind": "codebook_loss", "weight": weight}
        settings = tiny_settings(tmp_path, update=update, loss={"commitment": 0.25}, steps=1)
        train(with_random_init(settings), tmp_path / f"{weight}")
    light, heavy = logged_metrics(tmp_path / "1.0")[0], logged_metrics(tmp_path / "100.0")[0]
    assert light["loss/commitment"] == pytest.approx(heavy["loss/commitment"], rel=1e-6)
    assert heavy["loss/total"] - light["loss/total"] == pytest.approx(0.25 * 99 * light["loss/commitment"], rel=1e-4)


# Identity encoder


@pytest.mark.parametrize(
    ("update", "loss"), [({"kind": "ema"}, {}), ({"kind": "ema"}, {"entropy": 0.1}), (CODEBOOK_LOSS, {})]
)
def test_identity_encoder_codes_move_to_the_data(
    tmp_path: Path, update: dict[str, Any], loss: dict[str, float]
) -> None:
    settings = tiny_settings(
        tmp_path, encoder=IDENTITY, update=update, loss=loss, steps=30, validate_every=1, learning_rate=0.2
    )
    train(with_random_init(settings), tmp_path / "run")
    errors = [line["validation/loss/reconstruction"] for line in logged_metrics(tmp_path / "run")]
    assert errors[-1] < 0.7 * errors[0]


def test_identity_encoder_entropy_loss_alone_raises_usage(tmp_path: Path) -> None:
    settings = tiny_settings(
        tmp_path,
        encoder=IDENTITY,
        update=ENTROPY,
        loss={"entropy": 1.0},
        steps=30,
        validate_every=1,
        learning_rate=0.2,
    )
    train(with_random_init(settings), tmp_path / "run")
    lines = logged_metrics(tmp_path / "run")
    assert lines[-1]["codebook/usage"] > lines[0]["codebook/usage"]
    assert lines[-1]["codebook/soft_entropy"] > 0.8


def test_ema_codes_are_the_means_of_their_latents(tmp_path: Path) -> None:
    ema = {"kind": "ema", "decay": 0.0}
    settings = with_random_init(tiny_settings(tmp_path, encoder=IDENTITY, update=ema, steps=1, batch_size=48))
    setup = set_up(settings)
    x = setup.dataset.training.read(0, 48)
    indices, latents = setup.model.encode(x).flatten(), setup.model.latents(x).flatten(0, 1)
    train(settings, tmp_path / "run")
    codes = best_model_tensors(tmp_path / "run")["quantizer.codebook.weight"]
    for code in indices.unique():
        torch.testing.assert_close(codes[code], latents[indices == code].mean(dim=0), rtol=1e-5, atol=1e-6)


# The best model


def set_validation_metric(monkeypatch: pytest.MonkeyPatch, metric: str, values: list[float]) -> list[dict[str, Tensor]]:
    """Let validations return these values of a metric; return the list of the state dicts that they evaluate."""
    states: list[dict[str, Tensor]] = []
    evaluate = validator.evaluate_distributed

    def evaluate_with_value(model: Any, *arguments: Any) -> Evaluation:
        value, evaluation = values[len(states)], evaluate(model, *arguments)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        name = metric.rpartition("/")[2]
        if metric.startswith("validation/loss/"):
            return dataclasses.replace(evaluation, losses={**evaluation.losses, name: value})
        level = dataclasses.replace(evaluation.levels[0], **{name: value})
        return dataclasses.replace(evaluation, levels=[level])

    monkeypatch.setattr(validator, "evaluate_distributed", evaluate_with_value)
    return states


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
def test_saved_model_is_the_one_with_the_best_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, values: list[float], best: int
) -> None:
    states = set_validation_metric(monkeypatch, metric, values)
    summary = train(tiny_settings(tmp_path, best_metric=metric, validate_every=2), tmp_path / "run")
    assert summary["best_step"] == 2 * (best + 1)
    assert summary["best_metric"] == metric
    assert summary["best"][metric] == values[best]
    assert summary["final"][metric] == values[-1]
    saved = best_model_tensors(tmp_path / "run")
    counts, distinct = saved.pop("validation.counts.0"), saved.pop("validation.distinct")
    assert_equal_states(saved, states[best])
    assert counts.sum() == distinct[0] == 12
    assert not torch.equal(states[best]["encoder.net.0.weight"], states[best - 1]["encoder.net.0.weight"])


def test_resume_keeps_the_best_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = set_validation_metric(monkeypatch, "validation/loss/reconstruction", [1.0, 2.0, 3.0, 4.0])
    settings = tiny_settings(tmp_path, validate_every=2)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 5)
        with pytest.raises(Stopped):
            train(settings, tmp_path / "run")
    summary = train(settings, tmp_path / "run", resume=True)
    assert summary["best_step"] == 2
    saved = best_model_tensors(tmp_path / "run")
    assert_equal_states({name: saved[name] for name in states[0]}, states[0])


def test_best_step_has_the_smallest_logged_metric(tmp_path: Path) -> None:
    summary = train(tiny_settings(tmp_path, validate_every=1, learning_rate=0.3, warmup_steps=0), tmp_path / "run")
    errors = [line["validation/loss/reconstruction"] for line in logged_metrics(tmp_path / "run")]
    assert summary["best_step"] == 1 + errors.index(min(errors))
    report = load(tmp_path / "run").evaluate()
    assert report.evaluation.losses["reconstruction"] == min(errors)


# Stopping


def test_signal_stops_after_the_step_and_saves_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_in_step(monkeypatch, 4)
    with pytest.raises(Stopped, match=r"SIGTERM .*step 4.*checkpoint.*--resume") as stopped:
        train(tiny_settings(tmp_path, checkpoint_every=100), tmp_path / "run")
    assert stopped.value.signal == signal.SIGTERM
    assert [path.stem for path in RunDirectory(tmp_path / "run").checkpoints.glob("*.pt")] == ["step-000000004"]
    assert logged_metrics(tmp_path / "run")[-1]["step"] == 4
    assert not RunDirectory(tmp_path / "run").summary.exists()


def test_resume_after_a_signal_in_the_last_step_validates_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_in_step(patch, 8)
        with pytest.raises(Stopped, match=r"SIGTERM .*step 8.*checkpoint"):
            train(tiny_settings(tmp_path), tmp_path / "run")
    assert logged_metrics(tmp_path / "run")[-1]["step"] == 7
    assert train(tiny_settings(tmp_path), tmp_path / "run", resume=True)["steps"] == 8
    assert "validation/loss/total" in logged_metrics(tmp_path / "run")[-1]


# Non-finite losses


def make_non_finite(patch: pytest.MonkeyPatch, term: str, step: int) -> None:
    """Make a term of the loss infinite, or the gradient NaN, in a step counted from 1."""
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
@pytest.mark.parametrize("update", [{"kind": "ema"}, CODEBOOK_LOSS], ids=["ema", "codebook_loss"])
def test_non_finite_step_is_an_error_and_not_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, term: str, update: dict[str, Any]
) -> None:
    settings = tiny_settings(tmp_path, update=update, loss={"entropy": 0.1}, checkpoint_every=2, keep_checkpoints=9)
    train(settings, tmp_path / "clean")
    with monkeypatch.context() as patch:
        make_non_finite(patch, term, 5)
        trainer, model = trainer_in(tmp_path / "run", settings)
        with pytest.raises(TrainingError) as error:
            trainer.train()
    rows = ", ".join(map(str, train_validation_split(60, 0.2, 0)[0][BatchOrder(48, 16, seed=0).batch(4)[:8]]))
    name = term if term == "gradient" else f"{term} loss"
    assert mentions(str(error.value), f"step 5: ... {name} ... training.learning_rate ... {rows}")
    assert_equal_states(dict(model.state_dict()), dict(read_checkpoint(tmp_path / "clean", 4)["model"]))
    model.quantizer.update()  # type: ignore[operator]
    assert_equal_states(dict(model.state_dict()), dict(read_checkpoint(tmp_path / "clean", 4)["model"]))
    assert logged_metrics(tmp_path / "run")[-1]["step"] == 4
    train(settings, tmp_path / "run", resume=True)
    assert_equal_states(read_checkpoint(tmp_path / "run", 8)["model"], read_checkpoint(tmp_path / "clean", 8)["model"])


def record_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by one element with each step."""
    steps: list[int] = []
    forward = step_module.Stepper.forward
    monkeypatch.setattr(step_module.Stepper, "forward", lambda self, x: (steps.append(1), forward(self, x))[1])
    return steps


class DeferredCheckStepper(step_module.Stepper):
    """Checks losses only in `check_finite`, as on a GPU."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.checks_each_step = False


@pytest.mark.parametrize("update", [{"kind": "ema"}, CODEBOOK_LOSS], ids=["ema", "codebook_loss"])
def test_no_step_is_applied_between_a_non_finite_step_and_its_detection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: dict[str, Any]
) -> None:
    settings = with_random_init(
        tiny_settings(
            tmp_path,
            update=update,
            loss={"entropy": 0.1},
            log_every=7,
            checkpoint_every=2,
            validate_every=7,
            keep_checkpoints=9,
        )
    )
    train(settings, tmp_path / "clean")
    steps = record_steps(monkeypatch)
    make_non_finite(monkeypatch, "commitment", 3)
    monkeypatch.setattr("vqtool.training.trainer.Stepper", DeferredCheckStepper)
    trainer, model = trainer_in(tmp_path / "run", settings)
    with pytest.raises(TrainingError, match=r"step 3: .*commitment loss"):
        trainer.train()
    assert len(steps) == 4  # checked before the checkpoint of step 4
    assert_equal_states(dict(model.state_dict()), dict(read_checkpoint(tmp_path / "clean", 2)["model"]))


def test_non_finite_step_is_detected_at_once_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = record_steps(monkeypatch)
    make_non_finite(monkeypatch, "commitment", 3)
    settings = with_random_init(tiny_settings(tmp_path, log_every=7, checkpoint_every=7, validate_every=7))
    with pytest.raises(TrainingError, match=r"step 3: .*commitment loss"):
        train(settings, tmp_path / "run")
    assert len(steps) == 3


def test_non_finite_step_without_parameters_is_not_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_non_finite(monkeypatch, "commitment", 2)
    trainer, model = trainer_in(
        tmp_path / "run",
        with_random_init(tiny_settings(tmp_path, encoder=IDENTITY, update={"kind": "ema", "decay": 0.99})),
    )
    with pytest.raises(TrainingError, match=r"step 2: .*commitment loss"):
        trainer.train()
    assert model.get_buffer("quantizer.codebook.counts").sum() == pytest.approx(16 * 0.01)


def overflowing_settings(tmp_path: Path) -> RunSettings:
    """Return the settings of a run on data whose squares overflow float32."""
    array = vectors()
    array[:] = 1e30
    array[::2] = -1e30
    return tiny_settings(tmp_path, array, encoder=IDENTITY, data={"normalize": "none"})


def test_all_non_finite_losses_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 1: .*reconstruction loss .*commitment loss"):
        train(with_random_init(overflowing_settings(tmp_path)), tmp_path / "run")


def test_non_finite_loss_before_the_initialisation_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="NaN or infinite"):
        train(overflowing_settings(tmp_path), tmp_path / "run")


def test_non_finite_entropy_loss_without_weight_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_non_finite(monkeypatch, "entropy", 5)
    assert train(tiny_settings(tmp_path), tmp_path / "run")["steps"] == 8


def test_non_finite_validation_metric_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_validation_metric(monkeypatch, "validation/loss/entropy", [-1.0, math.nan])
    with pytest.raises(TrainingError, match=r"step 6: .*validation"):
        train(tiny_settings(tmp_path), tmp_path / "run")
    assert load_checkpoint(RunDirectory(tmp_path / "run")).step == 3  # type: ignore[union-attr]
    assert best_model_tensors(tmp_path / "run")


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
def test_bfloat16_applies_only_to_the_networks_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: dict[str, Any], array: Any
) -> None:
    dtypes: set[tuple[bool, torch.dtype, torch.dtype]] = set()
    forward, evaluate_padded = VectorQuantizer.forward, VectorQuantizer.evaluate_padded

    def record_training(quantizer: VectorQuantizer, x: Tensor) -> QuantizerOutput:
        output = forward(quantizer, x)
        dtypes.add((quantizer.training, x.dtype, output.commitment_loss.dtype))
        return output

    def record_evaluation(
        quantizer: VectorQuantizer, x: Tensor, samples: int
    ) -> tuple[QuantizerOutput, list[LevelStatistics]]:
        output, levels = evaluate_padded(quantizer, x, samples)
        dtypes.add((quantizer.training, x.dtype, output.commitment_loss.dtype))
        return output, levels

    monkeypatch.setattr(VectorQuantizer, "forward", record_training)
    monkeypatch.setattr(VectorQuantizer, "evaluate_padded", record_evaluation)
    settings = tiny_settings(tmp_path, array, encoder=encoder, precision="bfloat16", steps=4)
    summary = train(settings, tmp_path / "run")
    assert dtypes == {(True, torch.bfloat16, torch.float32), (False, torch.float32, torch.float32)}
    assert all(math.isfinite(value) for line in logged_metrics(tmp_path / "run") for value in numeric_values(line))
    assert all(
        t.dtype in (torch.float32, torch.int64, torch.int32, torch.bool)
        for t in best_model_tensors(tmp_path / "run").values()
    )
    report = load(tmp_path / "run").evaluate()
    assert report.evaluation.losses["total"] == summary["best"]["validation/loss/total"]


def test_bfloat16_trains_about_as_well_as_float32(tmp_path: Path) -> None:
    results = [
        train(tiny_settings(tmp_path, precision=precision, steps=12), tmp_path / precision)["final"][
            "validation/loss/reconstruction"
        ]
        for precision in ("float32", "bfloat16")
    ]
    assert results[1] == pytest.approx(results[0], rel=0.2)
    assert results[1] != results[0]


# Lines for the user


def test_each_validation_is_logged_as_one_line(tmp_path: Path) -> None:
    lines: list[str] = []
    train(tiny_settings(tmp_path), tmp_path / "run", log=lines.append)
    assert mentions(lines[1], "step 1: ... k-means")
    fields_of_lines = [line.split("  ") for line in lines if "  val_reconstruction " in line]
    assert [fields[0] for fields in fields_of_lines] == ["step 3/8", "step 6/8", "step 8/8"]
    assert [fields[-1].startswith("ETA ") for fields in fields_of_lines] == [True, True, False]
    last = logged_metrics(tmp_path / "run")[-1]
    assert fields_of_lines[-1][1:] == [
        f"val_reconstruction {last['validation/loss/reconstruction']:.4g}",
        f"usage {last['codebook/usage']:.1%}",
        f"perplexity {last['codebook/perplexity']:.1f} of 8",
        f"collision_rate {last['codebook/collision_rate']:.2%}",
    ]
