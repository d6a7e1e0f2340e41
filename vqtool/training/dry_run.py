"""The dry run: check everything a run needs and rehearse a few steps; nothing is kept."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vqtool.config import RunSettings
from vqtool.data import BatchOrder, SampleSpec
from vqtool.errors import ConfigError
from vqtool.metrics.evaluation import evaluate
from vqtool.models.chunks import chunk_rows
from vqtool.quantizers.kmeans import codes_drawn
from vqtool.runs.model_file import SavedModel, serialised
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.memory import convert_out_of_memory, mapped_memory, peak_memory
from vqtool.runtime.progress import PassProgress, pass_bar
from vqtool.training.batches import Batches
from vqtool.training.eta import validations_after
from vqtool.training.initialisation import initialisation_seconds, initialisations
from vqtool.training.setup import begin_from, deterministic, set_up
from vqtool.training.step import Stepper
from vqtool.training.train import ADVICE, check_apart, run_folder

Clock = Callable[[], float]
# Number of timed steps; fewer if they take longer than a second.
_TIMED_STEPS = 8
_TIMED_SECONDS = 1.0
# A validation passes some of its samples again, from indices of others: about as long as another chunk takes.
_CHUNKS_MORE = 1


@dataclass(frozen=True)
class DryRun:
    """What a run would do.

    Attributes:
        grid: the row-major shape behind L.
        memory_bytes: the peak memory of the process without mapped data, which the system can take back; on a GPU, of
            the GPU's memory.
        first_loss: the reconstruction loss of the first step, as the run would log it. If codebooks are initialised
            by k-means, that step does not quantize yet.
        seconds_per_step, seconds_per_validation, seconds_of_initialisation: estimates from a few steps, a few chunks,
            and the time of comparing latents with codes.
        seconds: of the whole run, by these.
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


def dry_run(settings: RunSettings, folder: Path | None = None, clock: Clock = time.perf_counter) -> DryRun:
    """Check everything that `train` would check, and describe the run.

    Args:
        folder: the run directory; None: runs/<name>.
        clock: returns seconds, counted from any moment.

    Raises:
        ConfigError, DataError, TrainingError: as `train`.
    """
    run = RunDirectory(folder or run_folder(settings))
    check_apart(run, settings)
    if not run.exists:
        run.check_free()
    libraries = mapped_memory()
    with convert_out_of_memory(ConfigError, ADVICE):
        rehearsal, held = peak_memory(lambda: _Rehearsal(settings, clock))
    prepared = rehearsal.prepared
    if prepared.device.type == "cuda":
        held = torch.cuda.max_memory_allocated(prepared.device)
    else:
        held -= max(0, mapped_memory() - libraries)
    model, dataset, training = prepared.model, prepared.dataset, prepared.settings.training
    return DryRun(
        run_dir=str(run.folder),
        exists=run.exists,
        device=str(prepared.device),
        spec=dataset.spec,
        normalize=dataset.settings.normalize,
        training_samples=len(dataset.training),
        validation_samples=len(dataset.validation),
        grid=list(model.grid(dataset.spec.size)),
        codebook_sizes=list(model.quantizer.codebook_sizes),
        codebook_dim=model.quantizer.dim,
        bits_per_sample=model.bits(dataset.spec.size),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=training.steps,
        epochs=training.steps * training.batch_size / len(dataset.training),
        memory_bytes=held,
        first_loss=rehearsal.first_loss,
        seconds_per_step=rehearsal.step,
        seconds_per_validation=rehearsal.validation,
        seconds_of_initialisation=rehearsal.initialisation,
        seconds=training.steps * rehearsal.step
        + validations_after(training, 0) * rehearsal.validation
        + rehearsal.initialisation,
    )


class _Rehearsal:
    """A few steps and a little of a validation, as the run would take them, and their seconds.

    Codebooks to be initialised by k-means get codes near the first batch's latents instead: good enough to quantize by,
    at no cost. The memory of k-means is held once, without its work.
    """

    def __init__(self, settings: RunSettings, clock: Clock) -> None:
        self._clock = clock
        self.prepared = set_up(settings)
        begin_from(self.prepared, lambda line: None)
        with deterministic(), pass_bar("dry run", _TIMED_STEPS + 5, "stages", delay=0, eta=False) as bar:
            self._rehearse_steps(bar)
            self.validation = self._timed_validation()
            bar.update()
            serialised(SavedModel(self.prepared.model.state_dict(), [], None, 0, {}, 0, None))

    def _rehearse_steps(self, bar: PassProgress) -> None:
        prepared = self.prepared
        training, samples = prepared.settings.training, prepared.dataset.training
        order = BatchOrder(len(samples), training.batch_size, prepared.settings.seed)
        stepper = Stepper(prepared, order)
        with Batches(samples, order, _TIMED_STEPS + 2, prepared.device, training.loader_threads) as batches:
            self.first_loss = self._step(stepper, batches, 0)
            bar.update()
            self.initialisation = initialisation_seconds(prepared, self._clock)
            bar.update()
            self._initialise()
            bar.update()
            self._step(stepper, batches, 1)  # the first one that quantizes loads kernels
            bar.update()
            self.step = self._timed_step(stepper, batches, bar)

    def _step(self, stepper: Stepper, batches: Batches, step: int) -> float:
        """Take a step that is logged; its reconstruction loss."""
        output = stepper.forward(batches.take(step))
        loss = stepper.metrics(step, output)["loss/reconstruction"]
        stepper.apply(step, output)
        stepper.check()
        return loss

    def _initialise(self) -> None:
        every = initialisations(self.prepared)
        with codes_drawn():
            self.prepared.model.quantizer.run_init()
        for each in every:
            each.hold_memory()

    def _timed_step(self, stepper: Stepper, batches: Batches, bar: PassProgress) -> float:
        """The mean seconds of a step, with its part of what is measured when a step is logged."""
        taken, began, measuring = 0, self._clock(), 0.0
        while taken < _TIMED_STEPS and (not taken or self._clock() - began < _TIMED_SECONDS):
            step = 2 + taken
            output = stepper.forward(batches.take(step))
            if not taken:
                before = self._clock()
                stepper.metrics(step, output)
                measuring = self._clock() - before
            stepper.apply(step, output)
            taken += 1
            bar.update()
        stepper.check()
        alone = (self._clock() - began - measuring) / taken
        return alone + measuring / self.prepared.settings.training.log_every

    def _timed_validation(self) -> float:
        """The seconds of a whole validation, from those of a chunk."""
        model, data, loss = self.prepared.model, self.prepared.dataset, self.prepared.settings.loss
        rows = chunk_rows(model, data.spec.size)
        evaluate(model, data.validation.first(2 * rows), loss)
        began = self._clock()
        evaluate(model, data.validation.first(rows), loss)
        return (self._clock() - began) * (-(-len(data.validation) // rows) + _CHUNKS_MORE)
