"""What inspect looks at: a run, a run on other data, an index file; and the figures of each."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vqtool.errors import CheckpointError, DataError
from vqtool.indices import read_indices
from vqtool.progress import pass_bar
from vqtool.run import Run
from vqtool.tokenizer import load
from vqtool.usage import Usage, usage_of

# Indices counted at a time.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Inspection:
    """The usage of a codebook, and where it was counted.

    Attributes:
        target: what was inspected.
        counted: what its codes were counted on.
        levels: of each level.
    """

    target: str
    counted: str
    levels: list[Usage]

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
        return Inspection(str(target), "the indices in the file", _count_file(target))
    if data is not None:
        return Inspection(str(target), data, load(target, device).usage(data, key))
    levels = [usage_of(hits) for hits in Run(target).load_model()[1]]
    if not levels:
        raise CheckpointError(f"{target}: its model holds no counts of a validation pass")
    return Inspection(str(target), "the run's best validation pass", levels)


def _count_file(path: Path) -> list[Usage]:
    array, manifest = read_indices(path)
    sizes = manifest.codebook_sizes
    counts = np.zeros((len(sizes), max(sizes)), dtype=np.int64)
    step = max(1, _BLOCK // int(np.prod(array.shape[1:])))
    with pass_bar("inspect", len(array)) as bar:
        for start in range(0, len(array), step):
            rows = array[start : start + step]
            for hits, size, level in zip(counts, sizes, rows.reshape(-1, len(sizes)).T, strict=True):
                if level.size and int(level.max()) >= size:
                    raise DataError(f"{path}: holds index {level.max()}, but the codebook has {size} codes")
                hits += np.bincount(level, minlength=counts.shape[1])
            bar.update(len(rows))
    return [usage_of(torch.from_numpy(hits[:size])) for hits, size in zip(counts, sizes, strict=True)]
