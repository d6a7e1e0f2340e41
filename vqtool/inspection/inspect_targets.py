"""Inspect runs, directories of runs and index files: count codes, then diagnose.

Shapes: n rows, L tokens per sample, Q levels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vqtool.config import RunSettings
from vqtool.data import spec_of
from vqtool.data.layout import LAYOUTS
from vqtool.errors import CheckpointError, ConfigError, DataError, VqtoolError
from vqtool.inference.tokenizer import load
from vqtool.inspection.evidence import Evidence, evidence_from_run, settings_error, settings_or_none
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings import diagnose
from vqtool.metrics.collisions import IdCounts
from vqtool.metrics.usage import CodeCounter, Usage
from vqtool.runs.index_file import read_indices, read_manifest
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.progress import pass_bar

# Bounds the memory of a block that is read from a memory-mapped index file.
_INDICES_PER_BLOCK = 1 << 22

# Called with the number of the first row of a block, and the block: indices (n, L) or (n, L, Q).
OnBlock = Callable[[int, NDArray[Any]], None]
# Called with the path of a run that cannot be used, in a directory of runs, and the error.
OnSkipped = Callable[[Path, VqtoolError], None]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Inspection:
    """Usage and findings of a run or an index file.

    Attributes:
        target: path of the run or index file.
        counted_on: the data or validation that the codes were counted on, for display.
        levels: usage of each level.
        distinct: number of rows and of distinct ids, if samples are vectors.
        sample_kind: "images", "grids", "sequences" or "vectors"; None if unknown.
        batch_tokens: tokens per level in a training batch of the run; None if unknown.
        findings: problems found, severe ones first.
        early_until: step before which almost no findings are reported, if the run has not reached it; otherwise None.
        settings_error: why the settings of the run cannot be read, so that findings that need them are missing; None if
            they can, or for an index file.
    """

    target: str
    counted_on: str
    levels: list[Usage]
    distinct: IdCounts | None
    sample_kind: str | None = None
    batch_tokens: int | None = None
    findings: Sequence[Finding] = ()
    early_until: int | None = None
    settings_error: str | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens counted per level: samples times L."""
        return self.levels[0].tokens


def inspect(
    targets: list[Path],
    data: str | None = None,
    key: str | None = None,
    device: str | None = None,
    on_skipped: OnSkipped | None = None,
) -> list[Inspection]:
    """Inspect runs, directories of runs, and index files.

    Args:
        data: path of data to count the codes of runs on; None: use the counts of the best validation.
        key: name of the array in `data`, if that is a container.
        device: device to encode `data` on.
        on_skipped: called for each run of a directory that cannot be used; None: such a run is an error.

    Returns:
        One inspection per run or index file; the runs of a directory are in order of their names.

    Raises:
        CheckpointError: a target does not exist, is damaged, or is neither a run, a directory of runs nor an index
            file.
        ConfigError: with `data`, the settings of a run are invalid or the device is not available. Without `data`,
            settings that cannot be read are not an error, see `Inspection.settings_error`.
        DataError: an index file or the data cannot be used, or `data` is given for an index file.
    """
    return map_targets(targets, lambda target: inspect_target(target, data, key, device), on_skipped)


def inspect_target(
    target: Path, data: str | None = None, key: str | None = None, device: str | None = None
) -> Inspection:
    """Inspect one run or index file; arguments and errors as for `inspect`."""
    if target.is_file():
        if data is not None:
            raise DataError(f"--data cannot be used with an index file ({target}); omit --data")
        return inspection_from_file(target, count_index_file(target))
    if data is not None:
        return inspection_from_data(target, data, load(target, device).count_codes(data, key))
    run = RunDirectory(target)
    saved, _ = read_model(run.model)
    if not saved.counts:
        raise CheckpointError(f"{target}: model.safetensors has no code counts; use --data FILE to count codes")
    evidence = evidence_from_run(run, saved)
    inspection = _inspection_from_evidence(target, "the best validation pass", evidence)
    return inspection if evidence.settings else replace(inspection, settings_error=settings_error(run))


def inspection_from_file(target: Path, counter: CodeCounter) -> Inspection:
    """Return the inspection of an index file from `count_index_file(target)`; reads the manifest for its layout."""
    inspection = _inspection_from_evidence(
        target, "the indices in the file", Evidence(counter.levels, counter.distinct)
    )
    return replace(inspection, sample_kind=_sample_kind(read_manifest(target).layout))


def inspection_from_data(target: Path, data: str, counter: CodeCounter) -> Inspection:
    """Return the inspection of a run from the code counts of a dataset.

    Findings that need validation metrics are missing.

    Args:
        target: run directory; its settings are read, if they can be.
        data: name of the dataset, for display.
        counter: counts of the run's codes on the dataset.
    """
    settings = settings_or_none(RunDirectory(target))
    return _inspection_from_evidence(target, data, Evidence(counter.levels, counter.distinct, settings=settings))


def _inspection_from_evidence(target: Path, counted_on: str, evidence: Evidence) -> Inspection:
    sample_kind, batch_tokens = _sample_kind_and_batch_tokens(evidence.settings)
    return Inspection(
        str(target),
        counted_on,
        list(evidence.levels),
        evidence.distinct,
        sample_kind,
        batch_tokens,
        diagnose(evidence),
        evidence.early_until,
    )


def count_index_file(
    path: Path, on_block: OnBlock | None = None, indices_per_block: int = _INDICES_PER_BLOCK
) -> CodeCounter:
    """Count the hits of each code in an index file and, if its samples are vectors, the distinct ids.

    The id of a sample is the tuple of all its indices. The last level of a file written with --unique is ignored,
    because it does not hold codes.

    Args:
        path: index file; its manifest gives the codebook sizes and the layout of the samples.
        on_block: called with the number of the first row of each block, and the block: indices (n, L) or (n, L, Q).
        indices_per_block: maximum number of indices in a block; a block has at least one row, even if that has more.

    Raises:
        DataError: the file or its manifest cannot be read, or an index is out of range.
    """
    indices, manifest = read_indices(path)
    sizes = manifest.codebook_sizes
    if manifest.unique:
        indices, sizes = indices[..., :-1], sizes[:-1]
    counter = CodeCounter(sizes, ids=manifest.layout == "C")
    rows_per_block = max(1, indices_per_block // int(np.prod(indices.shape[1:])))
    with pass_bar("inspect", len(indices)) as bar:
        for start in range(0, len(indices), rows_per_block):
            block = indices[start : start + rows_per_block]
            try:
                counter.add(block)
            except IndexError as error:
                raise DataError(f"{path}: damaged: contains {error}; encode the data again") from error
            if on_block:
                on_block(start, block)
            bar.update(len(block))
    return counter


def expand_targets(targets: Sequence[Path]) -> list[Path]:
    """Return the runs and index files among the targets, with each directory of runs replaced by its runs.

    Raises:
        CheckpointError: a target does not exist, or is neither a run, a directory of runs nor an index file.
    """
    return [path for target in targets for path in _expand_target(target)]


def map_targets(
    targets: Sequence[Path], function: Callable[[Path], Result], on_skipped: OnSkipped | None
) -> list[Result]:
    """Return `function(path)` for each run and index file in `expand_targets(targets)`.

    Args:
        on_skipped: called, at the end, for each run of a directory for which `function` raises an error of the types
            below; None: the error is raised.

    Raises:
        CheckpointError, ConfigError, DataError: from `expand_targets`; from `function` for a run or index file that is
            itself a target; or the first error of `function`, if there is no result at all.
    """
    results, failures = [], []
    for target in targets:
        for path in _expand_target(target):
            try:
                results.append(function(path))
            except (CheckpointError, ConfigError, DataError) as error:
                if path == target or on_skipped is None:
                    raise
                failures.append((path, error))
    if failures and not results:
        raise failures[0][1]
    for path, failure in failures:
        assert on_skipped
        on_skipped(path, failure)
    return results


def _expand_target(target: Path) -> list[Path]:
    if target.is_file() or RunDirectory(target).exists:
        return [target]
    runs = sorted(path.parent for path in target.glob("*/config.yaml") if RunDirectory(path.parent).exists)
    if not runs:
        raise CheckpointError(
            f"{target}: is neither a run, nor a directory of runs, nor an index file"
            if target.exists()
            else f"{target}: does not exist"
        )
    return runs


def _sample_kind_and_batch_tokens(settings: RunSettings | None) -> tuple[str | None, int | None]:
    """Return `sample_kind` and `batch_tokens` as in `Inspection`; both None if settings or data spec are unknown."""
    if settings is None:
        return None, None
    try:
        spec = spec_of(settings.data)
    except ConfigError:
        return None, None
    tokens_per_sample = math.prod(settings.model.encoder.grid(spec.size))
    return _sample_kind(spec.layout, bool(spec.classes)), settings.training.batch_size * tokens_per_sample


def _sample_kind(layout: str, classes: bool = False) -> str | None:
    """Return `sample_kind` as in `Inspection`: "grids" for all classes, else by layout; None if that is unknown."""
    if layout not in LAYOUTS:
        return None
    if classes:
        return "grids"
    spatial_axes = LAYOUTS[layout].rank - (LAYOUTS[layout].channel is not None)
    return ["vectors", "sequences", "images"][spatial_axes]
