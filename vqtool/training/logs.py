"""What a run says while it runs: metrics.jsonl, and the same for TensorBoard."""

import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType

from torch import Tensor

from vqtool.runs.run_directory import RunDirectory, parsed
from vqtool.runtime.files import atomic_write, convert_write_errors
from vqtool.training.tensorboard import TensorBoardLogger


class MetricLogs:
    """Writes one object a logged step, and the same scalars for TensorBoard.

    Args:
        start: steps already done; what an earlier process logged beyond them is dropped.
        say: called with a line for the user where a damaged file costs events.

    Raises:
        DataError: a file cannot be written; so from all that writes.
    """

    def __init__(self, run: RunDirectory, start: int, say: Callable[[str], None] = lambda line: None) -> None:
        self._path = run.metrics
        _drop_after(run, start)
        with convert_write_errors(self._path), ExitStack() as opened:
            self._metrics = opened.enter_context(self._path.open("a", encoding="utf-8"))
            self._board = opened.enter_context(TensorBoardLogger(run, start, say))
            self._opened = opened.pop_all()

    def __enter__(self) -> "MetricLogs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with convert_write_errors(self._path):
            self._opened.close()

    def scalars(self, step: int, values: dict[str, float], findings: Sequence[dict[str, str]] | None = None) -> None:
        """Log values by their tags, after `step` steps; of a validation also its findings, if any."""
        found = {"findings": list(findings)} if findings else {}
        line = json.dumps({"step": step, **values, **found}, allow_nan=False) + "\n"
        with convert_write_errors(self._path):
            self._metrics.write(line)
            self._metrics.flush()
        self._board.scalars(step, values)

    def counts(self, step: int, levels: Sequence[Tensor]) -> None:
        """Histograms of the hits of each level's codes (K,)."""
        for number, hits in enumerate(levels):
            tag = "codebook/counts" if len(levels) == 1 else f"codebook/level_{number}/counts"
            self._board.histogram(step, tag, hits)

    def images(self, step: int, tag: str, picture: Tensor) -> None:
        """A picture (3, H, W) in [0, 1]."""
        self._board.image(step, tag, picture)

    def sync(self) -> None:
        """Wait until what was logged is on the disk: a checkpoint must not be ahead of it."""
        with convert_write_errors(self._path):
            os.fsync(self._metrics.fileno())
        self._board.sync()


def _drop_after(run: RunDirectory, step: int) -> None:
    if not run.metrics.exists():
        return
    with atomic_write(run.metrics) as part, part.open("w", encoding="utf-8") as file:
        for line in run.lines():
            if parsed(line).get("step", math.inf) <= step:
                file.write(line.rstrip("\r\n") + "\n")
