"""Checkpoints: all that resuming needs. They hold tensors, numbers and names alone, and load as such.

A checkpoint is a file of torch's and, written after it, a marker: a JSON file with the SHA-256 of the first. Only both
together count.
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from vqtool.errors import CheckpointError
from vqtool.files import read_small, replacing, write_json
from vqtool.run import Run

_FORMAT = "vqtool checkpoint 2"
# Ends the name of the second file of a step that is saved again.
_AGAIN = "-again"
# A marker is a few lines; what is larger is something else.
_LARGEST_MARKER = 1 << 12


_STRICT = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)
_Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, config=_STRICT)
class Validation:
    """What a validation showed.

    Attributes:
        step: after which it was; None where there was none.
        metrics: all that was logged of it, by tag.
    """

    step: int | None
    metrics: dict[str, float]


@dataclass(frozen=True, config=_STRICT)
class State:
    """A training run between two steps.

    Attributes:
        step: how many steps are done. With the seed it says where in the data the run stands.
        model, optimizer: their state dicts.
        last: the last validation.
        pending: what is still to be logged of the last step, whose validation may be still to be done; None: the step
            is complete.
        early: whether codes started before their sample was full, which depends on how long the run was to be.
        seconds: spent training.
        data_sha256: of the data.
        codes: (K, D) of each level at the last validation.
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
        """Tensors, numbers and names, as they are saved."""
        return {**vars(self), "last": asdict(self.last)}

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "State":
        """From its fields."""
        return cls(**{**fields, "last": Validation(**fields["last"])})


def save_checkpoint(run: Run, state: State, keep: int) -> None:
    """Write a checkpoint, then remove all but the last `keep`, and what is of later steps: of a run gone another way.

    Raises:
        DataError: it cannot be written; those before it are as they were.
    """
    marker = run.checkpoints / f"step-{state.step:09d}.json"
    # Beside an earlier one of the same step, which counts until the marker names another file.
    path = next(path for path in _files_of(marker) if _named_in(marker) != path.name)
    with replacing(path) as part:
        digest = _save(state.fields(), part)
    write_json(marker, {"format": _FORMAT, "file": path.name, "sha256": digest})
    markers = _all(run)
    last = markers.index(marker) + 1
    for old in markers[: max(0, last - keep)] + markers[last:]:
        for file in (old, *_files_of(old)):
            file.unlink(missing_ok=True)
    for file in _files_of(marker):
        if file != path:
            file.unlink(missing_ok=True)


def load_checkpoint(run: Run, say: Callable[[str], None] = lambda line: None) -> State | None:
    """The newest checkpoint that is whole; None where there is none at all.

    Args:
        say: called with a line about each that is not, for the user.

    Raises:
        CheckpointError: there are some, and none is whole.
    """
    markers = _all(run)
    for marker in reversed(markers):
        try:
            return _load(marker)
        except CheckpointError as error:
            say(f"{error}; it is not used")
    if any(marker.exists() for marker in markers):
        raise CheckpointError(f"{run.checkpoints}: no checkpoint is whole; --overwrite starts the run again")
    return None


def _all(run: Run) -> list[Path]:
    """The markers of all checkpoints, there or not, the oldest first."""
    return sorted({_marker(path) for path in run.checkpoint_files()}, key=_step)


def _marker(path: Path) -> Path:
    """Of a file of a checkpoint, or its marker."""
    return path.with_name(f"{path.stem.removesuffix(_AGAIN)}.json")


def _step(marker: Path) -> int:
    return int(marker.stem.removeprefix("step-"))


def _files_of(marker: Path) -> list[Path]:
    """The names that the file of a marker may have, of which it says one."""
    return [marker.with_suffix(".pt"), marker.with_name(f"{marker.stem}{_AGAIN}.pt")]


def _load(marker: Path) -> State:
    path = _files_of(marker)[0]
    if not marker.is_file():
        raise CheckpointError(f"{path}: has no {marker.name}, without which it does not count")
    try:
        said = _said(marker)
        path = next(path for path in _files_of(marker) if path.name == said["file"])
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != said["sha256"]:
                raise CheckpointError(f"{path}: damaged: its SHA-256 is not the one in {marker.name}")
            file.seek(0)
            fields = torch.load(file, map_location="cpu", weights_only=True)
        state = State.of(fields)
        if state.step != _step(marker):
            raise ValueError("the step is not that of its name")
        return state
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can make its parser fail in any way
        raise CheckpointError(f"{path}: damaged, or written by another version of vqtool") from error


def _said(marker: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(read_small(marker, _LARGEST_MARKER))
    if content["format"] != _FORMAT:
        raise CheckpointError(f"{marker}: written by another version of vqtool")
    return content


def _named_in(marker: Path) -> str | None:
    """The file that a marker says; None where there is no whole marker."""
    try:
        return str(_said(marker)["file"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, CheckpointError):
        return None


def _save(content: dict[str, Any], path: Path) -> str:
    """Write a file of torch's, and return its SHA-256."""
    with _Hashing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError:
            if file.failure:  # which torch does not pass on
                raise file.failure from None
            raise
    return file.digest.hexdigest()


class _Hashing(io.BufferedWriter):
    """A file that hashes what it is given to write: what it should hold, whatever the disk makes of it."""

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
