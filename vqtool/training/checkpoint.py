"""Checkpoints: all that resuming needs. They hold tensors, numbers and names alone, and load as such."""

import zipfile
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vqtool.errors import CheckpointError
from vqtool.files import replacing
from vqtool.run import Run

_VERSION = 1


@dataclass(frozen=True)
class Validation:
    """What a validation showed.

    Attributes:
        step: after which it was; None where there was none.
        metrics: all that was logged of it, by tag.
    """

    step: int | None
    metrics: dict[str, float]


@dataclass(frozen=True)
class State:
    """A training run between two steps.

    Attributes:
        step: how many steps are done. With the seed it says where in the data the run stands.
        model, optimizer: their state dicts.
        best, last: the best validation so far, and the last.
        seconds: spent training.
    """

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    best: Validation
    last: Validation
    seconds: float


def save_checkpoint(run: Run, state: State, keep: int) -> None:
    """Write a checkpoint, then remove all but the last `keep`."""
    with replacing(run.checkpoints / f"step-{state.step:09d}.pt") as part:
        torch.save({"version": _VERSION, **_fields(state)}, part)
    for old in sorted(run.checkpoints.glob("step-*.pt"))[:-keep]:
        old.unlink()


def load_checkpoint(run: Run) -> State | None:
    """The newest checkpoint; None where there is none.

    Raises:
        CheckpointError: it is damaged, or of another version.
    """
    newest = max(run.checkpoints.glob("step-*.pt"), default=None)
    if newest is None:
        return None
    try:
        with zipfile.ZipFile(newest) as archive:
            if archive.testzip():  # torch does not compare the checksums that it wrote
                raise zipfile.BadZipFile("a checksum differs")
        fields = torch.load(newest, map_location="cpu", weights_only=True)
        version = fields.pop("version")
        if version == _VERSION:
            return State(**{**fields, "best": Validation(**fields["best"]), "last": Validation(**fields["last"])})
    except Exception as error:  # a damaged file can make its parser fail in any way
        raise CheckpointError(f"{newest}: damaged; remove it to resume from the one before") from error
    raise CheckpointError(f"{newest}: written by another version of vqtool")


def _fields(state: State) -> dict[str, Any]:
    return {**vars(state), "best": asdict(state.best), "last": asdict(state.last)}
