"""The run directory: paths of its files, locking, and its metrics and summary."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqtool.config import RunSettings, load_config, write_config
from vqtool.errors import CheckpointError
from vqtool.runtime.files import error_reason, read_json, temp_path, try_lock, write_json

_MAX_SUMMARY_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 24  # of metrics.jsonl, which has a few hundred bytes per level in a line
_FINDING_KEYS = ("name", "severity", "message")
# Why a directory cannot be created, for errors whose text from the system is misleading.
_CREATION_ERRORS = {
    FileExistsError: "a file or a link with this name exists",
    NotADirectoryError: "the path leads through a file",
    PermissionError: "permission denied",
}


class RunDirectory:
    """The files of a run. The directory need not exist yet.

    Args:
        folder: the run directory.
        max_line_bytes: longer lines of metrics.jsonl are skipped as damaged.

    Attributes:
        folder: the run directory.
        config: config.yaml, the resolved settings.
        model: model.safetensors, the best model.
        checkpoints: directory of checkpoints, for resuming.
        metrics: metrics.jsonl, one JSON object per logged step.
        summary: summary.json, the result of a finished run.
        projector: directory of the codes for TensorBoard's projector.
        projector_config: configuration file of the projector.
    """

    def __init__(self, folder: str | Path, max_line_bytes: int = _MAX_LINE_BYTES) -> None:
        self.folder = Path(folder)
        self.max_line_bytes = max_line_bytes
        self.config = self.folder / "config.yaml"
        self.model = self.folder / "model.safetensors"
        self.checkpoints = self.folder / "checkpoints"
        self.metrics = self.folder / "metrics.jsonl"
        self.summary = self.folder / "summary.json"
        self.projector = self.folder / "projector"
        self.projector_config = self.folder / "projector_config.pbtxt"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the directory and lock it; remove temporary files of killed processes. At the end unlock it.

        A directory that was created here and is still empty at the end is removed.

        Raises:
            CheckpointError: another process trains in the directory or has just removed it, the directory cannot be
                created, or a file of the run is a link or a device.
        """
        is_new = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise self._creation_error(error) from error
        try:
            if not try_lock(fd):
                raise CheckpointError(
                    f"{self.folder}: another process is training in this directory; wait for it, or use another "
                    "--run-dir"
                )
            if not (self.folder.exists() and os.path.samestat(os.fstat(fd), self.folder.stat())):
                raise CheckpointError(f"{self.folder}: another process removed this directory; try again")
            self._check_file_types()
            self._remove_temp_files()
            yield
        finally:
            if is_new and self.folder.exists() and not any(self.folder.iterdir()):
                self.folder.rmdir()
            os.close(fd)

    @property
    def exists(self) -> bool:
        """Whether the directory contains a run: config.yaml and at least one other file or directory of a run."""
        return self.config.exists() and any(file.exists() for file in self._outputs())

    def create(self, settings: RunSettings) -> None:
        """Create the directory and its checkpoints directory, and write config.yaml.

        Raises:
            CheckpointError: the directory cannot be created.
            DataError: config.yaml cannot be written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_config(self.config, settings)
        except OSError as error:
            raise self._creation_error(error) from error

    def _creation_error(self, error: OSError) -> CheckpointError:
        reason = _CREATION_ERRORS.get(type(error), error.strerror)
        return CheckpointError(f"{self.folder}: cannot be created: {reason}; use another --run-dir")

    def check_no_other_files(self) -> None:
        """Check that a new run would not overwrite files. For a directory that is not a run; it may be missing.

        Raises:
            CheckpointError: names a file that would be overwritten.
        """
        for file in [self.config, *self._outputs()]:
            if file.exists() and not (file.is_dir() and not any(file.iterdir())):
                raise CheckpointError(
                    f"{self.folder}: is not a run, but contains {file.name}, which would be overwritten; use another "
                    "--run-dir"
                )

    def clear(self) -> None:
        """Remove the files of the run, except config.yaml and the empty checkpoints directory; keep all other files.

        If the process is killed meanwhile, the directory still counts as a run that can be started again.
        """
        self.summary.unlink(missing_ok=True)  # first: it is invalid from now on
        folders = [self.checkpoints, self.projector]
        for file in [*self.checkpoint_files(), *self.projector.glob("level_*.tsv"), *self._outputs()]:
            if file not in folders:
                file.unlink(missing_ok=True)
        if self.projector.is_dir() and not any(self.projector.iterdir()):
            self.projector.rmdir()

    def checkpoint_files(self) -> list[Path]:
        """Return the .pt files of all checkpoints, complete or not, and their markers, in no particular order."""
        return [
            path
            for path in self.checkpoints.glob("step-*")
            if re.fullmatch(r"step-\d{9,}(-again\.pt|\.pt|\.json)", path.name)
        ]

    def event_files(self) -> list[Path]:
        """Return TensorBoard's event files, in the order in which TensorBoard reads them."""
        return sorted(self.folder.glob("events.out.tfevents.*"))

    def _check_file_types(self) -> None:
        """Refuse links and devices in place of the run's files: a link leads elsewhere, a device can be endless."""
        for path in [self.config, *self._outputs()]:
            if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
                kind = "directory" if path in (self.checkpoints, self.projector) else "regular file"
                raise CheckpointError(
                    f"{path}: is a link or a device, not a {kind}; replace it by a copy of its content"
                )

    def _remove_temp_files(self) -> None:
        """Remove temporary files that killed processes left."""
        files = [self.config, self.model, self.metrics, self.summary, self.projector_config]
        temp_files = [temp_path(path) for path in files]
        temp_files += self.folder.glob(".events.out.tfevents.*.part")
        temp_files += self.checkpoints.glob(".step-*.part")
        temp_files += self.projector.glob(".level_*.part")
        for temp_file in temp_files:
            temp_file.unlink(missing_ok=True)

    def _outputs(self) -> list[Path]:
        """Return the paths of the files and directories that a run writes into its directory, except config.yaml.

        Event files are listed if they exist; all other paths are always listed. Temporary files and the content of the
        listed directories are not listed.
        """
        paths = [self.model, self.checkpoints, self.metrics, self.summary, self.projector, self.projector_config]
        return [*paths, *self.event_files()]

    def settings(self) -> RunSettings:
        """Read the resolved settings.

        Raises:
            CheckpointError: the directory is not a run.
            ConfigError: config.yaml is invalid.
        """
        if not self.config.exists():
            if self.folder.is_file():
                raise CheckpointError(f"{self.folder}: is a file; name a run directory")
            reason = f"{self.config.name} is missing" if self.folder.exists() else "the directory does not exist"
            raise CheckpointError(f"{self.folder}: not a run: {reason}")
        return load_config(self.config)

    def read_validations(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl with a validation, as `read_metrics` does."""
        return self.read_metrics('"validation/loss/total"')

    def read_metrics(self, containing: str = "") -> list[dict[str, Any]]:
        """Return the fields of each line of metrics.jsonl that contains a text, oldest first: `step`, metrics by tag.

        Damaged lines are skipped (see `parse_metrics_line`); a missing file has no lines.
        """
        lines = (line for line in self.metrics_lines() if containing in line)
        return [metrics for line in lines if (metrics := parse_metrics_line(line))]

    def metrics_lines(self) -> Iterator[str]:
        """Yield the lines of metrics.jsonl with their line endings, except those longer than `max_line_bytes`.

        Bytes that are not UTF-8 are replaced. The last line may lack its end, if the process was killed.
        """
        if not self.metrics.is_file():
            return
        with self.metrics.open("rb") as file:
            at_line_start = True
            while piece := file.readline(self.max_line_bytes):
                at_line_end = piece.endswith(b"\n")
                if at_line_start and (at_line_end or len(piece) < self.max_line_bytes):
                    yield piece.decode("utf-8", "replace")
                at_line_start = at_line_end

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        write_json(self.summary, summary)

    def read_summary(self) -> dict[str, Any] | None:
        """Read summary.json; None if the file does not exist, because the run is not finished.

        Raises:
            CheckpointError: the file is damaged, or a required key is missing.
        """
        if not os.path.lexists(self.summary):
            return None
        try:
            summary = read_json(self.summary, _MAX_SUMMARY_BYTES)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.summary}: damaged: {error_reason(error)}; remove it to continue the run"
            ) from error
        missing = {"steps", "best_step", "best", "final", "seconds"} - summary.keys()
        if missing:
            raise CheckpointError(
                f"{self.summary}: damaged: missing keys: {', '.join(sorted(missing))}; remove it to continue the run"
            )
        return summary


def parse_metrics_line(line: str) -> dict[str, Any]:
    """Parse a line of metrics.jsonl to its fields; empty if the line is damaged or has no integer `step`.

    A line is incomplete, for example, if the process was killed. Values that a run does not log are dropped: all but
    floats, integers of less than 64 bits, and lists of findings under the tag `findings`.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(fields, dict) or not isinstance(fields.get("step"), int):
        return {}
    return {tag: value for tag, value in fields.items() if _is_loggable(tag, value)}


def _is_loggable(tag: str, value: Any) -> bool:
    if tag == "findings":
        return isinstance(value, list) and all(
            isinstance(finding, dict) and all(isinstance(finding.get(key), str) for key in _FINDING_KEYS)
            for finding in value
        )
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 63)
