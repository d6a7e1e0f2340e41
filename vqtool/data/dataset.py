"""A data set, resolved: what its samples are, which of them train and which validate, how they are normalised.

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

from vqtool.data.layout import LAYOUTS, LayoutName, guess_layout, holds_classes, sample_shape
from vqtool.data.order import split
from vqtool.data.rows import RowIndices, Rows
from vqtool.data.scan import Counted, Moments
from vqtool.data.settings import MOST_CLASSES, DataKind, DataSettings, TensorsSettings
from vqtool.data.sources import DatasetScan, FileSource, GeneratedSource, Source, combined_sha256, mismatch
from vqtool.data.spec import SampleSpec, dtype_name
from vqtool.errors import ConfigError, DataError
from vqtool.runtime.distributed import on_rank0, world_size

# A standard deviation below this, relative to the mean, leaves a float32 fewer than five bits for the value.
_RESOLUTION = 2.0**-19
# A class from this one on is taken for a stray number, unless data.classes is set.
_MOST_FOUND = 1 << 16


@dataclass(frozen=True)
class Samples:
    """Rows as a network sees them: (n, C, *size) float32 values, or (n, *size) int64 classes.

    Attributes:
        numbers: which rows these are; None: all.
    """

    rows: Rows
    spec: SampleSpec
    numbers: RowIndices | None = None

    def __len__(self) -> int:
        return len(self.rows) if self.numbers is None else len(self.numbers)

    @property
    def size(self) -> tuple[int, ...]:
        """The size of these samples, which need not be the one that the spec was made from."""
        return sample_shape(self.spec.layout, self.rows.shape)[1]

    def first(self, count: int) -> "Samples":
        """The first so many of them, or all."""
        return replace(self, numbers=np.arange(len(self))[:count] if self.numbers is None else self.numbers[:count])

    def read_rows(self, start: int, stop: int) -> Tensor:
        """Rows start to stop in the user's own layout and type."""
        return self.rows.read(start, stop) if self.numbers is None else self.rows.take(self.numbers[start:stop])

    def read(self, start: int, stop: int) -> Tensor:
        """Samples start to stop."""
        return self.spec.samples(self.read_rows(start, stop))

    def take(self, numbers: RowIndices) -> Tensor:
        """The samples of these numbers, in this order."""
        return self.spec.samples(self.rows.take(numbers if self.numbers is None else self.numbers[numbers]))


@dataclass(frozen=True)
class Dataset:
    """Data made ready.

    Attributes:
        settings: with nothing left `auto`.
        mean, scale: (C,) each, what normalising subtracts and divides by.
        sha256: of the data to train on; where those to validate on are their own, that of both digests.
    """

    settings: DataKind
    spec: SampleSpec
    training: Samples
    validation: Samples
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    sha256: str


def open_source(settings: DataKind, seed: int) -> Source:
    """The run's own data, whole and in its order."""
    if isinstance(settings, TensorsSettings):
        with _naming_key("data.path"):
            return FileSource(settings.path, settings.key)
    return GeneratedSource(settings, seed)


@contextmanager
def _naming_key(key: str) -> Iterator[None]:
    """Put the config key before the errors of a file."""
    try:
        yield
    except DataError as error:
        first, *rest = error.args
        raise DataError(f"{key}: {first}", *rest) from error


def open_dataset(settings: DataKind, seed: int) -> Dataset:
    """Open, scan and split the data, and resolve what its settings leave `auto`.

    Raises:
        DataError: the data cannot be used, or are not what the settings say.
        ConfigError: a setting does not apply to such data.
    """
    source = open_source(settings, seed)
    layout = _resolve_layout(settings, source)
    held_out = None if isinstance(settings.validation, float) else _open_validation(settings, source)
    if held_out is None:
        numbers, validation_numbers = _split(source, settings, seed)
        mask = np.zeros(len(source.rows), dtype=np.bool_)
        mask[numbers] = True
        survey = _survey(source, layout, mask)
    else:
        numbers, validation_numbers = None, None
        survey = _survey(source, layout)
    surveys = [(source, survey)] + ([(held_out, _survey(held_out, layout))] if held_out else [])
    spec = _resolve_spec(settings, layout, surveys)
    mean, scale = _normalization(settings, spec, survey.moments, source.name)
    return Dataset(
        settings=_resolved(settings, spec),
        spec=spec,
        training=Samples(source.rows, spec, numbers),
        validation=Samples((held_out or source).rows, spec, validation_numbers),
        mean=mean,
        scale=scale,
        sha256=combined_sha256([part.sha256 for _, part in surveys]),
    )


def _survey(source: Source, layout: LayoutName, counted: Counted = True) -> DatasetScan:
    """As `Source.survey`; of several processes the first alone reads all rows."""
    if world_size() == 1:
        return source.survey(layout, counted)
    survey = DatasetScan.of(on_rank0(lambda: asdict(source.survey(layout, counted))))
    own = _likeness(source)
    if on_rank0(lambda: own) != own:
        raise DataError(f"{source.name}: differs from the data that process 0 reads at this path")
    return survey


def _likeness(source: Source) -> list[Any]:
    """What tells most data apart from others, and takes no time to read."""
    rows = source.rows
    ends = [rows.read(start, start + 1).contiguous().view(torch.uint8).numpy() for start in (0, len(rows) - 1)]
    return [len(rows), list(rows.shape), str(rows.dtype), *(hashlib.sha256(end.tobytes()).hexdigest() for end in ends)]


def spec_of(settings: DataSettings) -> SampleSpec:
    """The spec that resolved settings hold."""
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


def _open_validation(settings: DataKind, training: Source) -> Source:
    assert isinstance(settings.validation, str)
    with _naming_key("data.validation"):
        source = FileSource(settings.validation, _key(settings))
        ours, theirs = source.rows, training.rows
        if ours.shape != theirs.shape or ours.dtype.is_floating_point != theirs.dtype.is_floating_point:
            raise DataError(mismatch(f"{source.name}: rows", ours, "the rows of the training data", theirs))
    return source


def _key(settings: DataKind) -> str | None:
    return settings.key if isinstance(settings, TensorsSettings) else None


def _resolve_layout(settings: DataKind, source: Source) -> LayoutName:
    rows = source.rows
    if settings.layout == "auto":
        if not isinstance(settings, TensorsSettings):
            return settings.source.layout
        try:
            return guess_layout(rows.shape, rows.dtype)
        except DataError as error:
            raise DataError(f"{source.name}: {error}") from error
    if len(rows.shape) != LAYOUTS[settings.layout].rank:
        rank = LAYOUTS[settings.layout].rank
        raise DataError(
            f"data.layout: {settings.layout} needs rows with {rank} {'axis' if rank == 1 else 'axes'}, but the rows of "
            f"{source.name} have shape {rows.shape}"
        )
    return settings.layout


def _split(source: Source, settings: DataSettings, seed: int) -> tuple[RowIndices, RowIndices]:
    if len(source.rows) < 2:
        raise DataError(f"{source.name}: contains one row; the training and validation splits need at least two")
    assert isinstance(settings.validation, float)
    return split(len(source.rows), settings.validation, seed)


def _resolve_spec(settings: DataSettings, layout: LayoutName, surveys: list[tuple[Source, DatasetScan]]) -> SampleSpec:
    source = surveys[0][0]
    channels, size = sample_shape(layout, source.rows.shape)
    spec = SampleSpec(
        layout, channels, size, _resolve_classes(settings, layout, surveys), dtype_name(source.rows.dtype)
    )
    for name in ("channels", "size", "dtype"):
        given, found = getattr(settings, name), getattr(spec, name)
        found = list(found) if name == "size" else found
        if given not in ("auto", found):
            raise DataError(
                f"{source.name}: data.{name} is {given}, but the array has {found} (rows of shape {source.rows.shape})"
            )
    return spec


def _resolve_classes(
    settings: DataSettings, layout: LayoutName, surveys: list[tuple[Source, DatasetScan]]
) -> int | None:
    source, survey = surveys[0]
    if not holds_classes(layout, source.rows.dtype):
        if settings.classes not in ("auto", None):
            raise ConfigError(
                f"data.classes: {settings.classes}, but {source.name} contains {dtype_name(source.rows.dtype)} values "
                f"in layout {layout}; classes are integers in layout T or HW"
            )
        return None
    if settings.classes is None:
        raise ConfigError(
            f"data.classes: null, but integers in layout {layout} are classes; set it to auto or a number"
        )
    if (
        settings.layout == settings.classes == "auto"
        and dtype_name(source.rows.dtype) == "uint8"
        and (survey.largest or 0) >= 128
    ):
        raise DataError(
            f"{source.name}: uint8 up to {survey.largest} without a channel axis can be classes or grey values; set "
            f"data.layout to {layout} for classes, or add a channel axis to the array for values"
        )
    found = 1 + max(survey.largest or 0 for _, survey in surveys)
    classes = min(found, _MOST_FOUND) if settings.classes == "auto" else settings.classes
    for part, survey in surveys:
        advice = ", or add a channel axis if these are values" if settings.classes == "auto" else ""
        if (survey.largest or 0) < MOST_CLASSES:
            advice += f", or set data.classes to {(survey.largest or 0) + 1}"
        part.check_classes(survey, classes, advice)
    return classes


def _normalization(
    settings: DataSettings, spec: SampleSpec, moments: Moments | None, name: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if spec.classes and settings.normalize != "none" and "normalize" in settings.model_fields_set:
        raise ConfigError(
            f"data.normalize: {settings.normalize}, but classes are not normalised; remove it, or set it to none"
        )
    if moments is None or settings.normalize == "none":
        return (0.0,) * spec.channels, (1.0,) * spec.channels
    mean, variance = np.array(moments.mean), np.array(moments.squares) / moments.count
    if settings.normalize == "global":
        # The channels have equal counts, so their variances about the common mean average.
        variance = np.full_like(variance, (variance + (mean - mean.mean()) ** 2).mean())
        mean = np.full_like(mean, mean.mean())
    scale = np.where(variance > 0, np.sqrt(variance), 1.0)
    if (scale < np.abs(mean) * _RESOLUTION).any():
        raise DataError(
            f"{name}: a mean of {mean[np.argmax(np.abs(mean))]:.6g} with a standard deviation of {scale.min():.3g} "
            "exceeds the precision of float32; subtract the mean from the data"
        )
    return tuple(mean.tolist()), tuple(scale.tolist())


def _resolved(settings: DataKind, spec: SampleSpec) -> DataKind:
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
