"""Build what a training run needs from its settings: data, model and device, with all settings resolved."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from vqtool.config import RunSettings
from vqtool.data import Dataset, open_dataset
from vqtool.errors import ConfigError
from vqtool.models.autoencoder import Autoencoder, resolve_model
from vqtool.models.losses import reconstruction_loss, resolve_reconstruction
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.device import resolve_device
from vqtool.runtime.distributed import BatchShard
from vqtool.runtime.memory import check_fits_memory

T = TypeVar("T")
_MAX_LISTED_TENSORS = 4


@dataclass(frozen=True)
class TrainingSetup:
    """Data, model and device of a run.

    Attributes:
        settings: resolved settings; only `training.device` can still be `auto`.
        dataset: training and validation split.
        model: model on `device`, with weights initialised from the seed (see `load_init_from`).
        device: device to train on.
    """

    settings: RunSettings
    dataset: Dataset
    model: Autoencoder
    device: torch.device


def set_up(settings: RunSettings) -> TrainingSetup:
    """Resolve the settings, open the data and build the model.

    Raises:
        ConfigError: settings do not fit the data or each other, or the device is missing; lists all errors that can be
            found together.
        DataError: the data cannot be used, or a training step would not fit in main memory.
        Stopped: a stop signal was received while the data were scanned.
    """
    errors = ErrorCollector()
    device = errors.check(lambda: resolve_device(settings.training.device), torch.device("cpu"))
    errors.check(lambda: _check_codes_are_updated(settings), None)
    errors.raise_if_any()  # before the data are scanned, which can take long
    dataset = open_dataset(settings.data, settings.seed)
    model_settings = errors.check(lambda: resolve_model(settings.model, dataset.spec), settings.model)
    loss = errors.check(lambda: resolve_reconstruction(settings.loss, dataset.spec.classes), settings.loss)
    errors.raise_if_any()
    training = settings.training
    if training.init_from:
        training = training.model_copy(update={"init_from": os.path.abspath(training.init_from)})
    resolved = settings.model_copy(
        update={"data": dataset.settings, "model": model_settings, "loss": loss, "training": training}
    )
    _check_memory(resolved, dataset)
    # Initialised on the CPU, so that a seed gives the same weights on every device.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Autoencoder(resolved.model, dataset.spec, dataset.mean, dataset.scale)
    if not resolved.loss.entropy:
        model.quantizer.skip_entropy_loss()
    return TrainingSetup(resolved, dataset, model.to(device), device)


class ErrorCollector:
    """Collects the ConfigErrors of several checks, to raise them as one."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    def check(self, function: Callable[[], T], default: T) -> T:
        """Return `function()`; if it raises a ConfigError, keep its messages and return `default`."""
        try:
            return function()
        except ConfigError as error:
            self._messages += error.args
            return default

    def raise_if_any(self) -> None:
        """Raise a ConfigError with all messages so far, if there are any."""
        if self._messages:
            raise ConfigError(*self._messages)


def _check_codes_are_updated(settings: RunSettings) -> None:
    """Check that the loss that a codebook update requires (`required_loss`, if any) has a weight above 0.

    Raises:
        ConfigError: the weight is 0; names the first such update.
    """
    weights = {"entropy": settings.loss.entropy, "commitment": settings.loss.commitment}
    for key, update in settings.model.quantizer.updates.items():
        if update.required_loss and not weights[update.required_loss]:
            loss = (
                "codebook loss (weighted by loss.commitment)"
                if update.required_loss == "commitment"
                else f"{update.required_loss} loss"
            )
            raise ConfigError(
                f"model.quantizer.{key}.kind: {update.kind} updates codes by the {loss}, but loss."
                f"{update.required_loss} is 0; raise loss.{update.required_loss} or choose another {key}.kind"
            )


def _check_memory(settings: RunSettings, dataset: Dataset) -> None:
    """Raise a DataError if a training step does not fit in the free main memory, whatever the device is.

    Counts weights, gradients, AdamW's two moments, buffers, and `_activation_bytes` of this process's shard of a batch.
    The model is built on the meta device, which allocates nothing.
    """
    with torch.device("meta"):
        model = Autoencoder(settings.model, dataset.spec, dataset.mean, dataset.scale)
    parameter_bytes = sum(parameter.nbytes for parameter in model.parameters())
    state_bytes = 4 * parameter_bytes + sum(buffer.nbytes for buffer in model.buffers())
    advice = "lower the widths in model.encoder or the codebook size in model.quantizer"
    check_fits_memory(state_bytes, "training this model", advice)
    batch_size = settings.training.batch_size
    shard_samples = max(1, BatchShard.for_rank(batch_size).samples)
    step_bytes = state_bytes + _activation_bytes(model, settings.loss.reconstruction, shard_samples)
    what = f"training.batch_size: a step with {batch_size:,} samples"
    check_fits_memory(step_bytes, what, "lower training.batch_size")


def _activation_bytes(model: Autoencoder, loss: str, batch_size: int) -> int:
    """Return the bytes of a batch's input, of the tensors saved for backward, and of the prediction's gradient.

    Counts encoder, decoder and reconstruction loss, in float32; not the quantizer.

    Args:
        model: model on the meta device.
        loss: `mse`, `l1`, `cosine` or `cross_entropy`.
        batch_size: samples per step of this process.
    """
    saved: dict[int, int] = {}  # bytes by storage, as several saved tensors can share one
    parameter_storages = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def on_save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameter_storages:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    spec = model.spec
    shape = (batch_size, *spec.size) if spec.classes else (batch_size, spec.channels, *spec.size)
    x = torch.empty(shape, device="meta", dtype=torch.int64 if spec.classes else torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(on_save, lambda tensor: tensor):
        latents = model.latents(x)
        prediction = model.decoder(latents, spec.size)
        reconstruction_loss(loss, prediction, x)
    return x.nbytes + sum(saved.values()) + prediction.nbytes


def load_init_from(setup: TrainingSetup, log: Callable[[str], None]) -> None:
    """Load the best model of the run that `training.init_from` names, if any: weights, codes and normalisation.

    The model then starts at step 0, with a new optimizer.

    Args:
        log: called with one line for the user after loading.

    Raises:
        ConfigError: that run's model has other tensors, or its `data.normalize` differs.
        CheckpointError: that directory is not a run, or its model is missing or damaged.
    """
    path = setup.settings.training.init_from
    if path is None:
        return
    run = RunDirectory(path)
    normalize, run_normalize = setup.settings.data.normalize, run.settings().data.normalize
    if run_normalize != normalize:
        raise ConfigError(
            f"training.init_from: the run in {path} was trained with data.normalize: {run_normalize}, but this run has "
            f"{normalize}; set data.normalize to {run_normalize}"
        )
    saved, _ = read_model(run.model)
    shapes = {name: tensor.shape for name, tensor in setup.model.state_dict().items()}
    saved_shapes = {name: tensor.shape for name, tensor in saved.state.items()}
    differing = [name for name in {**shapes, **saved_shapes} if shapes.get(name) != saved_shapes.get(name)]
    if differing:
        listed = ", ".join(differing[:_MAX_LISTED_TENSORS]) + (", ..." if len(differing) > _MAX_LISTED_TENSORS else "")
        raise ConfigError(
            f"training.init_from: the model in {path} has other tensors than this run's model (differing: {listed}); "
            f"use the model settings of {run.config}"
        )
    setup.model.load_state_dict(saved.state)
    log(f"model initialised from {path}, step {saved.step} (weights, codes and normalisation)")


@contextmanager
def deterministic() -> Iterator[None]:
    """Context in which PyTorch uses deterministic algorithms, and warns of an operation that has none."""
    was_enabled = torch.are_deterministic_algorithms_enabled()
    was_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled_memory = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS to be deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    # No code here reads uninitialised memory, so filling it would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_enabled, warn_only=was_warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled_memory  # type: ignore[attr-defined]
