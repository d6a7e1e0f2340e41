"""A dry run: everything that a run needs is checked, two steps are rehearsed, nothing is kept."""

from dataclasses import dataclass
from pathlib import Path

import torch

from vqtool.chunks import chunk_rows
from vqtool.config import RunSettings
from vqtool.data import BatchOrder, SampleSpec
from vqtool.errors import ConfigError
from vqtool.evaluation import evaluate
from vqtool.memory import mapped_memory, out_of_memory_told, peak_memory
from vqtool.model_file import SavedModel, serialised
from vqtool.run import Run
from vqtool.training.prepare import Prepared, begin_from, prepare
from vqtool.training.step import Stepper
from vqtool.training.train import ADVICE, check_apart, run_folder


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        grid: the row-major shape behind L.
        memory_bytes: the most that the process would hold, but for mapped data, which need not stay in memory; on a
            GPU, of its memory.
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


def plan_run(settings: RunSettings, folder: Path | None = None) -> Plan:
    """Check all that `train` would, and say what it would do.

    Raises:
        ConfigError, DataError: as `train`.
    """
    run = Run(folder or run_folder(settings))
    check_apart(run, settings)
    if not run.exists:
        run.check_free()
    libraries = mapped_memory()
    with out_of_memory_told(ConfigError, ADVICE):
        (prepared, loss), held = peak_memory(lambda: _rehearsed(settings))
    if prepared.device.type == "cuda":
        held = torch.cuda.max_memory_allocated(prepared.device)
    else:
        held -= max(0, mapped_memory() - libraries)
    model, dataset, training = prepared.model, prepared.dataset, prepared.settings.training
    return Plan(
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
        first_loss=loss,
    )


def _rehearsed(settings: RunSettings) -> tuple[Prepared, float]:
    """All up to two steps, and a little of a validation; the reconstruction loss of the first step."""
    prepared = prepare(settings)
    begin_from(prepared, lambda line: None)
    data, model = prepared.dataset, prepared.model
    order = BatchOrder(len(data.training), prepared.settings.training.batch_size, prepared.settings.seed)
    stepper = Stepper(prepared, order)
    losses = []
    for step in range(2):
        x = data.training.take(order.batch(step)).to(prepared.device)
        if model.quantizer.waits:  # a first sample, so that what is rehearsed quantizes
            with torch.no_grad():
                stepper.forward(x)
            model.quantizer.update()
            model.quantizer.start()
        output = stepper.forward(x)
        losses.append(stepper.measure(step, output)["loss/reconstruction"])
        stepper.apply(step, output)
    evaluate(model, data.validation.first(2 * chunk_rows(model, data.spec.size)), prepared.settings.loss)
    serialised(SavedModel(model.state_dict(), [], None, 0, {}, 0, None))
    return prepared, losses[0]
