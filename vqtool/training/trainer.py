"""The training loop: take a step, validate, log, save a checkpoint; stop on a signal or a severe finding."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vqtool.config import BEST_METRICS
from vqtool.data import BatchOrder
from vqtool.errors import CheckpointError, Stopped, TrainingError
from vqtool.metrics.evaluation import eval_mode
from vqtool.runs.checkpoint import TrainingState, ValidationResult, save_checkpoint
from vqtool.runs.model_file import read_model, write_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.distributed import async_any_rank, barrier, fixed_global_batch, is_rank0, on_rank0
from vqtool.runtime.progress import StepProgress, step_bar
from vqtool.runtime.signals import raise_if_stopped
from vqtool.training.batches import BatchLoader
from vqtool.training.eta import INIT_DEADLINE_FRACTION, Eta, estimate_init_seconds
from vqtool.training.image_grid import is_image, reconstruction_grid
from vqtool.training.logs import MetricLogs
from vqtool.training.setup import TrainingSetup
from vqtool.training.step import Stepper
from vqtool.training.validation import Validator, format_validation

# Validation samples in the image of reconstructions.
_MAX_IMAGE_SAMPLES = 8


class Trainer:
    """Trains a model in a run directory. Every process of a job creates one; only rank 0 writes files.

    Args:
        setup: model, data and settings.
        run: run directory, already created with these settings.
        state: state to resume from; None: start at step 0.
        log: called with each line for the user, without its line ending.

    Attributes:
        best_validation: on rank 0, the validation with the best `training.best_metric` so far on the current data.
        last_validation: the last validation so far.
        seconds: on rank 0, training time up to the last checkpoint, including earlier processes of a resumed run.

    Raises:
        CheckpointError: `state` is that of another model.
    """

    def __init__(
        self, setup: TrainingSetup, run: RunDirectory, state: TrainingState | None, log: Callable[[str], None]
    ) -> None:
        self._setup = setup
        self._training = setup.settings.training
        self._data = setup.dataset
        self._model = setup.model
        self._run = run
        self._log = log
        self._order = BatchOrder(len(self._data.training), self._training.batch_size, setup.settings.seed)
        self._stepper = Stepper(setup, self._order)
        self._validator = Validator(setup, log)
        self._step = 0
        # Metrics of the last step that are not logged yet; None once all of `_after_step` is done.
        self._pending_metrics: dict[str, float] | None = None
        self._init_was_early = False
        self._saved_step = -1  # step of the last checkpoint without pending metrics
        self.best_validation = self.last_validation = ValidationResult(None, {})
        self.seconds = 0.0
        if state:
            self._load_state(state)

    def train(self) -> None:
        """Train to the last step.

        Raises:
            TrainingError: a loss, gradient or validation metric is not finite; the first such step was not applied. Or
                `training.stop_on_severe` is set and a severe finding repeats; the checkpoint is saved.
            Stopped: a stop signal was received; the state after the last completed step is saved.
            DataError: a file cannot be written; files saved before are intact.
        """
        training = self._training
        self._model.train()
        self._counted_until = time.perf_counter()  # `seconds` includes the time until then
        self._throughput_start = (self._step, self._counted_until)
        self._eta = Eta(training, estimate_init_seconds(self._setup) if is_rank0() else 0.0)
        with (
            async_any_rank(),
            fixed_global_batch(training.batch_size),
            self._open_logs() as logs,
            step_bar(training.steps, self._step, lambda: self._eta.seconds(self._step)) as bar,
            BatchLoader(
                self._data.training, self._order, training.steps, self._setup.device, training.loader_threads
            ) as loader,
        ):
            try:
                self._after_step(logs, bar)  # completes the step after which an earlier process was stopped
                while self._step < training.steps:
                    raise_if_stopped()
                    self._take_step(loader.load(self._step))
                    self._eta.after_step()
                    bar.update()
                    self._after_step(logs, bar)
            except Stopped as stopped:
                self._save_checkpoint(logs)
                barrier()  # torchrun ends all processes as soon as the first one exits
                raise Stopped(
                    stopped.signal, f"{stopped} after step {self._step}; checkpoint saved; --resume continues from it"
                ) from stopped

    def _take_step(self, x: Tensor) -> None:
        """Take a step with this process's shard `x` of the batch; set `_pending_metrics`, empty if it is not logged."""
        output = self._stepper.forward(x)
        is_logged = (self._step + 1) % self._training.log_every == 0 or self._step + 1 == self._training.steps
        metrics = self._stepper.metrics(self._step, output) if is_logged else {}
        self._stepper.backward_and_update(self._step, output)
        self._step += 1
        self._pending_metrics = metrics
        if is_logged:
            self._stepper.check_finite()
            start_step, start_time = self._throughput_start
            samples = (self._step - start_step) * self._training.batch_size
            metrics["throughput/samples_per_second"] = samples / (time.perf_counter() - start_time)

    def _after_step(self, logs: MetricLogs | None, bar: StepProgress) -> None:
        """Initialise codebooks, validate, log and save a checkpoint, each if due; no effect if already done.

        If a stop signal interrupts it, the resumed run repeats it.

        Raises:
            TrainingError: `training.stop_on_severe` is set and a severe finding repeats; the checkpoint is saved.
        """
        if self._pending_metrics is None:
            return
        self._init_codebooks()
        findings = None
        if self._is_due(self._training.validate_every):
            metrics, findings = self._validate(logs)
            self._pending_metrics |= metrics
        if self._pending_metrics:
            if logs:
                logs.scalars(self._step, self._pending_metrics, findings)
            self._update_bar(bar, self._pending_metrics)
            self._throughput_start = (self._step, time.perf_counter())
        self._pending_metrics = None
        if self._is_due(self._training.checkpoint_every):
            self._save_checkpoint(logs)
        if findings is not None and self._training.stop_on_severe:
            severe = on_rank0(lambda: self._validator.repeated_severe)
            if severe:
                self._save_checkpoint(logs)
                barrier()
                raise TrainingError(
                    f"step {self._step}: stopped: the same severe finding in two consecutive validations "
                    f"({'; '.join(severe)}); checkpoint saved"
                )

    def _is_due(self, every: int) -> bool:
        """Return whether the number of completed steps is a multiple of `every`, or all steps are completed."""
        return self._step % every == 0 or self._step == self._training.steps

    def _init_codebooks(self) -> None:
        """Initialise codebooks by k-means as soon as the sample of latents is complete.

        If a validation is due, or `INIT_DEADLINE_FRACTION` of all steps are taken, an incomplete sample is used.
        """
        quantizer = self._model.quantizer
        if not quantizer.needs_init:
            return
        quantizer.run_init(only_if_complete=True)
        deadline = self._training.steps * INIT_DEADLINE_FRACTION
        if quantizer.needs_init and (self._step >= deadline or self._is_due(self._training.validate_every)):
            quantizer.run_init()
            self._init_was_early = True
        if not quantizer.needs_init:
            self._eta.after_init()
            self._log(f"step {self._step}: codebook initialised by k-means; quantization is now active")

    def _validate(self, logs: MetricLogs | None) -> tuple[dict[str, float], list[dict[str, str]]]:
        """Validate in all processes; on rank 0 log the result, and write the model if it is the best.

        Returns:
            Metrics by tag, and the findings as in `Validator.diagnose`; no findings on ranks other than 0.
        """
        self._stepper.check_finite()
        self._model.hit_steps.synchronize()
        evaluation, metrics = self._validator.validate(self._step)
        self.last_validation = ValidationResult(self._step, metrics)
        self._eta.after_validation()
        if logs is None:
            return metrics, []
        logs.counts(self._step, evaluation.counts)
        if is_image(self._data.spec):
            logs.image(self._step, "reconstruction/images", self._reconstruction_image())
        sizes, seconds_left = self._model.quantizer.codebook_sizes, self._eta.seconds(self._step)
        self._log(format_validation(self._step, self._training.steps, metrics, sizes, seconds_left))
        if self._is_best(metrics):
            self.best_validation = self.last_validation
            write_model(self._run.model, self._validator.saved_model(self._step, evaluation, metrics))
        findings = self._validator.diagnose(self._step, evaluation, metrics)
        self._eta.after_report()
        return metrics, findings

    def _is_best(self, metrics: dict[str, float]) -> bool:
        """Return whether `training.best_metric` is better than in all validations before; a tie is not."""
        name = self._training.best_metric
        best = self.best_validation.metrics.get(name)
        if best is None:
            return True
        lower_is_better = BEST_METRICS[name]
        return metrics[name] < best if lower_is_better else metrics[name] > best

    @torch.no_grad()
    def _reconstruction_image(self) -> Tensor:
        """Return the first validation samples and their reconstructions as the image of `reconstruction_grid`."""
        x = self._data.validation.read(0, min(_MAX_IMAGE_SAMPLES, len(self._data.validation)))
        with eval_mode(self._model):
            indices = self._model.encode(x.to(self._setup.device))
            reconstruction = self._model.decode(indices, self._data.spec.size)
        return reconstruction_grid(self._data.spec, x, reconstruction.cpu())

    def _update_bar(self, bar: StepProgress, metrics: dict[str, float]) -> None:
        if "loss/total" in metrics:
            validation = self.last_validation.metrics
            usage = f"  usage {validation['codebook/usage']:.0%}" if validation else ""
            speed = metrics["throughput/samples_per_second"]
            bar.show(f"loss {metrics['loss/total']:.4g}{usage}  {speed:,.0f} samples/s")

    def _save_checkpoint(self, logs: MetricLogs | None) -> None:
        """Save the current state on rank 0, unless it is already saved. All processes must call it."""
        if self._saved_step == self._step:
            return
        self._stepper.check_finite()
        self._model.hit_steps.synchronize()
        if logs:
            logs.sync()
            now = time.perf_counter()
            self.seconds += now - self._counted_until
            self._counted_until = now
            state = TrainingState(
                step=self._step,
                model=self._model.state_dict(),
                optimizer=self._stepper.optimizer.state_dict(),
                last_validation=self.last_validation,
                pending_metrics=self._pending_metrics,
                init_was_early=self._init_was_early,
                seconds=self.seconds,
                data_sha256=self._data.sha256,
                last_codes=list(self._validator.last_codes),
            )
            save_checkpoint(self._run, state, self._training.keep_checkpoints)
        self._saved_step = self._step if self._pending_metrics is None else -1

    def _load_state(self, state: TrainingState) -> None:
        """Load a checkpoint; on rank 0 also read the best validation from the run's model, if the data are the same."""
        try:
            self._model.load_state_dict(state.model)
            self._stepper.optimizer.load_state_dict(state.optimizer)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self._run.checkpoints}: step-{state.step:09d}.pt does not match {self._run.config.name}: it is the "
                "checkpoint of another model; restore the files of this run, or use --overwrite to start it again"
            ) from error
        self._step, self.seconds = state.step, state.seconds
        self.last_validation, self._validator.last_codes = state.last_validation, state.last_codes
        self._pending_metrics, self._init_was_early = state.pending_metrics, state.init_was_early
        self._saved_step = state.step if state.pending_metrics is None else -1
        if is_rank0() and self._run.model.exists():
            try:
                best = read_model(self._run.model)[0]
                if best.data_sha256 == self._data.sha256:  # metrics on other data cannot be compared
                    self.best_validation = ValidationResult(best.step, best.metrics)
            except CheckpointError as error:
                self._log(f"{error}; the next validation replaces it")

    @contextmanager
    def _open_logs(self) -> Iterator[MetricLogs | None]:
        """On rank 0, open the metric logs and load the validator's history from them; on other ranks, yield None."""
        if not is_rank0():
            yield None
            return
        last_logged_step = self._step if self._pending_metrics is None else self._step - 1
        with MetricLogs(self._run, last_logged_step, self._log) as logs:
            self._validator.history = self._run.read_validations()
            yield logs
