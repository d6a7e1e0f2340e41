"""Scan of a tensor file in one pass: hash the file, check that values are finite, compute statistics.

The statistics of values are mean and variance of each channel, those of classes the smallest and largest class.

Results are cached in `$XDG_CACHE_HOME/vqtool` (default `~/.cache/vqtool`). An entry is valid for one path, size,
modification time and change time (ctime) of the file, and for one array, layout and selection of rows.

Shapes: N rows, n of them, C channels.
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

# Bytes of rows read at a time; small enough to stay in the CPU's cache.
_CHUNK_BYTES = 1 << 20
# Part of the file name of a cache entry. Increase it if the meaning of a scan changes.
_CACHE_VERSION = 2

# Selects rows: a mask (N,), True for all rows, or False for none.
RowMask = NDArray[np.bool_] | bool


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of each channel; mergeable by the update of Chan et al. (1979).

    Attributes:
        count: number of values per channel, the same for all; 0: mean and squares are 0.
        mean: (C,) mean of each channel.
        squares: (C,) sum over the values x of a channel of (x - mean)².
    """

    count: int
    mean: tuple[float, ...]
    squares: tuple[float, ...]

    @staticmethod
    def of(values: Tensor) -> "Moments":
        """Compute, in float64, the moments of values (n, C, *size) of any dtype; n may be 0."""
        channels = values.double().transpose(0, 1).flatten(1)
        if channels.shape[1] == 0:
            return Moments(0, (0.0,) * len(channels), (0.0,) * len(channels))
        mean = channels.mean(dim=1)
        squares = (channels - mean[:, None]).square().sum(dim=1)
        return Moments(channels.shape[1], tuple(mean.tolist()), tuple(squares.tolist()))

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of the values of `self` and `other` together."""
        count = self.count + other.count
        if count == 0:
            return self
        mean = np.array(self.mean)
        delta = np.array(other.mean) - mean
        squares = np.array(self.squares) + other.squares + delta**2 * self.count * other.count / count
        return Moments(count, tuple((mean + delta * other.count / count).tolist()), tuple(squares.tolist()))


@dataclass(frozen=True)
class FileScan:
    """Result of scanning one file.

    Attributes:
        sha256: SHA-256 of the file, or of the array's bytes for data in memory.
        moments: moments of the rows that `moment_rows` selected; None for classes. If the file was scanned with
            `moment_rows=False`, do not use them: they are None or those of an earlier scan.
        smallest, largest: smallest and largest class over all rows; None for values. Scanning does not reject negative
            classes.
    """

    sha256: str
    moments: Moments | None
    smallest: int | None
    largest: int | None


def scan_file(path: Path, rows: Rows, layout: LayoutName, key: str | None, moment_rows: RowMask) -> FileScan:
    """Return the cached scan of a file; if there is none, scan the file and cache the result.

    Args:
        path: the file.
        rows: the array in the file.
        layout: layout of the rows.
        key: name of the array in the file; None: the file has only one array.
        moment_rows: rows from which the moments are computed; the other results are those of all rows. With False, the
            moments of the returned scan must not be used: they are None or those of an earlier scan.

    Raises:
        DataError: a value of any row is NaN, infinite or beyond the range of float32; names the first such row.
    """
    entry = _cache_path(path, layout, key, moment_rows)
    scan = _read_cache(entry)
    if scan is None:
        with path.open("rb") as file:
            scan = scan_rows(str(path), rows, layout, moment_rows, file, path.stat().st_size)
        _write_cache(entry, scan)
        _write_cache(_cache_path(path, layout, key, False), scan)
    return scan


def scan_rows(
    name: str,
    rows: Rows,
    layout: LayoutName,
    moment_rows: RowMask,
    content: BinaryIO,
    size: int,
    chunk_bytes: int = _CHUNK_BYTES,
) -> FileScan:
    """Scan rows, and hash the first `size` bytes of `content`, from which they come.

    Args:
        name: name of the data, in messages and the progress bar.
        rows: at least one row.
        layout: layout of the rows.
        moment_rows: rows that enter the moments; with False, the moments are None.
        content: the open file, or the bytes of the array; at position 0.
        size: number of bytes of `content`.
        chunk_bytes: bytes of rows to read at a time; at least one row is read.

    Raises:
        DataError: as `scan_file`.
    """
    classes = holds_classes(layout, rows.dtype)
    digest = hashlib.sha256()
    moments: Moments | None = None
    extremes: list[int] = []
    rows_per_chunk = max(1, chunk_bytes // max(1, rows.read(0, 1).nbytes))
    with pass_bar(f"scan {name}", len(rows)) as bar:
        for start in range(0, len(rows), rows_per_chunk):
            stop = min(start + rows_per_chunk, len(rows))
            chunk = rows.read(start, stop)
            # The hash advances with the rows, so each page of the file is read from disk once.
            digest.update(content.read(size * stop // len(rows) - content.tell()))
            if classes:
                extremes += [int(chunk.numpy().min()), int(chunk.numpy().max())]
            else:
                values = rows_to_values(chunk, layout)
                _check_finite(values.float(), name, start)
                if moment_rows is not False:
                    selected = values if moment_rows is True else values[torch.from_numpy(moment_rows[start:stop])]
                    chunk_moments = Moments.of(selected)
                    moments = chunk_moments if moments is None else moments.merge(chunk_moments)
            bar.update(stop - start)
    return FileScan(digest.hexdigest(), moments, min(extremes, default=None), max(extremes, default=None))


def _check_finite(values: Tensor, name: str, start: int) -> None:
    """Raise a DataError for the first row of float32 values (n, ...) with NaN or infinity; row 0 has number `start`."""
    # Fast path: a finite sum implies finite terms. A sum of finite terms can overflow, so otherwise test each value.
    if values.sum().isfinite():
        return
    bad = (~values.flatten(1).isfinite()).any(dim=1)
    if bad.any():
        row = int(bad.nonzero()[0])
        kind = "NaN" if values[row].isnan().any() else "a value that is infinite or too large for float32"
        raise DataError(f"{name}: row {start + row} contains {kind}; remove or replace it")


def _cache_path(path: Path, layout: LayoutName, key: str | None, moment_rows: RowMask) -> Path:
    """Return the path of the cache entry of a scan.

    The entry for `moment_rows=False` serves any caller that needs no moments: every scan of the file writes it.
    """
    if isinstance(moment_rows, bool):
        selection = "all" if moment_rows else "any"
    else:
        selection = hashlib.sha256(np.packbits(moment_rows).tobytes()).hexdigest()
    status = path.stat()
    stamps = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    identity = [_CACHE_VERSION, str(path.resolve()), *stamps, layout, key, selection]
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return home / "vqtool" / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()}.json"


def _write_cache(entry: Path, scan: FileScan) -> None:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_json(entry, asdict(scan))
    except (OSError, VqtoolError):
        pass  # The cache only saves time.


def _read_cache(entry: Path) -> FileScan | None:
    """Return the scan in a cache entry; None if there is no entry, or if it is damaged."""
    try:
        fields = json.loads(entry.read_text(encoding="utf-8"))
        moments = fields.pop("moments")
        if moments is not None:
            moments = Moments(moments["count"], tuple(moments["mean"]), tuple(moments["squares"]))
        return FileScan(moments=moments, **fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
