"""What inspect looks at: a run, a run on other data, an index file; and the figures of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqtool.config import RunSettings
from vqtool.errors import CheckpointError, DataError
from vqtool.indices import read_indices
from vqtool.inspection.evidence import Evidence, of_run
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings import diagnose
from vqtool.model_file import read_model
from vqtool.progress import pass_bar
from vqtool.run import Run
from vqtool.semantic_ids import Distinct
from vqtool.tally import Tally
from vqtool.tokenizer import load
from vqtool.usage import Usage

# Indices counted at a time.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Inspection:
    """The usage of a codebook, and where it was counted.

    Attributes:
        target: what was inspected.
        counted: what its codes were counted on.
        levels: of each level.
        distinct: ids, where samples are vectors.
        findings: what is wrong, the severe first.
    """

    target: str
    counted: str
    levels: list[Usage]
    distinct: Distinct | None
    findings: Sequence[Finding] = ()

    @property
    def tokens(self) -> int:
        """Hits of a level: samples times positions."""
        return self.levels[0].tokens


def inspect(
    targets: list[Path], data: str | None = None, key: str | None = None, device: str | None = None
) -> list[Inspection]:
    """Inspect each target: a run, a folder of runs, or an index file.

    Args:
        data: to count the codes of runs on; None: on the best validation pass.

    Raises:
        CheckpointError: a target is none of these.
        DataError: an index file or the data cannot be used.
    """
    return [_inspect_one(found, data, key, device) for target in targets for found in _expand(target)]


def _expand(target: Path) -> list[Path]:
    if target.is_file() or Run(target).exists:
        return [target]
    runs = sorted(path.parent for path in target.glob("*/config.yaml") if Run(path.parent).model.exists())
    if not runs:
        raise CheckpointError(
            f"{target}: not a run, a folder of runs, or an index file"
            if target.exists()
            else f"{target}: no such file or folder"
        )
    return runs


def _inspect_one(target: Path, data: str | None, key: str | None, device: str | None) -> Inspection:
    if target.is_file():
        if data is not None:
            raise DataError(f"{target}: an index file has its own counts; --data goes with a run")
        return _of_tally(target, "the indices in the file", _count_file(target))
    if data is not None:
        tokenizer = load(target, device)
        return _of_tally(target, data, tokenizer.count(data, key), tokenizer.settings)
    saved, _ = read_model(Run(target).model)
    if not saved.counts:
        raise CheckpointError(f"{target}: its model holds no counts of a validation pass")
    evidence = of_run(Run(target), saved)
    levels = list(evidence.levels)
    return Inspection(str(target), "the run's best validation pass", levels, saved.distinct, diagnose(evidence))


def _of_tally(target: Path, counted: str, tally: Tally, settings: RunSettings | None = None) -> Inspection:
    found = diagnose(Evidence(tally.levels, tally.distinct, settings=settings))
    return Inspection(str(target), counted, tally.levels, tally.distinct, found)


def _count_file(path: Path) -> Tally:
    array, manifest = read_indices(path)
    sizes = manifest.codebook_sizes
    if manifest.unique:  # what makes rows unique is no codebook's
        array, sizes = array[..., :-1], sizes[:-1]
    tally = Tally(sizes, ids=manifest.layout == "C")
    step = max(1, _BLOCK // int(np.prod(array.shape[1:])))
    with pass_bar("inspect", len(array)) as bar:
        for start in range(0, len(array), step):
            try:
                tally.add(array[start : start + step])
            except IndexError as error:
                raise DataError(f"{path}: holds {error}") from error
            bar.update(min(step, len(array) - start))
    return tally
