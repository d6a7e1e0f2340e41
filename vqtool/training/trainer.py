"""The loop: step, log, validate, checkpoint, stop."""

import math
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from vqtool.config import BEST_METRICS, RunSettings
from vqtool.data import BatchOrder
from vqtool.errors import Stopped, TrainingError
from vqtool.evaluation import evaluate, raw_terms
from vqtool.losses import reconstruction_loss
from vqtool.quantizers import QuantizerOutput
from vqtool.run import Run
from vqtool.training.batches import Batches
from vqtool.training.checkpoint import State, Validation, save_checkpoint
from vqtool.training.logs import Logs
from vqtool.training.metrics import validation_metrics
from vqtool.training.optimizer import Optimizer, learning_rate
from vqtool.training.pictures import is_picture, side_by_side
from vqtool.training.prepare import Prepared
from vqtool.training.signals import stop_requests
from vqtool.training.watch import Watch

# The part of a run after which codes start, however few latents were gathered.
_LONGEST_WAIT = 0.1
# Samples in a picture of reconstructions.
_PICTURES = 8


class StepOutput(NamedTuple):
    """What the forward pass of a step gives."""

    total: Tensor
    """() the loss that is minimised."""
    reconstruction: Tensor
    """()"""
    latents: Tensor
    """(B, L, D)"""
    quantizer: QuantizerOutput
    """Losses and indices."""


class Trainer:
    """Trains a prepared model in a run directory.

    Args:
        prepared: the model and its data.
        run: a directory that holds these settings.
        state: where to go on; None: at the start.
        say: what to call with a line for the user.
    """

    def __init__(self, prepared: Prepared, run: Run, state: State | None, say: Callable[[str], None]) -> None:
        self._settings: RunSettings = prepared.settings
        self._training = prepared.settings.training
        self._data = prepared.dataset
        self._model = prepared.model
        self._device = prepared.device
        self._run = run
        self._say = say
        self._optimizer = Optimizer(self._model, self._training)
        self._watch = Watch(self._device)
        self._order = BatchOrder(len(self._data.training), self._training.batch_size, self._settings.seed)
        self._step, self._seconds = 0, 0.0
        self._best = self._last = Validation(None, {})
        if state:
            self._model.load_state_dict(state.model)
            self._optimizer.load_state_dict(state.optimizer)
            self._step, self._seconds = state.step, state.seconds
            self._last = state.last
            if run.model.exists():  # without it, the next validation is the best there is
                self._best = state.best

    def train(self) -> None:
        """Go on to the last step.

        Raises:
            TrainingError: a loss or a gradient is not finite; the step was not applied.
            Stopped: a signal came; the state after the last step is saved.
        """
        self._model.train()
        with (
            Logs(self._run, self._step) as logs,
            stop_requests() as stop,
            self._bar() as bar,
            Batches(self._data.training, self._order, self._training.steps, self._device) as batches,
        ):
            self._clock = time.perf_counter()
            self._since = (self._step, self._clock)
            while self._step < self._training.steps:
                metrics = self._train_step(batches.take(self._step))
                bar.update()
                if self._due(self._step, self._training.validate_every):
                    metrics |= self._validate(logs)
                if metrics:
                    logs.scalars(self._step, metrics)
                    self._show(bar, metrics)
                self._keep(stop.signal)
                if metrics:
                    self._since = (self._step, time.perf_counter())

    @property
    def best(self) -> Validation:
        """The best validation so far."""
        return self._best

    @property
    def last(self) -> Validation:
        """The last validation so far."""
        return self._last

    @property
    def seconds(self) -> float:
        """Spent training, in this process and those before it."""
        return self._seconds

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self._training.steps

    def _train_step(self, x: Tensor) -> dict[str, float]:
        """One update; returns what is to be logged of it, if anything."""
        output = self._forward(x)
        due = self._due(self._step + 1, self._training.log_every)
        metrics = self._measure(output) if due else {}
        self._apply(output)
        self._step += 1
        if metrics:
            self._check()
        if due:
            samples = (self._step - self._since[0]) * self._training.batch_size
            metrics["throughput/samples_per_second"] = samples / (time.perf_counter() - self._since[1])
        return metrics

    def _forward(self, x: Tensor) -> StepOutput:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._training.precision == "bfloat16"):
            output = self._model(x)
        reconstruction = reconstruction_loss(self._settings.loss.reconstruction, output.prediction, output.target)
        return StepOutput(
            self._total(reconstruction, output.quantizer), reconstruction, output.latents, output.quantizer
        )

    def _apply(self, output: StepOutput) -> None:
        terms = {"reconstruction": output.reconstruction, "commitment": output.quantizer.commitment_loss}
        if self._settings.loss.entropy:
            terms["entropy"] = output.quantizer.entropy_loss
        terms["gradient"] = self._optimizer.gradients(output.total)
        good = self._watch.note(self._step, terms)
        self._optimizer.step(self._step, good)
        self._update_codes(good)

    def _update_codes(self, good: Tensor) -> None:
        quantizer = self._model.quantizer
        waited = quantizer.waits
        if waited:
            self._check()
        quantizer.update(good)
        if waited and self._step + 1 >= self._training.steps * _LONGEST_WAIT:
            quantizer.start()
        if waited and not quantizer.waits:
            self._say(f"step {self._step + 1}: codes start where the latents are; from here on they quantize")

    def _total(self, reconstruction: Tensor, output: QuantizerOutput) -> Tensor:
        loss = self._settings.loss
        total = reconstruction + loss.commitment * output.commitment_loss
        # Left out at weight zero, for 0 · inf is no number.
        return total + loss.entropy * output.entropy_loss if loss.entropy else total

    def _check(self) -> None:
        """Wait for the device, and refuse to go on after a step that was not finite."""
        found = self._watch.first()
        if found is None:
            return
        step, bad = found
        self._model.quantizer.discard()
        # A gradient is bad wherever a loss is.
        terms = [name for name in bad if name != "gradient"] or bad
        rows = self._order.batch(step)
        raise TrainingError(
            f"step {step + 1}: not finite: {', '.join(terms)}; the step was not applied. Its samples are training "
            f"samples {', '.join(map(str, rows[:8]))}{', ...' if len(rows) > 8 else ''}. Try a lower "
            "training.learning_rate, more training.warmup_steps, a training.gradient_clip, or data.normalize"
        )

    def _measure(self, output: StepOutput) -> dict[str, float]:
        """The batch's losses, raw, as they are before the step."""
        metrics = {
            "loss/total": float(output.total.detach()),
            "loss/reconstruction": float(output.reconstruction.detach()),
            "optimizer/learning_rate": learning_rate(self._training, self._step),
        }
        if not self._model.quantizer.waits:  # else nothing was quantized
            latents = output.latents.detach()
            commitment, entropy = raw_terms(self._model.quantizer.measure(latents, output.quantizer.indices))
            metrics |= {"loss/commitment": commitment, "loss/entropy": entropy}
        return metrics

    def _show(self, bar: "tqdm[Any]", metrics: dict[str, float]) -> None:
        usage = f", usage {self._last.metrics['codebook/usage']:.0%}" if self._last.metrics else ""
        if "loss/total" in metrics:
            speed = metrics["throughput/samples_per_second"]
            bar.set_postfix_str(f"loss {metrics['loss/total']:.4g}{usage}, {speed:,.0f} samples/s")

    def _validate(self, logs: Logs) -> dict[str, float]:
        self._check()
        self._model.quantizer.start()  # with what there is: a model that is kept has codes
        evaluation = evaluate(self._model, self._data.validation, self._settings.loss)
        metrics = validation_metrics(evaluation)
        bad = [tag for tag, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(f"step {self._step}: not finite: {', '.join(bad)}")
        self._last = Validation(self._step, metrics)
        counts = [torch.tensor(level.counts) for level in evaluation.levels]
        logs.counts(self._step, counts)
        if is_picture(self._data.spec):
            logs.images(self._step, "reconstruction/images", self._picture())
        self._say(
            f"step {self._step}: validation reconstruction {metrics['validation/loss/reconstruction']:.4g}, "
            f"usage {metrics['codebook/usage']:.1%}, perplexity {metrics['codebook/perplexity']:.1f}"
        )
        if self._is_best(metrics):
            self._best = self._last
            self._run.save_model(self._model.state_dict(), counts, evaluation.distinct)
        return metrics

    def _is_best(self, metrics: dict[str, float]) -> bool:
        name = self._training.best_metric
        best = self._best.metrics.get(name)
        if best is None:
            return True
        return metrics[name] < best if BEST_METRICS[name] else metrics[name] > best

    @torch.no_grad()
    def _picture(self) -> Tensor:
        x = self._data.validation.read(0, min(_PICTURES, len(self._data.validation)))
        self._model.eval()
        restored = self._model.decode(self._model.encode(x.to(self._device)), self._data.spec.size)
        self._model.train()
        return side_by_side(self._data.spec, x, restored.cpu())

    def _keep(self, number: int | None) -> None:
        """Save where a checkpoint is due, or where the signal of this number asked to stop; then stop."""
        if number or self._due(self._step, self._training.checkpoint_every):
            self._save()
        if number and self._step < self._training.steps:
            name = signal.Signals(number).name
            raise Stopped(number, f"stopped by {name} after step {self._step}, saved; --resume goes on from there")

    def _save(self) -> None:
        self._check()
        now = time.perf_counter()
        self._seconds += now - self._clock
        self._clock = now
        state = State(
            step=self._step,
            model=self._model.state_dict(),
            optimizer=self._optimizer.state_dict(),
            best=self._best,
            last=self._last,
            seconds=self._seconds,
        )
        save_checkpoint(self._run, state, self._training.keep_checkpoints)

    def _bar(self) -> "tqdm[Any]":
        return tqdm(
            total=self._training.steps, initial=self._step, desc="train", unit="step", disable=None, file=sys.stderr
        )
