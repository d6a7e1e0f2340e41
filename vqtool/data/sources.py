"""From a path, or from synthetic settings, to rows that can be read, with the shards they come from."""

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

from vqtool.data.layout import LayoutName, with_channels
from vqtool.data.rows import NumpyRows, Rows, ShardedRows
from vqtool.data.scan import Counted, FileScan, Moments, scan_file, scan_rows, verify_file
from vqtool.data.settings import SyntheticSettings
from vqtool.data.spec import dtype_name
from vqtool.data.tensor_files import READERS, open_file
from vqtool.errors import DataError
from vqtool.runtime.memory import check_fits_memory
from vqtool.runtime.terminal import listed

# Rows looked through at a time.
_BLOCK = 4096
# What making up one number may take at the worst: itself, and temporaries in float64.
_WORKING_BYTES = 32


@dataclass(frozen=True)
class Shard:
    """One file of a source; for synthetic data, all of it.

    Attributes:
        name: of the file, without its folder.
    """

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class DatasetScan:
    """What a scan of a whole source found: see `FileScan`, whose fields these are over all shards."""

    shards: tuple[Shard, ...]
    moments: Moments | None
    largest: int | None

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "DatasetScan":
        """From fields as `dataclasses.asdict` makes them."""
        moments = fields["moments"] and Moments(**fields["moments"])
        return cls(tuple(Shard(**shard) for shard in fields["shards"]), moments, fields["largest"])

    @property
    def sha256(self) -> str:
        """The SHA-256 of the shards."""
        return combined_sha256([shard.sha256 for shard in self.shards])


def combined_sha256(digests: Sequence[str]) -> str:
    """The only digest; of several, the SHA-256 of them in order."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


class Source(ABC):
    """Rows with a name.

    Attributes:
        name: what to call them in a message.
        paths: the files they are read from.
    """

    name: str
    paths: list[Path]
    rows: Rows
    _identities: Sequence[tuple[int, ...]] = ()

    def survey(self, layout: LayoutName, counted: Counted = True) -> DatasetScan:
        """Scan all rows once; `counted` says which of them count for the moments.

        Raises:
            DataError: a value is not finite, or a class is negative.
        """
        return self._summary(self._scan(layout, counted), layout)

    def verify(self, layout: LayoutName) -> DatasetScan:
        """As `survey`, without moments; any earlier scan of a file will do.

        Raises:
            DataError: as `survey`.
        """
        return self._summary(self._verify(layout), layout)

    def _summary(self, scanned: list[tuple[Shard, FileScan]], layout: LayoutName) -> DatasetScan:
        moments = [scan.moments for _, scan in scanned if scan.moments is not None]
        largest = [scan.largest for _, scan in scanned if scan.largest is not None]
        if any(scan.smallest is not None and scan.smallest < 0 for _, scan in scanned):
            others = listed(with_channels(layout))
            raise DataError(
                f"{self.name}: row {self._first_outside(None)[0]} contains a negative integer, but integers in layout "
                f"{layout} are classes, numbered from 0; for values, set data.layout to {others}"
            )
        return DatasetScan(
            shards=tuple(shard for shard, _ in scanned),
            moments=functools.reduce(Moments.merge, moments) if moments else None,
            largest=max(largest, default=None),
        )

    def check_classes(self, survey: DatasetScan, classes: int, advice: str = "") -> None:
        """Refuse a class of `classes` or above; `advice` ends the message.

        Raises:
            DataError: there is one; names the first row.
        """
        if survey.largest is not None and survey.largest >= classes:
            row, found = self._first_outside(classes)
            raise DataError(
                f"{self.name}: row {row} contains class {found} (largest: {survey.largest}), but valid classes are 0 "
                f"to {classes - 1}; correct the row{advice}"
            )

    def check_unchanged(self) -> None:
        """Refuse files that are no longer those that were opened.

        Raises:
            DataError: names one.
        """
        for path, before in zip(self.paths, self._identities, strict=True):
            if _identity(path) != before:
                raise DataError(f"{path}: file changed while it was read; run the command again")

    def _verify(self, layout: LayoutName) -> list[tuple[Shard, FileScan]]:
        return self._scan(layout, False)

    @abstractmethod
    def _scan(self, layout: LayoutName, counted: Counted) -> list[tuple[Shard, FileScan]]:
        """Each shard and what is found in it."""

    def _first_outside(self, classes: int | None) -> tuple[int, int]:
        """The number of the first row with an integer below 0, or of `classes` or above; and its largest integer."""
        for start in range(0, len(self.rows), _BLOCK):
            rows = self.rows.read(start, min(start + _BLOCK, len(self.rows))).flatten(1).numpy()
            outside = (rows < 0).any(axis=1) if classes is None else (rows >= classes).any(axis=1)
            if outside.any():
                return start + int(outside.argmax()), int(rows[outside.argmax()].max())
        raise AssertionError("the scan saw such a row")


class FileSource(Source):
    """The rows of a file, a folder or a glob.

    Args:
        path: what `data.path` may be.
        key: the name of the array in files of several.

    Raises:
        DataError: nothing is there, or the files do not agree in shape and type.
    """

    def __init__(self, path: str, key: str | None = None) -> None:
        if not path:
            raise DataError("path of the data is empty; pass a file, directory or glob")
        self.name = path
        self._key = key
        self.paths = _expand(path)
        self._identities = [_identity(file) for file in self.paths]
        self._shards = [open_file(file, key) for file in self.paths]
        _check_agree(self.paths, self._shards)
        self.rows = self._shards[0] if len(self._shards) == 1 else ShardedRows(self._shards)

    def _scan(self, layout: LayoutName, counted: Counted) -> list[tuple[Shard, FileScan]]:
        scans, start = [], 0
        for path, rows in zip(self.paths, self._shards, strict=True):
            kept = counted if isinstance(counted, bool) else counted[start : start + len(rows)]
            scans.append(scan_file(path, rows, layout, self._key, kept))
            start += len(rows)
        return self._by_shard(scans)

    def _verify(self, layout: LayoutName) -> list[tuple[Shard, FileScan]]:
        files = zip(self.paths, self._shards, strict=True)
        return self._by_shard([verify_file(path, rows, layout, self._key) for path, rows in files])

    def _by_shard(self, scans: list[FileScan]) -> list[tuple[Shard, FileScan]]:
        files = zip(self.paths, self._shards, scans, strict=True)
        return [(Shard(path.name, len(rows), scan.sha256), scan) for path, rows, scan in files]


class GeneratedSource(Source):
    """Rows made up from a seed, held in memory.

    Raises:
        DataError: they would not fit.
    """

    def __init__(self, settings: SyntheticSettings, seed: int) -> None:
        self.name = f"synthetic-{settings.source.kind}"
        self.paths = []
        numbers = settings.samples * settings.source.numbers + settings.source.shared_numbers
        what = f"data.samples: {settings.samples:,} of {self.name}"
        check_fits_memory(numbers * _WORKING_BYTES, what, "lower data.samples or the size of a sample")
        self._array = settings.source.generate(settings.samples, np.random.default_rng(seed))
        self.rows = NumpyRows(self._array)

    def _scan(self, layout: LayoutName, counted: Counted) -> list[tuple[Shard, FileScan]]:
        content = io.BytesIO(self._array.tobytes())
        scan = scan_rows(self.name, self.rows, layout, counted, content, self._array.nbytes)
        return [(Shard(self.name, len(self.rows), scan.sha256), scan)]


def _expand(path: str) -> list[Path]:
    try:
        found = _found(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not found and not os.path.isdir(path) and not _matches(path):
        raise DataError(f"{path}: matches no file; check the pattern")
    if not found:
        raise DataError(f"{path}: no tensor files found; expected {listed(READERS)}")
    return sorted(found)


def _identity(path: Path) -> tuple[int, ...]:
    """What changes with a file; all zero where there is none."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _found(path: str) -> list[Path]:
    if Path(path).is_dir():
        return [p for p in Path(path).iterdir() if p.suffix.lower() in READERS and not p.name.startswith(".")]
    if Path(path).exists() or not glob.has_magic(path):
        return [Path(path)]
    return [p for p in _matches(path) if p.suffix.lower() in READERS]


def _matches(pattern: str) -> list[Path]:
    if "**" not in Path(pattern).parts:
        return [Path(match) for match in glob.glob(pattern)]
    # Under **, glob.glob follows links, and two that lead back to their folder keep it busy for ever; pathlib does not.
    root = Path(Path(pattern).anchor)
    inner = Path(pattern).relative_to(root)
    found = root.glob(str(inner / "*" if inner.name == "**" else inner))
    hidden = sum(part.startswith(".") for part in inner.parts)
    return [p for p in found if sum(part.startswith(".") for part in p.relative_to(root).parts) <= hidden]


def _check_agree(paths: Sequence[Path], shards: Sequence[Rows]) -> None:
    first = shards[0]
    for path, rows in zip(paths, shards, strict=True):
        if (rows.shape, rows.dtype) != (first.shape, first.dtype):
            raise DataError(mismatch(f"{path}: rows", rows, f"those of {paths[0]}", first))


def mismatch(what: str, rows: Rows, others: str, expected: Rows) -> str:
    """How rows differ from the others: in shape, dtype or both."""
    shapes, dtypes = (rows.shape, expected.shape), (dtype_name(rows.dtype), dtype_name(expected.dtype))
    differing = [(name, pair) for name, pair in (("shape", shapes), ("dtype", dtypes)) if pair[0] != pair[1]]
    ours, theirs = (" and ".join(f"{name} {pair[side]}" for name, pair in differing) for side in (0, 1))
    return f"{what} have {ours}, but {others} have {theirs}"
