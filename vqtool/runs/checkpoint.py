"""Checkpoints: the complete state of a training run between two steps, for --resume.

A checkpoint is two files: a .pt file that torch.load reads with weights_only=True, and a marker, a JSON file with the
name and the SHA-256 of the .pt file. The marker is written last: a checkpoint without its marker is incomplete.
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
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.files import atomic_write, check_format_version, error_reason, read_json, write_json

# Version of the format of a checkpoint and its marker; no other version is read.
FORMAT_VERSION = 1
# Suffix of the second of the two possible .pt files of a step (see `save_checkpoint`).
_SECOND_SUFFIX = "-again"
_MAX_MARKER_BYTES = 1 << 12
_REMEDY = "use --overwrite to start the run again"

_STRICT = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)
_Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, config=_STRICT)
class ValidationResult:
    """Result of a validation.

    Attributes:
        step: number of steps taken before the validation; None: there was no validation yet.
        metrics: logged metrics, by tag; empty if there was no validation yet.
    """

    step: int | None
    metrics: dict[str, float]


@dataclass(frozen=True, config=_STRICT)
class TrainingState:
    """State of a training run between two steps. With the config and the data it determines the rest of the run.

    Attributes:
        step: number of completed steps. With the seed it determines the next batch.
        model, optimizer: state dicts.
        last_validation: result of the last validation.
        pending_metrics: None if all work after the last step is done: codebook initialisation, validation and logging,
            each if due. Otherwise a signal interrupted this work, and a resumed run repeats it; the dict holds the
            training metrics of the step, by tag, and is empty if the step is not to be logged.
        init_was_early: whether a codebook was initialised before its sample of latents was complete, which depends on
            `training.steps`.
        seconds: training time so far, of all processes of the run.
        data_sha256: SHA-256 of the data.
        last_codes: codes (K, D) of each level at the last validation; None for a level with fixed codes. The list is
            empty before the first validation.
    """

    step: Annotated[int, Field(ge=0, lt=1 << 53)]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    last_validation: ValidationResult
    pending_metrics: dict[str, _Finite] | None
    init_was_early: bool
    seconds: float
    data_sha256: str
    last_codes: list[Tensor | None]

    def to_dict(self) -> dict[str, Any]:
        """Convert to the content of a .pt file: tensors, numbers, strings, None, lists and dicts."""
        return {**vars(self), "last_validation": asdict(self.last_validation)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "TrainingState":
        """Create a state from the result of `to_dict`.

        Raises:
            Exception: of any type, if the content is not that of a state.
        """
        return cls(**{**content, "last_validation": ValidationResult(**content["last_validation"])})


def save_checkpoint(run: RunDirectory, state: TrainingState, keep: int) -> None:
    """Write a checkpoint; then delete the checkpoints of later steps, and of the others all but the last `keep`.

    A checkpoint is a .pt file and a marker, a JSON file that names the .pt file. There are two possible names of the
    .pt file of a step. If a step is saved again, the new .pt file gets the name that the marker does not contain. The
    old checkpoint is therefore valid until its marker is replaced.

    Args:
        run: run directory.
        state: state to save.
        keep: number of checkpoints to keep, including the new one; at least 1.

    Raises:
        DataError: the checkpoint cannot be written. The existing checkpoints are still usable.
    """
    marker = run.checkpoints / f"step-{state.step:09d}.json"
    path = next(path for path in _data_paths(marker) if _named_file(marker) != path.name)
    with atomic_write(path) as temp:
        sha256 = _save({"format_version": FORMAT_VERSION, **state.to_dict()}, temp)
    write_json(marker, {"format_version": FORMAT_VERSION, "file": path.name, "sha256": sha256})
    markers = _marker_paths(run)
    stop = markers.index(marker) + 1
    for old_marker in markers[: max(0, stop - keep)] + markers[stop:]:
        for file in (old_marker, *_data_paths(old_marker)):
            file.unlink(missing_ok=True)
    for file in _data_paths(marker):
        if file != path:
            file.unlink(missing_ok=True)


def load_checkpoint(run: RunDirectory, log: Callable[[str], None] = lambda line: None) -> TrainingState | None:
    """Load the newest usable checkpoint; None if the run has no complete checkpoint.

    Args:
        log: called with one line per skipped checkpoint, which is damaged or incomplete.

    Raises:
        CheckpointError: there are markers, but no usable checkpoint.
    """
    markers = _marker_paths(run)
    for marker in reversed(markers):
        try:
            return _load(marker)
        except CheckpointError as error:
            log(f"{error}; the checkpoint is skipped")
    if any(marker.exists() for marker in markers):
        raise CheckpointError(f"{run.checkpoints}: no usable checkpoint; {_REMEDY}")
    return None


def _marker_paths(run: RunDirectory) -> list[Path]:
    """Return the path of the marker of each checkpoint, complete or not, in order of steps.

    The marker of an incomplete checkpoint does not exist.
    """
    markers = {path.with_name(f"{path.stem.removesuffix(_SECOND_SUFFIX)}.json") for path in run.checkpoint_files()}
    return sorted(markers, key=_step)


def _step(marker: Path) -> int:
    return int(marker.stem.removeprefix("step-"))


def _data_paths(marker: Path) -> list[Path]:
    """Return the two possible paths of the .pt file of a marker."""
    return [marker.with_suffix(".pt"), marker.with_name(f"{marker.stem}{_SECOND_SUFFIX}.pt")]


def _load(marker: Path) -> TrainingState:
    paths = _data_paths(marker)
    if not marker.is_file():
        raise CheckpointError(f"{paths[0]}: incomplete checkpoint: marker {marker.name} is missing")
    try:
        content = _read_marker(marker)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{marker}: damaged: {error_reason(error)}") from error
    path = next((path for path in paths if path.name == content.get("file")), None)
    if path is None:
        raise CheckpointError(f"{marker}: damaged: file: expected {' or '.join(path.name for path in paths)}")
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, although {marker.name} names it")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != content.get("sha256"):
                raise CheckpointError(f"{path}: damaged: SHA-256 does not match {marker.name}")
            file.seek(0)
            fields = torch.load(file, map_location="cpu", weights_only=True)
        _check_version(path, fields.pop("format_version", None))
        state = TrainingState.from_dict(fields)
        if state.step != _step(marker):
            raise ValueError("the step differs from the one in the file name")
        return state
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can make its parser fail in any way
        raise CheckpointError(f"{path}: damaged: does not contain a training state") from error


def _read_marker(marker: Path) -> dict[str, Any]:
    content = read_json(marker, _MAX_MARKER_BYTES)
    _check_version(marker, content.get("format_version"))
    return content


def _named_file(marker: Path) -> str | None:
    """Return the name of the .pt file in a marker; None if there is no valid marker."""
    try:
        return str(_read_marker(marker).get("file"))
    except (OSError, ValueError, CheckpointError):
        return None


def _check_version(path: Path, version: Any) -> None:
    check_format_version(path, version, FORMAT_VERSION, "checkpoint", _REMEDY, CheckpointError)


def _save(content: dict[str, Any], path: Path) -> str:
    """Write a .pt file; return its SHA-256."""
    with _HashingWriter(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError:
            if file.write_error:  # torch.save replaces the OSError by a RuntimeError
                raise file.write_error from None
            raise
    return file.sha256.hexdigest()


class _HashingWriter(io.BufferedWriter):
    """Binary file that computes the SHA-256 of everything written, and keeps the OSError of the last failed write."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.sha256 = hashlib.sha256()
        self.write_error: OSError | None = None

    def write(self, content: Any) -> int:
        self.sha256.update(content)
        try:
            return super().write(content)
        except OSError as error:
            self.write_error = error
            raise
