"""A dry run: everything that a run needs is checked, one batch goes through the model, nothing is trained."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vqtool.config import RunSettings
from vqtool.data import BatchOrder, SampleSpec
from vqtool.losses import reconstruction_loss
from vqtool.run import Run
from vqtool.training.prepare import Prepared, prepare, standing_bytes
from vqtool.training.train import run_folder


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        grid: the row-major shape behind L.
        memory_bytes: weights, gradients, optimizer state and what one batch keeps for its backward pass.
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
    if not run.exists:
        run.check_free()
    prepared = prepare(settings)
    model, dataset, training = prepared.model, prepared.dataset, prepared.settings.training
    loss, kept = _one_batch(prepared)
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
        memory_bytes=kept + standing_bytes(model),
        first_loss=loss,
    )


def _one_batch(prepared: Prepared) -> tuple[float, int]:
    """The reconstruction loss of the first batch, and the bytes that its forward pass keeps for the backward one."""
    order = BatchOrder(len(prepared.dataset.training), prepared.settings.training.batch_size, prepared.settings.seed)
    x = prepared.dataset.training.take(order.batch(0)).to(prepared.device)
    kept: dict[int, int] = {}
    if prepared.model.quantizer.waits:  # so that codes have a first sample
        with torch.no_grad():
            prepared.model(x)
        prepared.model.quantizer.update()
        prepared.model.quantizer.start()

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    bfloat16 = prepared.settings.training.precision == "bfloat16"
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast(prepared.device.type, torch.bfloat16, enabled=bfloat16):
            output = prepared.model(x)
        loss = reconstruction_loss(prepared.settings.loss.reconstruction, output.prediction, output.target)
    if loss.requires_grad:
        loss.backward()
    prepared.model.quantizer.discard()
    return float(loss.detach()), sum(kept.values()) + x.nbytes
