"""What inspect looks at: a run, a run on other data, an index file; and the figures of each."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.config import RunSettings
from vqtool.data import spec_of
from vqtool.data.layout import LAYOUTS
from vqtool.errors import CheckpointError, ConfigError, DataError
from vqtool.inference.tokenizer import load
from vqtool.inspection.evidence import Evidence, of_run, readable_settings, settings_error
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings import diagnose
from vqtool.inspection.targets import OnSkipped, for_each_target
from vqtool.metrics.code_counter import CodeCounter
from vqtool.metrics.collisions import IdCounts
from vqtool.metrics.usage import Usage
from vqtool.runs.index_file import read_indices, read_manifest
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.progress import pass_bar

# Indices counted at a time.
_BLOCK = 1 << 22

# Sees the number of a block's first row, and the block.
Look = Callable[[int, NDArray[Any]], None]


@dataclass(frozen=True)
class Inspection:
    """The usage of a codebook, and where it was counted.

    Attributes:
        target: what was inspected.
        counted: what its codes were counted on.
        levels: of each level.
        distinct: ids, where samples are vectors.
        kind: of the samples: images, grids, sequences or vectors; None where it is not known.
        batch_tokens: of a training batch of the run.
        findings: what is wrong, the severe first.
        young_until: the step from which on most findings are looked for, where the run has not got so far.
        settings_error: why the settings of the run cannot be read; findings that need them are missing.
    """

    target: str
    counted: str
    levels: list[Usage]
    distinct: IdCounts | None
    kind: str | None = None
    batch_tokens: int | None = None
    findings: Sequence[Finding] = ()
    young_until: int | None = None
    settings_error: str | None = None

    @property
    def tokens(self) -> int:
        """Hits of a level: samples times positions."""
        return self.levels[0].tokens


def inspect(
    targets: list[Path],
    data: str | None = None,
    key: str | None = None,
    device: str | None = None,
    skipped: OnSkipped | None = None,
) -> list[Inspection]:
    """Inspect each target: a run, a folder of runs, or an index file.

    Args:
        data: to count the codes of runs on; None: on the best validation pass.
        skipped: called with each run of a folder that cannot be used, and why; None: that is an error.

    Raises:
        CheckpointError: a target is none of these.
        DataError: an index file or the data cannot be used.
    """
    return for_each_target(targets, lambda target: inspect_one(target, data, key, device), skipped)


def inspect_one(target: Path, data: str | None = None, key: str | None = None, device: str | None = None) -> Inspection:
    """As `inspect`, of one run or index file."""
    if target.is_file():
        if data is not None:
            raise DataError(f"--data cannot be used with an index file ({target}); omit --data")
        return of_file(target, count_file(target))
    if data is not None:
        return of_data(target, data, load(target, device).count(data, key))
    saved, _ = read_model(RunDirectory(target).model)
    if not saved.counts:
        raise CheckpointError(f"{target}: model.safetensors has no code counts; use --data FILE to count codes")
    evidence = of_run(RunDirectory(target), saved)
    inspection = _inspection(target, "the best validation pass", evidence, *_about(evidence.settings))
    return inspection if evidence.settings else replace(inspection, settings_error=settings_error(RunDirectory(target)))


def _inspection(
    target: Path, counted: str, evidence: Evidence, kind: str | None, batch_tokens: int | None = None
) -> Inspection:
    found, young_until = diagnose(evidence), evidence.young_until
    return Inspection(
        str(target), counted, list(evidence.levels), evidence.distinct, kind, batch_tokens, found, young_until
    )


def of_file(target: Path, tally: CodeCounter) -> Inspection:
    """What was counted in an index file."""
    kind = kind_of(read_manifest(target).layout)
    return _inspection(target, "the indices in the file", Evidence(tally.levels, tally.distinct), kind)


def of_data(target: Path, data: str, tally: CodeCounter) -> Inspection:
    """What was counted on data that a run has encoded."""
    evidence = Evidence(tally.levels, tally.distinct, settings=readable_settings(RunDirectory(target)))
    return _inspection(target, data, evidence, *_about(evidence.settings))


def count_file(path: Path, look: Look | None = None) -> CodeCounter:
    """The hits in an index file, block by block; `look` sees each block, too.

    Raises:
        DataError: it cannot be used.
    """
    array, manifest = read_indices(path)
    sizes = manifest.codebook_sizes
    if manifest.unique:  # what makes rows unique is no codebook's
        array, sizes = array[..., :-1], sizes[:-1]
    tally = CodeCounter(sizes, ids=manifest.layout == "C")
    step = max(1, _BLOCK // int(np.prod(array.shape[1:])))
    with pass_bar("inspect", len(array)) as bar:
        for start in range(0, len(array), step):
            block = array[start : start + step]
            try:
                tally.add(block)
            except IndexError as error:
                raise DataError(f"{path}: damaged: contains {error}; encode the data again") from error
            if look:
                look(start, block)
            bar.update(len(block))
    return tally


def kind_of(layout: str, classes: bool = False) -> str | None:
    """What samples of a layout are called: images, grids, sequences or vectors."""
    if layout not in LAYOUTS:
        return None
    if classes:
        return "grids"
    return ["vectors", "sequences", "images"][LAYOUTS[layout].rank - (LAYOUTS[layout].channel is not None)]


def _about(settings: RunSettings | None) -> tuple[str | None, int | None]:
    """Return the kind of a run's samples and the tokens of a training batch; None where they are not known."""
    if settings is None:
        return None, None
    try:
        spec = spec_of(settings.data)
    except ConfigError:
        return None, None
    positions = math.prod(settings.model.encoder.grid(spec.size))
    return kind_of(spec.layout, bool(spec.classes)), settings.training.batch_size * positions
