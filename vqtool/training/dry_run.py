"""Dry run: check everything that a run needs, and time a few steps, without writing to the run directory."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from vqtool.config import RunSettings
from vqtool.data import BatchOrder, SampleSpec
from vqtool.errors import ConfigError
from vqtool.metrics.evaluation import evaluate
from vqtool.models.chunks import chunk_rows
from vqtool.quantizers.kmeans import skip_kmeans_fit
from vqtool.runs.model_file import SavedModel, serialize_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.memory import convert_out_of_memory, mapped_memory, peak_memory
from vqtool.runtime.progress import PassProgress, pass_bar
from vqtool.training.batches import BatchLoader
from vqtool.training.eta import Clock, estimate_init_seconds, pending_inits, validations_after
from vqtool.training.setup import deterministic, load_init_from, set_up
from vqtool.training.step import Stepper
from vqtool.training.train import OUT_OF_MEMORY_ADVICE, check_not_data_path, default_run_dir

# Steps are timed until one of these limits is reached.
_MAX_TIMED_STEPS = 8
_MAX_TIMED_SECONDS = 1.0
# The loss with shuffled indices, computed in each validation, takes about as long as one more chunk.
_SHUFFLED_LOSS_CHUNKS = 1


@dataclass(frozen=True)
class DryRun:
    """Result of a dry run: what a run would do.

    Attributes:
        run_dir: run directory.
        exists: whether it already contains a run.
        device: device to train on, such as `cuda:0`.
        spec: shape, layout and dtype of the samples.
        normalize: kind of normalisation.
        training_samples, validation_samples: number of samples of each split.
        grid: shape of the grid of the L tokens of a sample, in row-major order.
        codebook_sizes: K of each level.
        codebook_dim: D.
        bits_per_sample: L times the sum over levels of log2 K.
        parameters: number of parameters that are trained by gradient.
        steps, epochs: length of the run.
        memory_bytes: peak resident memory of the process, without the mapped data files, which the system can free. On
            a GPU, peak of the memory that PyTorch allocated there.
        first_loss: reconstruction loss of the first step. If codebooks are initialised by k-means, that step does not
            quantize yet.
        seconds_per_step, seconds_per_validation, seconds_of_initialisation: estimates from a few steps, a few chunks,
            and the measured speed of k-means.
        seconds: estimate for the whole run, from step 0.
    """

    run_dir: str
    exists: bool
    device: str
    spec: SampleSpec
    normalize: str
    training_samples: int
    validation_samples: int
    grid: list[int]
    codebook_sizes: list[int]
    codebook_dim: int
    bits_per_sample: float
    parameters: int
    steps: int
    epochs: float
    memory_bytes: int
    first_loss: float
    seconds_per_step: float
    seconds_per_validation: float
    seconds_of_initialisation: float
    seconds: float


def dry_run(settings: RunSettings, run_dir: Path | None = None, clock: Clock = time.perf_counter) -> DryRun:
    """Check settings, data and memory as `train` does, take a few steps, and describe the run.

    The run directory is not changed. A run in it is not an error, and its settings are not compared.

    Args:
        settings: settings of the run.
        run_dir: the run directory; None: `default_run_dir`.
        clock: returns seconds since an arbitrary moment.

    Raises:
        ConfigError, DataError, TrainingError: as `train`.
        CheckpointError: `run_dir` is not a run but contains files that a run would overwrite, or `training.init_from`
            has no usable model.
    """
    run = RunDirectory(run_dir or default_run_dir(settings))
    check_not_data_path(run, settings)
    if not run.exists:
        run.check_no_other_files()
    mapped_before = mapped_memory()
    with convert_out_of_memory(ConfigError, OUT_OF_MEMORY_ADVICE):
        trial, memory_bytes = peak_memory(lambda: _TrialRun(settings, clock))
    setup = trial.setup
    if setup.device.type == "cuda":
        memory_bytes = torch.cuda.max_memory_allocated(setup.device)
    else:
        memory_bytes -= max(0, mapped_memory() - mapped_before)
    model, dataset, training = setup.model, setup.dataset, setup.settings.training
    return DryRun(
        run_dir=str(run.folder),
        exists=run.exists,
        device=str(setup.device),
        spec=dataset.spec,
        normalize=dataset.settings.normalize,
        training_samples=len(dataset.training),
        validation_samples=len(dataset.validation),
        grid=list(model.grid(dataset.spec.size)),
        codebook_sizes=list(model.quantizer.codebook_sizes),
        codebook_dim=model.quantizer.dim,
        bits_per_sample=model.bits_per_sample(dataset.spec.size),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=training.steps,
        epochs=training.steps * training.batch_size / len(dataset.training),
        memory_bytes=memory_bytes,
        first_loss=trial.first_loss,
        seconds_per_step=trial.seconds_per_step,
        seconds_per_validation=trial.seconds_per_validation,
        seconds_of_initialisation=trial.init_seconds,
        seconds=training.steps * trial.seconds_per_step
        + validations_after(training, 0) * trial.seconds_per_validation
        + trial.init_seconds,
    )


class _TrialRun:
    """Takes a few training steps and validates a few chunks, as the run would, and times them.

    Where the run would initialise codes by k-means, the trial run draws them at random near latents of the first batch.
    This is fast, and quantization takes as long as with k-means codes. Then k-means with two codes reaches the peak
    memory of the real k-means in little time.

    Attributes:
        setup: model, data and settings.
        first_loss: reconstruction loss of the first step.
        seconds_per_step: estimated mean time of a step, with the metrics of logged steps.
        seconds_per_validation: estimated time of a whole validation.
        init_seconds: upper estimate of the time of k-means, from its measured speed; 0 if the run does not need it.
    """

    def __init__(self, settings: RunSettings, clock: Clock) -> None:
        self._clock = clock
        self.setup = set_up(settings)
        load_init_from(self.setup, lambda line: None)
        with deterministic(), pass_bar("dry run", _MAX_TIMED_STEPS + 5, "stages", delay=0, eta=False) as bar:
            self._take_steps(bar)
            self.seconds_per_validation = self._time_validation()
            bar.update()
            # The run holds the model once more, in memory, when it writes the file.
            serialize_model(SavedModel(self.setup.model.state_dict(), [], None, 0, {}, 0, None))

    def _take_steps(self, bar: PassProgress) -> None:
        """Take one step as the run starts, initialise codebooks, take a step to warm up, and time the next ones."""
        setup, samples, training = self.setup, self.setup.dataset.training, self.setup.settings.training
        order = BatchOrder(len(samples), training.batch_size, setup.settings.seed)
        stepper = Stepper(setup, order)
        with BatchLoader(samples, order, _MAX_TIMED_STEPS + 2, setup.device, training.loader_threads) as loader:
            self.first_loss = self._take_logged_step(stepper, loader, 0)
            bar.update()
            self.init_seconds = estimate_init_seconds(setup, self._clock)
            bar.update()
            inits = pending_inits(setup)
            with skip_kmeans_fit():
                setup.model.quantizer.run_init()
            for init in inits:
                init.allocate_memory()
            bar.update()
            self._take_logged_step(stepper, loader, 1)  # not timed: the first step that quantizes loads kernels
            bar.update()
            self.seconds_per_step = self._time_steps(stepper, loader, 2, bar)

    def _take_logged_step(self, stepper: Stepper, loader: BatchLoader, step: int) -> float:
        """Take a step, compute its metrics, and return its reconstruction loss."""
        output = stepper.forward(loader.load(step))
        loss = stepper.metrics(step, output)["loss/reconstruction"]
        stepper.backward_and_update(step, output)
        stepper.check_finite()
        return loss

    def _time_steps(self, stepper: Stepper, loader: BatchLoader, first_step: int, bar: PassProgress) -> float:
        """Return the mean seconds per step over one to eight steps.

        Metrics are computed and timed once, and count as if computed every `training.log_every` steps.
        """
        steps, start, metrics_seconds = 0, self._clock(), 0.0
        while steps < _MAX_TIMED_STEPS and (not steps or self._clock() - start < _MAX_TIMED_SECONDS):
            step = first_step + steps
            output = stepper.forward(loader.load(step))
            if not steps:
                metrics_start = self._clock()
                stepper.metrics(step, output)
                metrics_seconds = self._clock() - metrics_start
            stepper.backward_and_update(step, output)
            steps += 1
            bar.update()
        stepper.check_finite()
        seconds_without_metrics = (self._clock() - start - metrics_seconds) / steps
        return seconds_without_metrics + metrics_seconds / self.setup.settings.training.log_every

    def _time_validation(self) -> float:
        """Return the estimated seconds of a whole validation, from the time of one chunk."""
        model, dataset, loss = self.setup.model, self.setup.dataset, self.setup.settings.loss
        rows = chunk_rows(model, dataset.spec.size)
        evaluate(model, dataset.validation.first(2 * rows), loss)  # loads kernels
        start = self._clock()
        evaluate(model, dataset.validation.first(rows), loss)
        chunks = -(-len(dataset.validation) // rows) + _SHUFFLED_LOSS_CHUNKS
        return (self._clock() - start) * chunks
