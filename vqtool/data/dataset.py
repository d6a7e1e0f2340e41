"""The data set of a run: opened, split into training and validation, scanned, and with all `auto` settings resolved.

Shapes: n rows, C channels; size is (), (T,) or (H, W).
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqtool.data.layout import LAYOUTS, LayoutName, SampleSpec, dtype_name, guess_layout, holds_classes, sample_shape
from vqtool.data.rows import RowIndices, Rows
from vqtool.data.scan import Moments, RowMask
from vqtool.data.settings import MAX_CLASSES, AnyDataSettings, DataSettings, TensorsSettings
from vqtool.data.sources import DatasetScan, FileSource, GeneratedSource, Source, combined_sha256, describe_mismatch
from vqtool.errors import ConfigError, DataError
from vqtool.runtime.distributed import on_rank0, world_size

# Smallest accepted ratio of standard deviation to |mean|: of the 24 bits of a float32, 5 are left for the deviation.
_MIN_RELATIVE_STD = 2.0**-19
# With `classes: auto`, integers from this number up are refused as outliers.
_MAX_AUTO_CLASSES = 1 << 16


@dataclass(frozen=True)
class Samples:
    """Rows of a source, or a subset of them, read as samples: (n, C, *size) float32 values or (n, *size) int64 classes.

    Values are in the units of the data, not normalised. Samples are numbered from 0 within the subset.

    Attributes:
        rows: all rows of the source.
        spec: layout, channels, classes and dtype of the rows; their size can differ.
        row_indices: (n,) row number of each sample of a subset; None: all rows in order.
    """

    rows: Rows
    spec: SampleSpec
    row_indices: RowIndices | None = None

    def __len__(self) -> int:
        return len(self.rows) if self.row_indices is None else len(self.row_indices)

    @property
    def size(self) -> tuple[int, ...]:
        """Size of these samples. It can differ from `spec.size`, the size of the training samples."""
        return sample_shape(self.spec.layout, self.rows.shape)[1]

    def first(self, count: int) -> "Samples":
        """Return the first `count` samples, or all if there are fewer."""
        return replace(
            self, row_indices=np.arange(len(self))[:count] if self.row_indices is None else self.row_indices[:count]
        )

    def read_rows(self, start: int, stop: int) -> Tensor:
        """Return the rows (n, *row) of samples `start` to `stop` - 1, in the layout and dtype of the user's array."""
        return self.rows.read(start, stop) if self.row_indices is None else self.rows.take(self.row_indices[start:stop])

    def read(self, start: int, stop: int) -> Tensor:
        """Return samples `start` to `stop` - 1."""
        return self.spec.to_samples(self.read_rows(start, stop))

    def take(self, indices: RowIndices) -> Tensor:
        """Return the samples with the numbers `indices` (n,) within this subset, in this order."""
        return self.spec.to_samples(self.rows.take(indices if self.row_indices is None else self.row_indices[indices]))


@dataclass(frozen=True)
class Dataset:
    """Training and validation samples of a run, with everything that was resolved from the data.

    Attributes:
        settings: data settings without `auto`, with absolute paths.
        spec: layout, shape and dtype of the training samples.
        training, validation: the two splits, each with at least one sample.
        mean, scale: (C,) each, computed on the training split; normalisation is (x - mean) / scale, with scale > 0.
            Zeros and ones for classes and for `normalize: none`.
        sha256: of the data; with separate validation data, `combined_sha256` of training and validation data.
    """

    settings: AnyDataSettings
    spec: SampleSpec
    training: Samples
    validation: Samples
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    sha256: str


def open_source(settings: AnyDataSettings, seed: int) -> Source:
    """Open all rows of the data that `data.path` names or `data.source` generates, unsplit and in order.

    `seed` seeds synthetic rows; files ignore it.

    Raises:
        DataError: the data cannot be opened; the message begins with the config key.
    """
    if isinstance(settings, TensorsSettings):
        with _prefix_errors("data.path"):
            return FileSource(settings.path, settings.key)
    return GeneratedSource(settings, seed)


@contextmanager
def _prefix_errors(key: str) -> Iterator[None]:
    """Prefix the message of a DataError of the body with a config key: `data.path: MESSAGE`."""
    try:
        yield
    except DataError as error:
        first, *rest = error.args
        raise DataError(f"{key}: {first}", *rest) from error


def open_dataset(settings: AnyDataSettings, seed: int) -> Dataset:
    """Open, split and scan the data, and resolve all `auto` settings.

    The scan reads all rows, unless its result is cached. `seed` seeds the split and synthetic rows. With several
    processes, all must call this function.

    Raises:
        DataError: the data are invalid, or contradict the settings.
        ConfigError: a setting does not apply to these data.
    """
    source = open_source(settings, seed)
    layout = _resolve_layout(settings, source)
    training_indices: RowIndices | None = None
    validation_indices: RowIndices | None = None
    if isinstance(settings.validation, str):
        validation_source = _open_validation(settings.validation, settings, source)
        scans = [(scanned, _scan_on_rank0(scanned, layout)) for scanned in (source, validation_source)]
    else:
        if len(source.rows) < 2:
            raise DataError(f"{source.name}: contains one row; the training and validation splits need at least two")
        validation_source = source
        training_indices, validation_indices = train_validation_split(len(source.rows), settings.validation, seed)
        training_mask = np.zeros(len(source.rows), dtype=np.bool_)
        training_mask[training_indices] = True
        scans = [(source, _scan_on_rank0(source, layout, training_mask))]
    spec = _resolve_spec(settings, layout, scans)
    mean, scale = _normalization(settings, spec, scans[0][1].moments, source.name)
    return Dataset(
        settings=_resolve_settings(settings, spec),
        spec=spec,
        training=Samples(source.rows, spec, training_indices),
        validation=Samples(validation_source.rows, spec, validation_indices),
        mean=mean,
        scale=scale,
        sha256=combined_sha256([scan.sha256 for _, scan in scans]),
    )


def train_validation_split(num_rows: int, validation: float, seed: int) -> tuple[RowIndices, RowIndices]:
    """Split the row indices 0..num_rows-1 at random.

    Args:
        num_rows: at least 2.
        validation: fraction of the rows for validation, rounded to whole rows; neither split is empty.
        seed: of the permutation.

    Returns:
        Training and validation indices (1-D), each in ascending order.
    """
    num_validation = min(max(1, round(num_rows * validation)), num_rows - 1)
    shuffled = np.random.default_rng([seed, 0]).permutation(num_rows)
    return np.sort(shuffled[num_validation:]), np.sort(shuffled[:num_validation])


def _scan_on_rank0(source: Source, layout: LayoutName, moment_rows: RowMask = True) -> DatasetScan:
    """Scan a source. With several processes, rank 0 scans; others raise a DataError if their fingerprint differs."""
    if world_size() == 1:
        return source.scan(layout, moment_rows)
    scan = DatasetScan.from_dict(on_rank0(lambda: asdict(source.scan(layout, moment_rows))))
    fingerprint = _fingerprint(source)
    if on_rank0(lambda: fingerprint) != fingerprint:
        raise DataError(f"{source.name}: differs from the data that process 0 reads at this path")
    return scan


def _fingerprint(source: Source) -> list[Any]:
    """Return the number of rows, their shape and dtype, and the SHA-256 of the first and of the last row.

    It is fast because it does not read the other rows, and therefore does not detect differences between those.
    """
    rows = source.rows
    first_and_last = [rows.read(i, i + 1).contiguous().view(torch.uint8).numpy() for i in (0, len(rows) - 1)]
    digests = [hashlib.sha256(row.tobytes()).hexdigest() for row in first_and_last]
    return [len(rows), list(rows.shape), str(rows.dtype), *digests]


def spec_of(settings: DataSettings) -> SampleSpec:
    """Return the sample spec in the `data` settings of a run directory, which contain no `auto`.

    Raises:
        ConfigError: layout, channels, size, classes or dtype is `auto`.
    """
    for name in ("layout", "channels", "size", "classes", "dtype"):
        if getattr(settings, name) == "auto":
            raise ConfigError(
                f"data.{name}: is auto, but a run directory needs the resolved value; restore the config.yaml that the "
                "run wrote"
            )
    assert not isinstance(settings.channels, str)
    assert not isinstance(settings.classes, str)
    assert settings.layout != "auto"
    assert settings.size != "auto"
    return SampleSpec(settings.layout, settings.channels, tuple(settings.size), settings.classes, settings.dtype)


def _open_validation(path: str, settings: AnyDataSettings, training: Source) -> Source:
    """Open separate validation data; rows must have the shape of the training rows, and both be floats or neither."""
    with _prefix_errors("data.validation"):
        source = FileSource(path, settings.key if isinstance(settings, TensorsSettings) else None)
        rows, expected = source.rows, training.rows
        if rows.shape != expected.shape or rows.dtype.is_floating_point != expected.dtype.is_floating_point:
            raise DataError(describe_mismatch(f"{source.name}: rows", rows, "the rows of the training data", expected))
    return source


def _resolve_layout(settings: AnyDataSettings, source: Source) -> LayoutName:
    """Return `data.layout`; for auto, the layout of the synthetic generator, or that of `guess_layout`."""
    rows = source.rows
    if settings.layout == "auto":
        if not isinstance(settings, TensorsSettings):
            return settings.source.layout
        try:
            return guess_layout(rows.shape, rows.dtype)
        except DataError as error:
            raise DataError(f"{source.name}: {error}") from error
    rank = LAYOUTS[settings.layout].rank
    if len(rows.shape) != rank:
        raise DataError(
            f"data.layout: {settings.layout} needs rows with {rank} {'axis' if rank == 1 else 'axes'}, but the rows of "
            f"{source.name} have shape {rows.shape}"
        )
    return settings.layout


def _resolve_spec(settings: DataSettings, layout: LayoutName, scans: list[tuple[Source, DatasetScan]]) -> SampleSpec:
    """Return the sample spec of the training data; a DataError if it contradicts `data.channels`, `size` or `dtype`.

    Args:
        scans: training data and, if they are separate, validation data, each with its scan.
    """
    source = scans[0][0]
    channels, size = sample_shape(layout, source.rows.shape)
    spec = SampleSpec(layout, channels, size, _resolve_classes(settings, layout, scans), dtype_name(source.rows.dtype))
    for name, actual in {"channels": channels, "size": list(size), "dtype": spec.dtype}.items():
        configured = getattr(settings, name)
        if configured not in ("auto", actual):
            raise DataError(
                f"{source.name}: data.{name} is {configured}, but the array has {actual} (rows of shape "
                f"{source.rows.shape})"
            )
    return spec


def _resolve_classes(settings: DataSettings, layout: LayoutName, scans: list[tuple[Source, DatasetScan]]) -> int | None:
    """Return the number of classes: `data.classes`, or for auto the largest class of all `scans` + 1; None for values.

    Raises:
        DataError: a class is out of range, or uint8 data can be classes or grey values.
        ConfigError: `data.classes` does not apply to these data.
    """
    source, scan = scans[0]
    dtype = dtype_name(source.rows.dtype)
    if not holds_classes(layout, source.rows.dtype):
        if settings.classes not in ("auto", None):
            raise ConfigError(
                f"data.classes: {settings.classes}, but {source.name} contains {dtype} values in layout {layout}; "
                "classes are integers in layout T or HW"
            )
        return None
    if settings.classes is None:
        raise ConfigError(
            f"data.classes: null, but integers in layout {layout} are classes; set it to auto or a number"
        )
    if settings.layout == settings.classes == "auto" and dtype == "uint8" and (scan.largest or 0) >= 128:
        raise DataError(
            f"{source.name}: uint8 up to {scan.largest} without a channel axis can be classes or grey values; set "
            f"data.layout to {layout} for classes, or add a channel axis to the array for values"
        )
    if settings.classes == "auto":
        classes = min(1 + max(scan.largest or 0 for _, scan in scans), _MAX_AUTO_CLASSES)
    else:
        classes = settings.classes
    for source, scan in scans:
        advice = ", or add a channel axis if these are values" if settings.classes == "auto" else ""
        if (scan.largest or 0) < MAX_CLASSES:
            advice += f", or set data.classes to {(scan.largest or 0) + 1}"
        source.check_classes(scan, classes, advice)
    return classes


def _normalization(
    settings: DataSettings, spec: SampleSpec, moments: Moments | None, name: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and scale (C,) for `data.normalize`; zeros and ones for `none` and for classes.

    `feature`: mean and standard deviation of each channel. `global`: those of all values together, repeated C times.
    A standard deviation of 0 gives scale 1.

    Args:
        moments: of the training split; None for classes.
        name: name of the data, at the start of the message.

    Raises:
        ConfigError: the user set `data.normalize` for classes.
        DataError: a standard deviation is too small beside the mean for float32.
    """
    if spec.classes and settings.normalize != "none" and "normalize" in settings.model_fields_set:
        raise ConfigError(
            f"data.normalize: {settings.normalize}, but classes are not normalised; remove it, or set it to none"
        )
    if moments is None or settings.normalize == "none":
        return (0.0,) * spec.channels, (1.0,) * spec.channels
    mean, variance = np.array(moments.mean), np.array(moments.squares) / moments.count
    if settings.normalize == "global":
        # Law of total variance: all channels have the same count.
        variance = np.full_like(variance, (variance + (mean - mean.mean()) ** 2).mean())
        mean = np.full_like(mean, mean.mean())
    scale = np.where(variance > 0, np.sqrt(variance), 1.0)
    if (scale < np.abs(mean) * _MIN_RELATIVE_STD).any():
        raise DataError(
            f"{name}: a mean of {mean[np.argmax(np.abs(mean))]:.6g} with a standard deviation of {scale.min():.3g} "
            "exceeds the precision of float32; subtract the mean from the data"
        )
    return tuple(mean.tolist()), tuple(scale.tolist())


def _resolve_settings(settings: AnyDataSettings, spec: SampleSpec) -> AnyDataSettings:
    """Return the settings with the values of `spec`, absolute paths, and `normalize: none` for classes."""
    changes = {
        "layout": spec.layout,
        "channels": spec.channels,
        "size": list(spec.size),
        "classes": spec.classes,
        "dtype": spec.dtype,
        "normalize": "none" if spec.classes else settings.normalize,
    }
    if isinstance(settings.validation, str):
        changes["validation"] = os.path.abspath(settings.validation)
    if isinstance(settings, TensorsSettings):
        changes["path"] = os.path.abspath(settings.path)
    return settings.model_copy(update=changes)
