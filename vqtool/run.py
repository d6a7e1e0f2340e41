"""The run directory: what is where, written and read."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqtool.config import RunSettings, load_config, write_config
from vqtool.errors import CheckpointError
from vqtool.files import lock, part_of, read_small, write_json

# A summary is a page; what is larger is something else.
_LARGEST_SUMMARY = 1 << 20
# Bytes of a logged line, which has a few hundred for each of its levels.
_LONGEST_LINE = 1 << 24
# What is logged of a finding.
_OF_A_FINDING = ("name", "severity", "message")


class Run:
    """A run directory, which need not exist yet.

    Attributes:
        config: the resolved settings.
        model: the best model and its validation counts.
        checkpoints: a folder, what resuming needs.
        metrics: one JSON object a logged step.
        summary: how it ended.
        projector, projector_config: the codes for TensorBoard's projector: a folder, and the file that names its files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = self.folder / "config.yaml"
        self.model = self.folder / "model.safetensors"
        self.checkpoints = self.folder / "checkpoints"
        self.metrics = self.folder / "metrics.jsonl"
        self.summary = self.folder / "summary.json"
        self.projector = self.folder / "projector"
        self.projector_config = self.folder / "projector_config.pbtxt"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Within, the folder is there, and no other process trains in it; what a killed one left half written is gone.

        Raises:
            CheckpointError: another process does, the folder cannot be made, or it holds links where files are written.
        """
        made = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot be made: {error.strerror}") from error
        try:
            if not lock(handle):
                raise CheckpointError(f"{self.folder}: another process is training in it")
            if not (self.folder.exists() and os.path.samestat(os.fstat(handle), self.folder.stat())):
                raise CheckpointError(f"{self.folder}: was removed by another process; try again")
            self._check_kinds()
            self._clean()
            yield
        finally:
            if made and self.folder.exists() and not any(self.folder.iterdir()):
                self.folder.rmdir()
            os.close(handle)

    @property
    def exists(self) -> bool:
        """Whether the folder already holds a run."""
        return self.config.exists() and any(file.exists() for file in self._files())

    def create(self, settings: RunSettings) -> None:
        """Make the folder and write the settings.

        Raises:
            CheckpointError: the folder cannot be made.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_config(self.config, settings)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot be made: {error.strerror}") from error

    def check_free(self) -> None:
        """Refuse a folder in which a new run would write over somebody's files.

        Raises:
            CheckpointError: names one of them.
        """
        for file in [self.config, *self._files()]:
            if file.exists() and not (file.is_dir() and not any(file.iterdir())):
                raise CheckpointError(f"{self.folder}: holds {file.name}, but no run; train into another --run-dir")

    def clear(self) -> None:
        """Remove all of the run but its config, and nothing else that may lie in its folder.

        Killed on its way, it leaves a run that can still be begun anew.
        """
        self.summary.unlink(missing_ok=True)  # first: what it says is no longer so
        folders = [self.checkpoints, self.projector]
        for file in [*self.checkpoint_files(), *self.projector.glob("level_*.tsv"), *self._files()]:
            if file not in folders:
                file.unlink(missing_ok=True)
        if self.projector.is_dir() and not any(self.projector.iterdir()):
            self.projector.rmdir()

    def checkpoint_files(self) -> list[Path]:
        """The files of all checkpoints, and their markers."""
        return [
            path
            for path in self.checkpoints.glob("step-*")
            if re.fullmatch(r"step-\d{9,}(-again\.pt|\.pt|\.json)", path.name)
        ]

    def event_files(self) -> list[Path]:
        """TensorBoard's files, in the order in which it reads them."""
        return sorted(self.folder.glob("events.out.tfevents.*"))

    def _check_kinds(self) -> None:
        """Refuse links, which lead elsewhere, and devices, which have no end, under the names of the run's files."""
        for path in [self.config, *self._files()]:
            if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
                raise CheckpointError(f"{path}: is a link or a device, and no file of a run; remove it")

    def _clean(self) -> None:
        """Remove the parts that a killed process left, by the names that they have."""
        written = [self.config, self.model, self.metrics, self.summary]
        parts = [part_of(path) for path in written]
        parts += [*self.folder.glob(".events.out.tfevents.*.part"), *self.checkpoints.glob(".step-*.part")]
        parts += [part_of(self.projector_config), *self.projector.glob(".level_*.part")]
        for part in parts:
            part.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        written = [self.model, self.checkpoints, self.metrics, self.summary, self.projector, self.projector_config]
        return [*written, *self.event_files()]

    def settings(self) -> RunSettings:
        """The resolved settings.

        Raises:
            CheckpointError: there is no run here.
        """
        if not self.config.exists():
            why = f"it has no {self.config.name}" if self.folder.exists() else "there is no such folder"
            raise CheckpointError(f"{self.folder}: not a run: {why}")
        return load_config(self.config)

    def validations(self) -> list[dict[str, Any]]:
        """What was logged of each validation, the oldest first, each with its `step`."""
        return self.logged('"validation/loss/total"')

    def logged(self, words: str = "") -> list[dict[str, Any]]:
        """What was logged, the oldest first, each with its `step`: of lines with such words in them."""
        return [fields for line in self.lines() if words in line and (fields := parsed(line))]

    def lines(self) -> Iterator[str]:
        """The lines that were logged, each with its end; what is far too long for one is passed over."""
        if not self.metrics.is_file():
            return
        with self.metrics.open("rb") as file:
            begins = True
            while piece := file.readline(_LONGEST_LINE):
                ends = piece.endswith(b"\n")
                if begins and (ends or len(piece) < _LONGEST_LINE):
                    yield piece.decode("utf-8", "replace")
                begins = ends

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write how the run ended."""
        write_json(self.summary, summary)

    def read_summary(self) -> dict[str, Any] | None:
        """How the run ended; None where it has not."""
        if not os.path.lexists(self.summary):
            return None
        try:
            summary: dict[str, Any] = json.loads(read_small(self.summary, _LARGEST_SUMMARY))
            if {"steps", "best_step", "best", "final", "seconds"} <= summary.keys():
                return summary
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{self.summary}: damaged: {error}; remove it to go on") from error
        raise CheckpointError(f"{self.summary}: damaged: it lacks what a summary has; remove it to go on")


def parsed(line: str) -> dict[str, Any]:
    """The fields of a line; none where it was cut short when the process was killed."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(fields, dict) or not isinstance(fields.get("step"), int):
        return {}
    return {tag: value for tag, value in fields.items() if _is_logged(tag, value)}


def _is_logged(tag: str, value: Any) -> bool:
    """Whether a value is such as a run logs: a number that a float holds, or findings."""
    if tag == "findings":
        return isinstance(value, list) and all(
            isinstance(each, dict) and all(isinstance(each.get(name), str) for name in _OF_A_FINDING) for each in value
        )
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 63)
