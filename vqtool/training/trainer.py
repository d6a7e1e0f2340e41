"""The loop: step, log, validate, checkpoint, stop."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vqtool.config import BEST_METRICS
from vqtool.data import BatchOrder
from vqtool.errors import CheckpointError, Stopped, TrainingError
from vqtool.metrics.evaluation import Evaluation, eval_mode
from vqtool.runs.checkpoint import TrainingState, Validation, save_checkpoint
from vqtool.runs.model_file import read_model, write_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.distributed import async_any_rank, barrier, fixed_global_batch, is_rank0, on_rank0
from vqtool.runtime.progress import StepProgress, step_bar
from vqtool.runtime.signals import raise_if_stopped
from vqtool.training.batches import Batches
from vqtool.training.eta import Eta
from vqtool.training.image_grid import is_picture, side_by_side
from vqtool.training.initialisation import LONGEST_WAIT, initialisation_seconds
from vqtool.training.logs import MetricLogs
from vqtool.training.metrics import validation_line
from vqtool.training.setup import TrainingSetup
from vqtool.training.step import Stepper
from vqtool.training.validation import Validator

# Samples in a picture of reconstructions.
_PICTURES = 8


class Trainer:
    """Trains a prepared model in a run directory; of several processes the first alone writes.

    Args:
        prepared: the model and its data.
        run: a directory that holds these settings; in the first process.
        state: the state to resume from; None: start at step 0.
        say: what to call with a line for the user.
    """

    def __init__(
        self, prepared: TrainingSetup, run: RunDirectory, state: TrainingState | None, say: Callable[[str], None]
    ) -> None:
        self._prepared = prepared
        self._settings = prepared.settings
        self._training = prepared.settings.training
        self._data = prepared.dataset
        self._model = prepared.model
        self._device = prepared.device
        self._run = run
        self._say = say
        self._order = BatchOrder(len(self._data.training), self._training.batch_size, self._settings.seed)
        self._stepper = Stepper(prepared, self._order)
        self._step, self._seconds = 0, 0.0
        self._best = self._last = Validation(None, {})
        # What is still to be logged of the step; None once all is done that comes after it.
        self._pending: dict[str, float] | None = None
        self._saved = -1  # the step of the last checkpoint, if it was complete
        self._early = False
        self._validator = Validator(prepared, say)
        if state:
            self._go_on(state)

    def train(self) -> None:
        """Train to the last step.

        Raises:
            TrainingError: a loss or a gradient is not finite; the step was not applied. Or a finding stays severe.
            Stopped: a signal came; the state after the last step is saved.
            DataError: a file cannot be written; files saved before are intact.
        """
        self._model.train()
        self._clock = time.perf_counter()
        self._since = (self._step, self._clock)
        self._eta = Eta(self._training, initialisation_seconds(self._prepared) if is_rank0() else 0.0)
        with (
            async_any_rank(),
            fixed_global_batch(self._training.batch_size),
            self._logs() as logs,
            step_bar(self._training.steps, self._step, lambda: self._eta.seconds(self._step)) as bar,
            self._batches() as batches,
        ):
            try:
                self._complete(logs, bar)
                while self._step < self._training.steps:
                    raise_if_stopped()
                    self._take_step(batches.take(self._step))
                    self._eta.after_step()
                    bar.update()
                    self._complete(logs, bar)
            except Stopped as stopped:
                self._save(logs)
                barrier()  # a job is ended by the first process that leaves
                raise Stopped(
                    stopped.signal, f"{stopped} after step {self._step}; checkpoint saved; --resume continues from it"
                ) from stopped

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

    def _go_on(self, state: TrainingState) -> None:
        try:
            self._model.load_state_dict(state.model)
            self._stepper.optimizer.load_state_dict(state.optimizer)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self._run.checkpoints}: step-{state.step:09d}.pt does not match {self._run.config.name}: it is the "
                "checkpoint of another model; restore the files of this run, or use --overwrite to start it again"
            ) from error
        self._step, self._seconds = state.step, state.seconds
        self._last, self._pending, self._early = state.last, state.pending, state.early
        self._validator.codes = state.codes
        self._saved = state.step if state.pending is None else -1
        if is_rank0() and self._run.model.exists():
            try:
                best = read_model(self._run.model)[0]
                if best.data_sha256 == self._data.sha256:  # else, no figure to compare with
                    self._best = Validation(best.step, best.metrics)
            except CheckpointError as error:
                self._say(f"{error}; the next validation replaces it")

    def _due(self, every: int) -> bool:
        return self._step % every == 0 or self._step == self._training.steps

    def _take_step(self, x: Tensor) -> None:
        """One update; what is to be logged of it becomes pending."""
        output = self._stepper.forward(x)
        logged = (self._step + 1) % self._training.log_every == 0 or self._step + 1 == self._training.steps
        metrics = self._stepper.metrics(self._step, output) if logged else {}
        self._stepper.apply(self._step, output)
        self._step += 1
        self._pending = metrics
        if logged:
            self._stepper.check()
            samples = (self._step - self._since[0]) * self._training.batch_size
            metrics["throughput/samples_per_second"] = samples / (time.perf_counter() - self._since[1])

    def _complete(self, logs: MetricLogs | None, bar: StepProgress) -> None:
        """What comes after a step: codes start, validation, logs, checkpoint. Interrupted, it can be done again."""
        if self._pending is None:
            return
        self._start_codes()
        found = None
        if self._due(self._training.validate_every):
            metrics, found = self._validate(logs)
            self._pending |= metrics
        if self._pending:
            if logs:
                logs.scalars(self._step, self._pending, found)
            self._show(bar, self._pending)
            self._since = (self._step, time.perf_counter())
        self._pending = None
        if self._due(self._training.checkpoint_every):
            self._save(logs)
        if found is not None and self._training.stop_on_severe:
            severe = on_rank0(lambda: self._validator.severe)
            if severe:
                self._save(logs)
                barrier()
                raise TrainingError(
                    f"step {self._step}: stopped: the same severe finding in two consecutive validations "
                    f"({'; '.join(severe)}); checkpoint saved"
                )

    def _start_codes(self) -> None:
        """Initialise codebooks once the sample is complete, or before a validation or after a tenth of the run."""
        quantizer = self._model.quantizer
        if not quantizer.needs_init:
            return
        quantizer.run_init(only_if_complete=True)
        early = self._step >= self._training.steps * LONGEST_WAIT or self._due(self._training.validate_every)
        if quantizer.needs_init and early:
            quantizer.run_init()
            self._early = True
        if not quantizer.needs_init:
            self._eta.after_initialisation()
            self._say(f"step {self._step}: codebook initialised by k-means; quantization is now active")

    def _show(self, bar: StepProgress, metrics: dict[str, float]) -> None:
        usage = f"  usage {self._last.metrics['codebook/usage']:.0%}" if self._last.metrics else ""
        if "loss/total" in metrics:
            speed = metrics["throughput/samples_per_second"]
            bar.show(f"loss {metrics['loss/total']:.4g}{usage}  {speed:,.0f} samples/s")

    def _validate(self, logs: MetricLogs | None) -> tuple[dict[str, float], list[dict[str, str]]]:
        """The metrics of a validation pass, and what they find."""
        self._stepper.check()
        self._model.hit_times.agree()
        evaluation, metrics = self._validator.validate(self._step)
        self._last = Validation(self._step, metrics)
        self._eta.after_validation()
        if logs is None:
            return metrics, []
        self._draw(logs, evaluation)
        sizes, left = self._model.quantizer.codebook_sizes, self._eta.seconds(self._step)
        self._say(validation_line(self._step, self._training.steps, metrics, sizes, left))
        if self._is_best(metrics):
            self._best = self._last
            write_model(self._run.model, self._validator.saved(self._step, evaluation, metrics))
        found = self._validator.diagnose(self._step, evaluation, metrics)
        self._eta.after_report()
        return metrics, found

    def _draw(self, logs: MetricLogs, evaluation: Evaluation) -> None:
        logs.counts(self._step, evaluation.counts)
        if is_picture(self._data.spec):
            logs.images(self._step, "reconstruction/images", self._picture())

    def _is_best(self, metrics: dict[str, float]) -> bool:
        name = self._training.best_metric
        best = self._best.metrics.get(name)
        if best is None:
            return True
        return metrics[name] < best if BEST_METRICS[name] else metrics[name] > best

    @torch.no_grad()
    def _picture(self) -> Tensor:
        x = self._data.validation.read(0, min(_PICTURES, len(self._data.validation)))
        with eval_mode(self._model):
            restored = self._model.decode(self._model.encode(x.to(self._device)), self._data.spec.size)
        return side_by_side(self._data.spec, x, restored.cpu())

    def _save(self, logs: MetricLogs | None) -> None:
        if self._saved == self._step:
            return
        self._stepper.check()
        self._model.hit_times.agree()
        if logs:
            self._write_checkpoint(logs)
        self._saved = self._step if self._pending is None else -1

    def _write_checkpoint(self, logs: MetricLogs) -> None:
        logs.sync()
        now = time.perf_counter()
        self._seconds += now - self._clock
        self._clock = now
        state = TrainingState(
            step=self._step,
            model=self._model.state_dict(),
            optimizer=self._stepper.optimizer.state_dict(),
            last=self._last,
            pending=self._pending,
            early=self._early,
            seconds=self._seconds,
            data_sha256=self._data.sha256,
            codes=list(self._validator.codes),
        )
        save_checkpoint(self._run, state, self._training.keep_checkpoints)

    @contextmanager
    def _logs(self) -> Iterator[MetricLogs | None]:
        if not is_rank0():
            yield None
            return
        with MetricLogs(self._run, self._step if self._pending is None else self._step - 1, self._say) as logs:
            self._validator.history = self._run.validations()
            yield logs

    def _batches(self) -> Batches:
        settings = self._training
        return Batches(self._data.training, self._order, settings.steps, self._device, settings.loader_threads)
