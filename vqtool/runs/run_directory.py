"""Run directory: paths of its files, and how they are written and read."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqtool.config import RunSettings, load_config, write_config
from vqtool.errors import CheckpointError
from vqtool.runtime.files import try_lock, temp_path, read_json, error_reason, write_json

# Maximum bytes of summary.json.
_LARGEST_SUMMARY = 1 << 20
# Maximum bytes of a line of metrics.jsonl, which has a few hundred per level.
_LONGEST_LINE = 1 << 24
# Fields of a logged finding.
_OF_A_FINDING = ("name", "severity", "message")
# Why a directory cannot be created, where the words of the system do not say it.
_NOT_CREATED = {
    FileExistsError: "a file or a link with this name exists",
    NotADirectoryError: "the path leads through a file",
    PermissionError: "permission denied",
}


class RunDirectory:
    """A run directory. It need not exist yet.

    Attributes:
        config: config.yaml, the resolved settings.
        model: model.safetensors, the best model and its validation counts.
        checkpoints: directory of checkpoints, for resuming.
        metrics: metrics.jsonl, one JSON object per logged step.
        summary: summary.json, the result of a finished run.
        projector, projector_config: codes for TensorBoard's projector: a directory, and its configuration file.
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
        """Create and lock the directory, and remove temporary files that a killed process left.

        Raises:
            CheckpointError: another process trains in the directory, it cannot be created, or it contains links or
                devices in place of files.
        """
        made = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise self._not_created(error) from error
        try:
            if not try_lock(handle):
                raise CheckpointError(
                    f"{self.folder}: another process is training in this directory; wait for it, or use another "
                    "--run-dir"
                )
            if not (self.folder.exists() and os.path.samestat(os.fstat(handle), self.folder.stat())):
                raise CheckpointError(f"{self.folder}: another process removed this directory; try again")
            self._check_kinds()
            self._clean()
            yield
        finally:
            if made and self.folder.exists() and not any(self.folder.iterdir()):
                self.folder.rmdir()
            os.close(handle)

    @property
    def exists(self) -> bool:
        """Whether the directory contains a run."""
        return self.config.exists() and any(file.exists() for file in self._files())

    def create(self, settings: RunSettings) -> None:
        """Create the directory and write the settings.

        Raises:
            CheckpointError: the directory cannot be created.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_config(self.config, settings)
        except OSError as error:
            raise self._not_created(error) from error

    def _not_created(self, error: OSError) -> CheckpointError:
        why = _NOT_CREATED.get(type(error), error.strerror)
        return CheckpointError(f"{self.folder}: cannot be created: {why}; use another --run-dir")

    def check_free(self) -> None:
        """Refuse a directory in which a new run would overwrite files that are not a run.

        Raises:
            CheckpointError: names one of the files.
        """
        for file in [self.config, *self._files()]:
            if file.exists() and not (file.is_dir() and not any(file.iterdir())):
                raise CheckpointError(
                    f"{self.folder}: is not a run, but contains {file.name}, which would be overwritten; use another "
                    "--run-dir"
                )

    def clear(self) -> None:
        """Remove the files of the run except its config; other files in the directory are not touched.

        If the process is killed meanwhile, the run can still be started again.
        """
        self.summary.unlink(missing_ok=True)  # first: it is invalid from now on
        folders = [self.checkpoints, self.projector]
        for file in [*self.checkpoint_files(), *self.projector.glob("level_*.tsv"), *self._files()]:
            if file not in folders:
                file.unlink(missing_ok=True)
        if self.projector.is_dir() and not any(self.projector.iterdir()):
            self.projector.rmdir()

    def checkpoint_files(self) -> list[Path]:
        """Files of all checkpoints, and their markers."""
        return [
            path
            for path in self.checkpoints.glob("step-*")
            if re.fullmatch(r"step-\d{9,}(-again\.pt|\.pt|\.json)", path.name)
        ]

    def event_files(self) -> list[Path]:
        """TensorBoard's event files, in the order in which it reads them."""
        return sorted(self.folder.glob("events.out.tfevents.*"))

    def _check_kinds(self) -> None:
        """Refuse links and devices with the names of the run's files: links lead elsewhere, devices can be endless."""
        for path in [self.config, *self._files()]:
            if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
                kind = "directory" if path in (self.checkpoints, self.projector) else "regular file"
                raise CheckpointError(
                    f"{path}: is a link or a device, not a {kind}; replace it by a copy of its content"
                )

    def _clean(self) -> None:
        """Remove temporary files that a killed process left."""
        written = [self.config, self.model, self.metrics, self.summary]
        parts = [temp_path(path) for path in written]
        parts += [*self.folder.glob(".events.out.tfevents.*.part"), *self.checkpoints.glob(".step-*.part")]
        parts += [temp_path(self.projector_config), *self.projector.glob(".level_*.part")]
        for part in parts:
            part.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        written = [self.model, self.checkpoints, self.metrics, self.summary, self.projector, self.projector_config]
        return [*written, *self.event_files()]

    def settings(self) -> RunSettings:
        """The resolved settings.

        Raises:
            CheckpointError: the directory is not a run.
            ConfigError: config.yaml is invalid.
        """
        if not self.config.exists():
            if self.folder.is_file():
                raise CheckpointError(f"{self.folder}: is a file; name a run directory")
            why = f"{self.config.name} is missing" if self.folder.exists() else "the directory does not exist"
            raise CheckpointError(f"{self.folder}: not a run: {why}")
        return load_config(self.config)

    def validations(self) -> list[dict[str, Any]]:
        """Logged values of each validation, oldest first, each with its `step`."""
        return self.logged('"validation/loss/total"')

    def logged(self, words: str = "") -> list[dict[str, Any]]:
        """Logged values of the lines that contain `words`, oldest first, each with its `step`."""
        return [fields for line in self.lines() if words in line and (fields := parsed(line))]

    def lines(self) -> Iterator[str]:
        """Lines of metrics.jsonl, each with its line ending; lines that are far too long are skipped."""
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
        """Write summary.json."""
        write_json(self.summary, summary)

    def read_summary(self) -> dict[str, Any] | None:
        """Read summary.json; None if the run is not finished.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not os.path.lexists(self.summary):
            return None
        try:
            summary = read_json(self.summary, _LARGEST_SUMMARY)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.summary}: damaged: {error_reason(error)}; remove it to continue the run") from error
        missing = {"steps", "best_step", "best", "final", "seconds"} - summary.keys()
        if missing:
            raise CheckpointError(
                f"{self.summary}: damaged: missing keys: {', '.join(sorted(missing))}; remove it to continue the run"
            )
        return summary


def parsed(line: str) -> dict[str, Any]:
    """The fields of a line of metrics.jsonl; empty if the line is incomplete because the process was killed."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(fields, dict) or not isinstance(fields.get("step"), int):
        return {}
    return {tag: value for tag, value in fields.items() if _is_logged(tag, value)}


def _is_logged(tag: str, value: Any) -> bool:
    """Whether a value is one that a run logs: a number that fits a float, or findings."""
    if tag == "findings":
        return isinstance(value, list) and all(
            isinstance(each, dict) and all(isinstance(each.get(name), str) for name in _OF_A_FINDING) for each in value
        )
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 63)
