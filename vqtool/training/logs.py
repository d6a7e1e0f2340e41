"""Metric logs of a run: metrics.jsonl, and the same metrics for TensorBoard."""

import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType

from torch import Tensor

from vqtool.runs.run_directory import RunDirectory, parse_metrics_line
from vqtool.runtime.files import atomic_write, convert_write_errors
from vqtool.training.tensorboard import TensorBoardLogger


class MetricLogs:
    """Writes one JSON object per logged step to metrics.jsonl, and the same scalars to TensorBoard's event file.

    Args:
        run: run directory.
        last_step: number of completed steps. What an earlier process logged for later steps is removed, and so are
            damaged lines of metrics.jsonl.
        log: called with one line for the user if events are lost in a damaged event file.

    Raises:
        DataError: a file cannot be written. All methods that write raise it too.
    """

    def __init__(self, run: RunDirectory, last_step: int, log: Callable[[str], None] = lambda line: None) -> None:
        self._path = run.metrics
        if self._path.exists():
            with atomic_write(self._path) as temp, temp.open("w", encoding="utf-8") as file:
                for line in run.metrics_lines():
                    if parse_metrics_line(line).get("step", math.inf) <= last_step:
                        file.write(line.rstrip("\r\n") + "\n")
        with convert_write_errors(self._path), ExitStack() as stack:
            self._file = stack.enter_context(self._path.open("a", encoding="utf-8"))
            self._tensorboard = stack.enter_context(TensorBoardLogger(run, last_step, log))
            self._open_files = stack.pop_all()

    def __enter__(self) -> "MetricLogs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with convert_write_errors(self._path):
            self._open_files.close()

    def scalars(self, step: int, values: dict[str, float], findings: Sequence[dict[str, str]] | None = None) -> None:
        """Log finite values by tag after `step` steps, and findings (`Validator.diagnose`) in metrics.jsonl only."""
        optional = {"findings": list(findings)} if findings else {}
        line = json.dumps({"step": step, **values, **optional}, allow_nan=False) + "\n"
        with convert_write_errors(self._path):
            self._file.write(line)
            self._file.flush()
        self._tensorboard.scalars(step, values)

    def counts(self, step: int, levels: Sequence[Tensor]) -> None:
        """Log a histogram of the hits per code for each level, in TensorBoard only; `levels` has (K,) per level."""
        for level, hits in enumerate(levels):
            tag = "codebook/counts" if len(levels) == 1 else f"codebook/level_{level}/counts"
            self._tensorboard.histogram(step, tag, hits)

    def image(self, step: int, tag: str, image: Tensor) -> None:
        """Log an image (3, H, W) in [0, 1], in TensorBoard only."""
        self._tensorboard.image(step, tag, image)

    def sync(self) -> None:
        """Flush both files to disk (fsync), so that no checkpoint is ahead of the logs."""
        with convert_write_errors(self._path):
            os.fsync(self._file.fileno())
        self._tensorboard.sync()
