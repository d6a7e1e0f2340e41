"""Sources of rows: tensor files (one file, a directory or a glob) or a synthetic generator, and their scans."""

import functools
import glob
import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqtool.data.layout import LayoutName, dtype_name, layouts_with_channels
from vqtool.data.rows import NumpyRows, Rows, ShardedRows
from vqtool.data.scan import FileScan, Moments, RowMask, scan_file, scan_rows
from vqtool.data.settings import SyntheticSettings
from vqtool.data.tensor_files import READERS, open_file
from vqtool.errors import DataError
from vqtool.runtime.memory import check_fits_memory
from vqtool.runtime.terminal import join_or

# Rows read at a time to find a row with an invalid class.
_ROWS_PER_BLOCK = 4096
# Peak memory of generating one value: the value itself and temporaries in float64.
_BYTES_PER_GENERATED_VALUE = 32


@dataclass(frozen=True)
class Shard:
    """One file of a source, or the whole of a synthetic data set.

    Attributes:
        name: file name without directory; `synthetic-<kind>` for synthetic data.
        rows: number of rows.
        sha256: of the file; of the array's bytes for synthetic data.
    """

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class DatasetScan:
    """Result of scanning all shards of a source.

    Attributes:
        shards: in the order of their rows.
        moments: moments of the rows that `moment_rows` selected; None for classes. If the source was scanned with
            `moment_rows=False`, do not use them: they are None or come from earlier scans.
        largest: largest class over all rows; None for values.
    """

    shards: tuple[Shard, ...]
    moments: Moments | None
    largest: int | None

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "DatasetScan":
        """Build a scan from the dict that `dataclasses.asdict` returned for it."""
        moments = fields["moments"] and Moments(**fields["moments"])
        return cls(tuple(Shard(**shard) for shard in fields["shards"]), moments, fields["largest"])

    @property
    def sha256(self) -> str:
        """SHA-256 of the data: `combined_sha256` of the shards."""
        return combined_sha256([shard.sha256 for shard in self.shards])


def combined_sha256(digests: Sequence[str]) -> str:
    """Return the SHA-256 of the concatenated hexadecimal `digests`; a single digest is returned unchanged."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


class Source(ABC):
    """Rows with a name, in one or more shards.

    Attributes:
        name: name of the data in messages: the path as the user wrote it, or `synthetic-<kind>`.
        paths: file of each shard, sorted; empty for synthetic data.
        rows: rows of all shards, concatenated.
    """

    name: str
    paths: list[Path]
    rows: Rows
    _file_stamps: Sequence[tuple[int, ...]] = ()

    def scan(self, layout: LayoutName, moment_rows: RowMask = True) -> DatasetScan:
        """Scan all rows, or return cached scans.

        Args:
            layout: layout of the rows.
            moment_rows: rows that enter the moments, as in `scan_file`; a mask has an entry for every row.

        Raises:
            DataError: a value is not finite in float32, or a class is negative; names the first such row.
        """
        shards = self._scan_shards(layout, moment_rows)
        moments = [scan.moments for _, scan in shards if scan.moments is not None]
        largest = [scan.largest for _, scan in shards if scan.largest is not None]
        if any(scan.smallest is not None and scan.smallest < 0 for _, scan in shards):
            layouts = join_or(layouts_with_channels(layout))
            raise DataError(
                f"{self.name}: row {self._first_invalid_row(None)[0]} contains a negative integer, but integers in "
                f"layout {layout} are classes, numbered from 0; for values, set data.layout to {layouts}"
            )
        return DatasetScan(
            shards=tuple(shard for shard, _ in shards),
            moments=functools.reduce(Moments.merge, moments) if moments else None,
            largest=max(largest, default=None),
        )

    def check_classes(self, scan: DatasetScan, num_classes: int, advice: str = "") -> None:
        """Check that all classes are below `num_classes`.

        Args:
            scan: scan of this source.
            num_classes: number of valid classes.
            advice: text appended to the message.

        Raises:
            DataError: a class is `num_classes` or larger; names the first such row.
        """
        if scan.largest is not None and scan.largest >= num_classes:
            row, row_max = self._first_invalid_row(num_classes)
            raise DataError(
                f"{self.name}: row {row} contains class {row_max} (largest: {scan.largest}), but valid classes are 0 "
                f"to {num_classes - 1}; correct the row{advice}"
            )

    def check_unchanged(self) -> None:
        """Check that no file has changed inode, size or modification time since the source was opened.

        Raises:
            DataError: a file changed or was removed; names the first such file.
        """
        for path, stamp in zip(self.paths, self._file_stamps, strict=True):
            if _file_stamp(path) != stamp:
                raise DataError(f"{path}: file changed while it was read; run the command again")

    @abstractmethod
    def _scan_shards(self, layout: LayoutName, moment_rows: RowMask) -> list[tuple[Shard, FileScan]]:
        """Return each shard with its scan, in order."""

    def _first_invalid_row(self, num_classes: int | None) -> tuple[int, int]:
        """Find the first row with a class >= `num_classes`, or with a negative integer if `num_classes` is None.

        Returns:
            The number of the row in the whole source, and the largest integer in this row.
        """
        for start in range(0, len(self.rows), _ROWS_PER_BLOCK):
            rows = self.rows.read(start, min(start + _ROWS_PER_BLOCK, len(self.rows))).flatten(1).numpy()
            invalid = (rows < 0).any(axis=1) if num_classes is None else (rows >= num_classes).any(axis=1)
            if invalid.any():
                return start + int(invalid.argmax()), int(rows[invalid.argmax()].max())
        raise AssertionError("the scan found an invalid row")


class FileSource(Source):
    """Rows of a tensor file, of all tensor files of a directory, or of those that match a glob, sorted by path.

    Subdirectories and hidden files of a directory are ignored.

    Args:
        path: path as in `data.path` of the config.
        key: name of the array in every file; None: each file contains one array.

    Raises:
        DataError: no file matches, a file cannot be opened, or the rows of two files differ in shape or dtype.
    """

    def __init__(self, path: str, key: str | None = None) -> None:
        if not path:
            raise DataError("path of the data is empty; pass a file, directory or glob")
        self.name = path
        self._key = key
        self.paths = _expand_path(path)
        self._file_stamps = [_file_stamp(file) for file in self.paths]
        self._shards = [open_file(file, key) for file in self.paths]
        for file, rows in zip(self.paths, self._shards, strict=True):
            first = self._shards[0]
            if (rows.shape, rows.dtype) != (first.shape, first.dtype):
                raise DataError(describe_mismatch(f"{file}: rows", rows, f"those of {self.paths[0]}", first))
        self.rows = self._shards[0] if len(self._shards) == 1 else ShardedRows(self._shards)

    def _scan_shards(self, layout: LayoutName, moment_rows: RowMask) -> list[tuple[Shard, FileScan]]:
        shards, start = [], 0
        for path, rows in zip(self.paths, self._shards, strict=True):
            mask = moment_rows if isinstance(moment_rows, bool) else moment_rows[start : start + len(rows)]
            scan = scan_file(path, rows, layout, self._key, mask)
            shards.append((Shard(path.name, len(rows), scan.sha256), scan))
            start += len(rows)
        return shards


class GeneratedSource(Source):
    """Synthetic rows, generated from a seed and kept in memory.

    Args:
        settings: generator and number of rows.
        seed: of the generator; equal settings and seeds give equal rows.

    Raises:
        DataError: the rows do not fit in the free memory.
    """

    def __init__(self, settings: SyntheticSettings, seed: int) -> None:
        self.name = f"synthetic-{settings.source.kind}"
        self.paths = []
        num_values = settings.samples * settings.source.values_per_sample + settings.source.shared_values
        subject = f"data.samples: {settings.samples:,} of {self.name}"
        check_fits_memory(
            num_values * _BYTES_PER_GENERATED_VALUE, subject, "lower data.samples or the size of a sample"
        )
        self._array = settings.source.generate(settings.samples, np.random.default_rng(seed))
        self.rows = NumpyRows(self._array)

    def _scan_shards(self, layout: LayoutName, moment_rows: RowMask) -> list[tuple[Shard, FileScan]]:
        content = io.BytesIO(self._array.tobytes())
        scan = scan_rows(self.name, self.rows, layout, moment_rows, content, self._array.nbytes)
        return [(Shard(self.name, len(self.rows), scan.sha256), scan)]


def describe_mismatch(name: str, rows: Rows, expected_name: str, expected: Rows) -> str:
    """Return how rows differ in shape or dtype: `a.npy: rows have shape (3,), but those of b.npy have shape (4,)`.

    Args:
        name: subject of the sentence, plural: `a.npy: rows`.
        rows: the rows that do not match `expected`.
        expected_name: name of the expected rows, plural: `those of b.npy`.
        expected: rows of another shape or dtype.
    """
    shapes, dtypes = (rows.shape, expected.shape), (dtype_name(rows.dtype), dtype_name(expected.dtype))
    differing = [(field, pair) for field, pair in (("shape", shapes), ("dtype", dtypes)) if pair[0] != pair[1]]
    actual_text, expected_text = (" and ".join(f"{field} {pair[side]}" for field, pair in differing) for side in (0, 1))
    return f"{name} have {actual_text}, but {expected_name} have {expected_text}"


def _file_stamp(path: Path) -> tuple[int, ...]:
    """Return inode, size and modification time of a file; zeros if it cannot be accessed."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _expand_path(path: str) -> list[Path]:
    """Return the files that `data.path` names, sorted. A path that is not a glob is returned even if it does not exist.

    Raises:
        DataError: a directory or glob has no tensor files, or the directory cannot be read.
    """
    try:
        if Path(path).is_dir():
            files = [p for p in Path(path).iterdir() if p.suffix.lower() in READERS and not p.name.startswith(".")]
        elif Path(path).exists() or not glob.has_magic(path):
            files = [Path(path)]
        else:
            files = [p for p in _glob(path) if p.suffix.lower() in READERS]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not files and not os.path.isdir(path) and not _glob(path):
        raise DataError(f"{path}: matches no file; check the pattern")
    if not files:
        raise DataError(f"{path}: no tensor files found; expected {join_or(READERS)}")
    return sorted(files)


def _glob(pattern: str) -> list[Path]:
    """Return the paths that match a glob, files of any type and directories, unsorted."""
    if "**" not in Path(pattern).parts:
        return [Path(match) for match in glob.glob(pattern)]
    # For **, glob.glob follows symbolic links and never ends if they form a cycle; pathlib does not follow them.
    root = Path(Path(pattern).anchor)
    inner = Path(pattern).relative_to(root)
    matches = root.glob(str(inner / "*" if inner.name == "**" else inner))
    # Unlike glob.glob, pathlib lets * and ** match hidden names: drop matches with more of them than the pattern names.
    hidden = sum(part.startswith(".") for part in inner.parts)
    return [p for p in matches if sum(part.startswith(".") for part in p.relative_to(root).parts) <= hidden]
