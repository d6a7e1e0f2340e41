"""Checkpoints: the state of a training run, for resuming. They contain tensors, numbers and names only.

A checkpoint is a .pt file and, written after it, a marker: a JSON file with the name and the SHA-256 of the .pt file. A
checkpoint without its marker is incomplete.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from vqtool.errors import CheckpointError
from vqtool.runtime.files import check_format_version, read_json, error_reason, atomic_write, write_json
from vqtool.runs.run_directory import RunDirectory

# Version of the format of a checkpoint and its marker; a reader refuses any other.
FORMAT_VERSION = 1
# Suffix of the second file of a step that is saved again.
_AGAIN = "-again"
# Maximum bytes of a marker.
_LARGEST_MARKER = 1 << 12
_RESTART = "use --overwrite to start the run again"


_STRICT = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)
_Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, config=_STRICT)
class Validation:
    """Result of a validation.

    Attributes:
        step: step after which it ran; None before the first one.
        metrics: logged metrics, by tag.
    """

    step: int | None
    metrics: dict[str, float]


@dataclass(frozen=True, config=_STRICT)
class TrainingState:
    """State of a training run between two steps.

    Attributes:
        step: number of completed steps. Together with the seed it determines the position in the data.
        model, optimizer: state dicts.
        last: the last validation.
        pending: metrics of the last step that are not logged yet, whose validation may not have run yet; None: the
            step is complete.
        early: whether the codebook was initialised before the sample for it was complete, which depends on
            `training.steps`.
        seconds: training time.
        data_sha256: SHA-256 of the data.
        codes: codes (K, D) of each level at the last validation.
    """

    step: Annotated[int, Field(ge=0, lt=1 << 53)]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    last: Validation
    pending: dict[str, _Finite] | None
    early: bool
    seconds: float
    data_sha256: str
    codes: list[Tensor | None]

    def fields(self) -> dict[str, Any]:
        """The fields as tensors, numbers and names."""
        return {**vars(self), "last": asdict(self.last)}

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "TrainingState":
        """Create a state from its fields."""
        return cls(**{**fields, "last": Validation(**fields["last"])})


def save_checkpoint(run: RunDirectory, state: TrainingState, keep: int) -> None:
    """Write a checkpoint, then remove all but the last `keep`, and those of later steps, which are now invalid.

    Raises:
        DataError: the checkpoint cannot be written; earlier ones are not touched.
    """
    marker = run.checkpoints / f"step-{state.step:09d}.json"
    # An earlier checkpoint of the same step stays valid until the marker names the new file.
    path = next(path for path in _files_of(marker) if _named_in(marker) != path.name)
    with atomic_write(path) as part:
        digest = _save({"format_version": FORMAT_VERSION, **state.fields()}, part)
    write_json(marker, {"format_version": FORMAT_VERSION, "file": path.name, "sha256": digest})
    markers = _all(run)
    last = markers.index(marker) + 1
    for old in markers[: max(0, last - keep)] + markers[last:]:
        for file in (old, *_files_of(old)):
            file.unlink(missing_ok=True)
    for file in _files_of(marker):
        if file != path:
            file.unlink(missing_ok=True)


def load_checkpoint(run: RunDirectory, say: Callable[[str], None] = lambda line: None) -> TrainingState | None:
    """Load the newest usable checkpoint; None if there are no checkpoints.

    Args:
        say: called with one line for the user per skipped checkpoint.

    Raises:
        CheckpointError: there are checkpoints, but none is usable.
    """
    markers = _all(run)
    for marker in reversed(markers):
        try:
            return _load(marker)
        except CheckpointError as error:
            say(f"{error}; the checkpoint is skipped")
    if any(marker.exists() for marker in markers):
        raise CheckpointError(f"{run.checkpoints}: no usable checkpoint; {_RESTART}")
    return None


def _all(run: RunDirectory) -> list[Path]:
    """Paths of the markers of all checkpoints, existing or not, oldest first."""
    return sorted({_marker(path) for path in run.checkpoint_files()}, key=_step)


def _marker(path: Path) -> Path:
    """Path of the marker of a file of a checkpoint."""
    return path.with_name(f"{path.stem.removesuffix(_AGAIN)}.json")


def _step(marker: Path) -> int:
    return int(marker.stem.removeprefix("step-"))


def _files_of(marker: Path) -> list[Path]:
    """The two possible paths of the .pt file of a marker; the marker names one of them."""
    return [marker.with_suffix(".pt"), marker.with_name(f"{marker.stem}{_AGAIN}.pt")]


def _load(marker: Path) -> TrainingState:
    path = _files_of(marker)[0]
    if not marker.is_file():
        raise CheckpointError(f"{path}: incomplete checkpoint: marker {marker.name} is missing")
    try:
        said = _said(marker)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{marker}: damaged: {error_reason(error)}") from error
    names = {path.name: path for path in _files_of(marker)}
    path = names.get(str(said.get("file")), path)
    if path.name != said.get("file"):
        raise CheckpointError(f"{marker}: damaged: file: expected {' or '.join(names)}")
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, although {marker.name} names it")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != said.get("sha256"):
                raise CheckpointError(f"{path}: damaged: SHA-256 does not match {marker.name}")
            file.seek(0)
            fields = torch.load(file, map_location="cpu", weights_only=True)
        _check_version(path, fields.pop("format_version", None))
        state = TrainingState.of(fields)
        if state.step != _step(marker):
            raise ValueError("the step differs from the one in the file name")
        return state
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can make its parser fail in any way
        raise CheckpointError(f"{path}: damaged: does not contain a training state") from error


def _check_version(path: Path, found: Any) -> None:
    check_format_version(path, found, FORMAT_VERSION, "checkpoint", _RESTART, CheckpointError)


def _said(marker: Path) -> dict[str, Any]:
    content = read_json(marker, _LARGEST_MARKER)
    _check_version(marker, content.get("format_version"))
    return content


def _named_in(marker: Path) -> str | None:
    """Name of the file that a marker names; None if there is no valid marker."""
    try:
        return str(_said(marker).get("file"))
    except (OSError, ValueError, CheckpointError):
        return None


def _save(content: dict[str, Any], path: Path) -> str:
    """Write a .pt file, and return its SHA-256."""
    with _Hashing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError:
            if file.failure:  # torch does not raise it
                raise file.failure from None
            raise
    return file.digest.hexdigest()


class _Hashing(io.BufferedWriter):
    """File that computes the SHA-256 of everything written to it."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.digest = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: Any) -> int:
        self.digest.update(content)
        try:
            return super().write(content)
        except OSError as error:
            self.failure = error
            raise
