"""What a run says while it runs: metrics.jsonl, and the same for TensorBoard."""

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from vqtool.files import replacing
from vqtool.run import Run


class Logs:
    """Writes one object a logged step, and the same scalars for TensorBoard.

    Args:
        start: steps already done; what an earlier process logged beyond them is dropped.
    """

    def __init__(self, run: Run, start: int) -> None:
        self._drop_after(run, start)
        self._metrics = run.metrics.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run.folder), purge_step=start + 1 if start else None)

    def __enter__(self) -> "Logs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.close()
        self._board.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log values by their tags, after `step` steps."""
        self._metrics.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        self._metrics.flush()
        for tag, value in values.items():
            self._board.add_scalar(tag, value, step)
        self._board.flush()

    def counts(self, step: int, levels: Sequence[Tensor]) -> None:
        """Histograms of the hits of each level's codes (K,)."""
        for number, hits in enumerate(levels):
            tag = "codebook/counts" if len(levels) == 1 else f"codebook/level_{number}/counts"
            self._board.add_histogram(tag, hits.float(), step)

    def images(self, step: int, tag: str, picture: Tensor) -> None:
        """A picture (3, H, W) in [0, 1]."""
        self._board.add_image(tag, picture, step)

    @staticmethod
    def _drop_after(run: Run, step: int) -> None:
        if not run.metrics.exists():
            return
        lines = run.metrics.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        with replacing(run.metrics) as part:
            part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        fields: dict[str, Any] = json.loads(line)
        return int(fields["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # cut short when the process was killed
