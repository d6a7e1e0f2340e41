"""What a report is made of: the counts of a target, and whatever else is known of it.

Shapes: n samples, L positions per sample, Q levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vqtool.data import Samples, open_dataset
from vqtool.errors import ConfigError, DataError
from vqtool.inference.tokenizer import Tokenizer, load
from vqtool.inspection.inspect_targets import Inspection, count_file, inspect_one, of_data, of_file
from vqtool.inspection.pairs import Pairs, Relation
from vqtool.inspection.report.collector import Collected, collect
from vqtool.runs.index_file import read_indices
from vqtool.runs.run_directory import RunDirectory

# Samples shown beside their codes.
_SHOWN = 6


@dataclass(frozen=True)
class Seen:
    """What only a model and its data can show.

    Attributes:
        samples: that were passed.
        collected: of that pass.
        shown: the first samples (n, *row), and below them their indices (n, L, Q) and what decodes from these.
    """

    tokenizer: Tokenizer
    samples: Samples
    collected: Collected
    shown: Tensor
    indices: Tensor
    restored: Tensor

    @property
    def grid(self) -> tuple[int, ...]:
        """The row-major shape behind L."""
        return self.tokenizer.model.grid(self.samples.size)

    def row_number(self, sample: int) -> int:
        """Where a sample stands in the user's array."""
        return sample if self.samples.numbers is None else int(self.samples.numbers[sample])

    def rows(self, samples: Sequence[int]) -> Tensor:
        """Samples (n, *row) by number, as the user's array has them."""
        numbers = np.array([self.row_number(sample) for sample in samples], dtype=np.int64)
        return self.samples.rows.take(numbers)

    def encode(self, rows: Tensor) -> Tensor:
        """Indices (n, L), or (n, L, Q)."""
        return self.tokenizer.encode_samples(self.tokenizer.spec.samples(rows))

    def decode(self, indices: Tensor) -> Tensor:
        """Rows (n, *row)."""
        return self.tokenizer.decode(indices, self.samples.rows.shape)


@dataclass(frozen=True)
class ReportInputs:
    """All that is known of a target.

    Attributes:
        config: the text of a run's settings.
        metrics: what it logged, an object a logged step.
        seen: where there is a model and data for it.
        missing: why not, in a sentence.
    """

    inspection: Inspection
    relations: list[Relation] = field(default_factory=list)
    config: str = ""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    seen: Seen | None = None
    missing: str | None = None


def gather(target: Path, data: str | None = None, key: str | None = None, device: str | None = None) -> ReportInputs:
    """Look at one run, or index file, in one pass.

    Raises:
        CheckpointError: the run cannot be used.
        DataError: the index file, or `data`, cannot be used. That a run's own data are gone is no error.
    """
    if target.is_file():
        if data is not None:
            inspect_one(target, data)
        return _of_file(target)
    run, tokenizer = RunDirectory(target), load(target, device)
    about: dict[str, Any] = {
        "config": run.config.read_text(encoding="utf-8"),
        "metrics": run.logged(),
    }
    if data is not None:
        seen = _see(tokenizer, tokenizer.open_checked(data, key))
        inspection = of_data(target, data, seen.collected.tally)
        return ReportInputs(inspection, seen.collected.relations, seen=seen, **about)
    inspection = inspect_one(target)
    try:
        samples = open_dataset(tokenizer.settings.data, tokenizer.settings.seed).validation
    except (ConfigError, DataError) as error:
        return ReportInputs(
            inspection,
            missing=f"The data of the run cannot be read, so the sections that need them are missing: {error}.",
            **about,
        )
    seen = _see(tokenizer, samples)
    return ReportInputs(inspection, seen.collected.relations, seen=seen, **about)


def _of_file(target: Path) -> ReportInputs:
    array, manifest = read_indices(target)
    pairs = Pairs(manifest.codebook_sizes[: _levels(array, manifest.unique)], manifest.grid, len(array))
    tally = count_file(target, pairs.add)
    return ReportInputs(of_file(target, tally), pairs.result())


def _levels(array: NDArray[Any], unique: bool) -> int:
    return 1 if array.ndim == 2 else array.shape[2] - unique


def _see(tokenizer: Tokenizer, samples: Samples) -> Seen:
    collected = collect(tokenizer, samples)
    shown = samples.read_rows(0, min(_SHOWN, len(samples)))
    indices = tokenizer.encode_samples(tokenizer.spec.samples(shown))
    restored = tokenizer.decode(indices, samples.rows.shape)
    return Seen(tokenizer, samples, collected, shown, indices.reshape(*indices.shape[:2], -1), restored)
