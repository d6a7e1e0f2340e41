"""From settings to what a run needs: the data, the model, the device, and settings with nothing left open."""

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


@dataclass(frozen=True)
class TrainingSetup:
    """What a run needs.

    Attributes:
        settings: resolved.
        model: initialised from the seed, on `device`.
    """

    settings: RunSettings
    dataset: Dataset
    model: Autoencoder
    device: torch.device


def set_up(settings: RunSettings) -> TrainingSetup:
    """Open the data and build the model.

    Raises:
        ConfigError: settings that do not go together, or not with the data.
        DataError: data that cannot be used.
    """
    problems = Problems()
    device = problems.collect(lambda: resolve_device(settings.training.device), torch.device("cpu"))
    problems.collect(lambda: _check_learns(settings), None)
    problems.tell()  # before the data, whose scan may take a while
    dataset = open_dataset(settings.data, settings.seed)
    model_settings = problems.collect(lambda: resolve_model(settings.model, dataset.spec), settings.model)
    loss = problems.collect(lambda: resolve_reconstruction(settings.loss, dataset.spec.classes), settings.loss)
    problems.tell()
    training = settings.training
    if training.init_from:
        training = training.model_copy(update={"init_from": os.path.abspath(training.init_from)})
    resolved = settings.model_copy(
        update={"data": dataset.settings, "model": model_settings, "loss": loss, "training": training}
    )
    _check_memory(resolved, dataset)
    # Initialised on the CPU, so that a seed means the same weights on every device.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Autoencoder(resolved.model, dataset.spec, dataset.mean, dataset.scale)
    if not resolved.loss.entropy:
        model.quantizer.skip_entropy()
    return TrainingSetup(resolved, dataset, model.to(device), device)


class Problems:
    """Collects what several checks find, so that the user hears of all of it at once."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def collect(self, check: Callable[[], T], otherwise: T) -> T:
        """What `check` returns; where it raises a ConfigError, note it and return `otherwise`."""
        try:
            return check()
        except ConfigError as error:
            self._found += error.args
            return otherwise

    def tell(self) -> None:
        """Raise a ConfigError of all that was noted, if anything was."""
        if self._found:
            raise ConfigError(*self._found)


def _check_learns(settings: RunSettings) -> None:
    """Refuse codes that would never move, since the loss that moves them has no weight."""
    weights = {"entropy": settings.loss.entropy, "commitment": settings.loss.commitment}
    for key, way in settings.model.quantizer.updates.items():
        if way.required_loss and not weights[way.required_loss]:
            loss = (
                "codebook loss (weighted by loss.commitment)"
                if way.required_loss == "commitment"
                else f"{way.required_loss} loss"
            )
            raise ConfigError(
                f"model.quantizer.{key}.kind: {way.kind} updates codes by the {loss}, but loss."
                f"{way.required_loss} is 0; raise loss.{way.required_loss} or choose another {key}.kind"
            )


def _check_memory(settings: RunSettings, dataset: Dataset) -> None:
    """Refuse a step that would not fit: weights, gradients, AdamW's two moments, and what is kept of a batch.

    Nothing is allocated to know it.
    """
    with torch.device("meta"):
        model = Autoencoder(settings.model, dataset.spec, dataset.mean, dataset.scale)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    standing = 4 * parameters + sum(buffer.nbytes for buffer in model.buffers())
    advice = "lower the widths in model.encoder or the codebook size in model.quantizer"
    check_fits_memory(standing, "training this model", advice)
    size = settings.training.batch_size
    step = standing + _kept(model, settings.loss.reconstruction, max(1, BatchShard.for_rank(size).samples))
    check_fits_memory(step, f"training.batch_size: a step with {size:,} samples", "lower training.batch_size")


def _kept(model: Autoencoder, loss: str, batch_size: int) -> int:
    """The bytes that encoder, decoder and loss keep of a batch for their backward pass, of a model without memory; and
    those of its first gradient.
    """
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    spec = model.spec
    shape = (batch_size, *spec.size) if spec.classes else (batch_size, spec.channels, *spec.size)
    x = torch.empty(shape, device="meta", dtype=torch.int64 if spec.classes else torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        latents = model.latents(x)
        prediction = model.decoder(latents, spec.size)
        reconstruction_loss(loss, prediction, x)
    return x.nbytes + sum(kept.values()) + prediction.nbytes


def begin_from(prepared: TrainingSetup, say: Callable[[str], None]) -> None:
    """Give the model the weights, codes and normalisation of the run that `training.init_from` names, if it names one.

    Raises:
        ConfigError: that run's model is another, or its data are normalised otherwise.
        CheckpointError: it has no model.
    """
    path = prepared.settings.training.init_from
    if path is None:
        return
    run = RunDirectory(path)
    theirs, ours = run.settings().data.normalize, prepared.settings.data.normalize
    if theirs != ours:
        raise ConfigError(
            f"training.init_from: the run in {path} was trained with data.normalize: {theirs}, but this run has "
            f"{ours}; set data.normalize to {theirs}"
        )
    saved, _ = read_model(run.model)
    own = prepared.model.state_dict()
    other = [name for name in {**own, **saved.state} if not _alike(own.get(name), saved.state.get(name))]
    if other:
        raise ConfigError(
            f"training.init_from: the model in {path} has other tensors than this run's model (differing: "
            f"{', '.join(other[:4])}{', ...' if len(other) > 4 else ''}); use the model settings of {run.config}"
        )
    prepared.model.load_state_dict(saved.state)
    say(f"model initialised from {path}, step {saved.step} (weights, codes and normalisation)")


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape


@contextmanager
def deterministic() -> Iterator[None]:
    """Within, the same steps give the same bits; where a device has no such kernel, torch warns."""
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for to be deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing here reads memory before writing it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
