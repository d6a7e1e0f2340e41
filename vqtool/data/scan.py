"""One pass over a tensor file: every value is finite, its SHA-256, and the statistics that normalising needs.

The result is kept in a cache under the file's size and time of change, so that a second pass is spared.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.data.layout import LayoutName, holds_classes, rows_to_values
from vqtool.data.rows import Rows
from vqtool.errors import DataError, VqtoolError
from vqtool.runtime.files import write_json
from vqtool.runtime.progress import pass_bar

# Bytes read at a time: what a cache holds.
_CHUNK = 1 << 20
# Part of every cache entry's name: raise it when a scan comes to mean something else.
_VERSION = 2


@dataclass(frozen=True)
class Moments:
    """Count, means and summed squared deviations of each channel (C,), which merge exactly (Chan et al. 1979)."""

    count: int
    mean: tuple[float, ...]
    squares: tuple[float, ...]

    @staticmethod
    def of(values: Tensor) -> "Moments":
        """Of (n, C, *size) values, in float64."""
        channels = values.double().transpose(0, 1).flatten(1)
        if channels.shape[1] == 0:
            return Moments(0, (0.0,) * len(channels), (0.0,) * len(channels))
        mean = channels.mean(dim=1)
        squares = (channels - mean[:, None]).square().sum(dim=1)
        return Moments(channels.shape[1], tuple(mean.tolist()), tuple(squares.tolist()))

    def merge(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if count == 0:
            return self
        mean, others = np.array(self.mean), np.array(other.mean)
        step = others - mean
        squares = np.array(self.squares) + other.squares + step**2 * self.count * other.count / count
        return Moments(count, tuple((mean + step * other.count / count).tolist()), tuple(squares.tolist()))


@dataclass(frozen=True)
class FileScan:
    """What a pass over a file found.

    Attributes:
        sha256: of the file's bytes.
        moments: of the rows that count; None for classes, and where none do.
        smallest, largest: of all values, for classes; None for values.
    """

    sha256: str
    moments: Moments | None
    smallest: int | None
    largest: int | None


# Which rows count for the moments: all, none, or those of a mask (N,).
Counted = NDArray[np.bool_] | bool


def scan_file(path: Path, rows: Rows, layout: LayoutName, key: str | None, counted: Counted) -> FileScan:
    """Scan a file, or find its scan in the cache.

    Args:
        path: of the file, whose array `rows` are.
        layout: of the rows.
        key: of the array in the file.
        counted: which rows count for the moments.

    Raises:
        DataError: a value is NaN, infinite or beyond float32; names the first such row.
    """
    entry = _cache_entry(path, layout, key, _split_name(counted))
    cached = _cached(entry)
    if cached is not None:
        return cached
    with path.open("rb") as file:
        scan = scan_rows(str(path), rows, layout, counted, file, path.stat().st_size)
    _keep(entry, scan)
    _keep(_cache_entry(path, layout, key, _ANY_SPLIT), scan)
    return scan


def verify_file(path: Path, rows: Rows, layout: LayoutName, key: str | None) -> FileScan:
    """As `scan_file`, but without moments; any earlier scan of the file will do.

    Raises:
        DataError: as `scan_file`.
    """
    return _cached(_cache_entry(path, layout, key, _ANY_SPLIT)) or scan_file(path, rows, layout, key, False)


def scan_rows(name: str, rows: Rows, layout: LayoutName, counted: Counted, content: BinaryIO, size: int) -> FileScan:
    """Scan rows as they stand, and hash the `size` bytes of `content` that they come from.

    Raises:
        DataError: as `scan_file`.
    """
    classes = holds_classes(layout, rows.dtype)
    digest = hashlib.sha256()
    moments: Moments | None = None
    bounds: list[int] = []
    step = max(1, _CHUNK // max(1, rows.read(0, 1).nbytes))
    with pass_bar(f"scan {name}", len(rows)) as bar:
        for start in range(0, len(rows), step):
            stop = min(start + step, len(rows))
            chunk = rows.read(start, stop)
            # The hash follows the rows through the file, so that each page is fetched once.
            digest.update(content.read(size * stop // len(rows) - content.tell()))
            if classes:
                bounds += [int(chunk.numpy().min()), int(chunk.numpy().max())]
            else:
                values = rows_to_values(chunk, layout)
                _check_finite(values.float(), name, start)
                if counted is not False:
                    kept = values if counted is True else values[torch.from_numpy(counted[start:stop])]
                    found = Moments.of(kept)
                    moments = found if moments is None else moments.merge(found)
            bar.update(stop - start)
    return FileScan(digest.hexdigest(), moments, min(bounds, default=None), max(bounds, default=None))


def _check_finite(values: Tensor, name: str, start: int) -> None:
    # A sum is finite only where all its terms are; the other way round it may overflow, and then the slow test decides.
    if values.sum().isfinite():
        return
    bad = (~values.flatten(1).isfinite()).any(dim=1)
    if bad.any():
        row = int(bad.nonzero()[0])
        kind = "NaN" if values[row].isnan().any() else "a value that is infinite or too large for float32"
        raise DataError(f"{name}: row {start + row} contains {kind}; remove or replace it")


_ANY_SPLIT = "any"


def _split_name(counted: Counted) -> str:
    if isinstance(counted, bool):
        return "all" if counted else _ANY_SPLIT
    return hashlib.sha256(np.packbits(counted).tobytes()).hexdigest()


def _cache_entry(path: Path, layout: LayoutName, key: str | None, split: str) -> Path:
    status = path.stat()
    stamps = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    identity = [_VERSION, str(path.resolve()), *stamps, layout, key, split]
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return home / "vqtool" / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()}.json"


def _keep(entry: Path, scan: FileScan) -> None:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_json(entry, asdict(scan))
    except (OSError, VqtoolError):
        pass  # The cache only saves time.


def _cached(entry: Path) -> FileScan | None:
    try:
        fields = json.loads(entry.read_text(encoding="utf-8"))
        moments = fields.pop("moments")
        if moments is not None:
            moments = Moments(moments["count"], tuple(moments["mean"]), tuple(moments["squares"]))
        return FileScan(moments=moments, **fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
