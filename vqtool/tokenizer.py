"""A trained model in use: load a run, encode, decode, evaluate. Every command that uses a run goes through it.

Shapes: n or N rows, L positions per sample, D code dimension, K codes, Q levels; `row` is the shape of one row of the
user's array, in the layout and the units that it has there.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.autoencoder import Autoencoder, resolve_model
from vqtool.chunks import batch_rows, chunk_rows, chunks
from vqtool.config import RunSettings
from vqtool.data import FileSource, Samples, SampleSpec, Source, Survey, open_dataset, open_source, spec_of
from vqtool.data.layout import holds_classes, sample_shape
from vqtool.data.rows import NumpyRows
from vqtool.data.spec import dtype_name
from vqtool.device import resolve_device
from vqtool.errors import CheckpointError, ConfigError, DataError
from vqtool.evaluation import Evaluation, Pass, reconstruct
from vqtool.fidelity import ClassFidelity, Fidelity, ValueFidelity
from vqtool.model_file import read_model
from vqtool.nets import Size
from vqtool.progress import pass_bar
from vqtool.run import Run
from vqtool.tally import Tally
from vqtool.threads import over_items


@dataclass(frozen=True)
class Report:
    """What `evaluate` finds: losses and usage in normalised units, fidelity in the data's own."""

    evaluation: Evaluation
    fidelity: Fidelity
    bits_per_sample: float
    """L · sum over levels of log2 K."""


class Tokenizer:
    """A trained model, with what is needed to use it on rows of the user's own arrays.

    Attributes:
        settings: the run's.
        spec: of the samples it was trained on.
        model: in evaluation mode.
        model_sha256: of the file it was loaded from.
        grid: the row-major shape behind L, for samples of the run's size.
    """

    def __init__(self, run: Run, device: str | None = None) -> None:
        self.settings: RunSettings = run.settings()
        self.spec = _resolved_spec(run, self.settings)
        self.device = resolve_device(device or self.settings.training.device)
        saved, self.model_sha256 = read_model(run.model)
        channels = self.spec.channels
        self.model = Autoencoder(self.settings.model, self.spec, (0.0,) * channels, (1.0,) * channels)
        try:
            self.model.load_state_dict(saved.state)
        except RuntimeError as error:
            raise CheckpointError(
                f"{run.model}: does not fit {run.config.name}: its tensors are another model's"
            ) from error
        self.model.to(self.device).eval().requires_grad_(False)
        self.model.quantizer.skip_entropy()  # figures come from the raw terms
        self.grid = self.model.grid(self.spec.size)

    @property
    def codebook(self) -> Tensor:
        """The codes (K, D); (Q, K, D) of a quantizer of levels."""
        return self.model.quantizer.codes

    def encode(self, rows: Tensor | NDArray[Any]) -> Tensor:
        """The indices (n, L), or (n, L, Q), int64, of rows (n, *row).

        Raises:
            DataError: the rows are not like those of the run, or not finite.
        """
        rows = as_rows(rows)
        self._check_like(tuple(rows.shape[1:]), rows.dtype, "encode")
        samples = self.spec.samples(rows)
        if self.spec.classes and ((samples < 0) | (samples >= self.spec.classes)).any():
            raise DataError(f"encode: a class is not one of the run's, 0 to {self.spec.classes - 1}")
        if not samples.isfinite().all():
            raise DataError("encode: a value is NaN or infinite")
        return self.encode_samples(samples)

    def decode(
        self, indices: Tensor | NDArray[Any], row_shape: Size | None = None, levels: int | None = None
    ) -> Tensor:
        """Rows (n, *row) of indices (n, L), or (n, L, Q).

        Args:
            row_shape: that of the run, where it is left out.
            levels: how many of the first ones to decode; left out, all.

        Raises:
            DataError: the shape does not fit the model, an index is none of its codes, or so many levels do not decode.
        """
        self.model.check_rows(row_shape or self.spec.row_shape, "decode")
        size = sample_shape(self.spec.layout, row_shape or self.spec.row_shape)[1]
        indices = self._checked(indices, size, levels, "decode")
        pieces = [self._decode_chunk(x, size)[:n] for x, n in chunks(indices, chunk_rows(self.model, size))]
        return torch.cat(pieces)

    def embed(self, indices: Tensor | NDArray[Any], levels: int | None = None) -> Tensor:
        """The codes' vectors (n, L, D) of indices (n, L), or (n, L, Q), of rows of the run's size; levels add up.

        Args, raises: as `decode`.
        """
        checked = self._checked(indices, self.spec.size, levels, "embed")
        with torch.inference_mode():
            return self.model.quantizer.embed(checked.to(self.device)).cpu()

    def _checked(self, indices: Tensor | NDArray[Any], size: Size, levels: int | None, what: str) -> Tensor:
        """Indices, int64, of as many levels as are asked for; `what` is what they are for."""
        indices = as_rows(indices)
        if indices.dtype.is_floating_point or indices.dtype == torch.bool:
            raise DataError(f"{what}: indices are integers, not {dtype_name(indices.dtype)}")
        indices = indices.long()
        expected = self.index_shape(size)
        if tuple(indices.shape[1:]) != expected:
            raise DataError(
                f"{what}: indices of shape {tuple(indices.shape)}, but expected (N, {', '.join(map(str, expected))})"
            )
        sizes = self.model.quantizer.codebook_sizes
        limits = torch.tensor(sizes if self.model.quantizer.has_levels else sizes[0])
        bad = ((indices < 0) | (indices >= limits)).nonzero()
        if len(bad):
            index = int(indices[tuple(bad[0])])
            raise DataError(
                f"{what}: index {index} in row {int(bad[0, 0])} is no code; they are 0 to {limits.max() - 1}"
            )
        if levels is None or levels == len(sizes):
            return indices
        if not self.model.quantizer.truncates or not 1 <= levels < len(sizes):
            can = f"1 to {len(sizes)}" if self.model.quantizer.truncates else "all, for this is no residual quantizer"
            raise DataError(f"{what}: {levels} levels do not decode; those that do are {can}")
        return indices[..., :levels]

    def evaluate(self, data: str | None = None, key: str | None = None) -> Report:
        """Losses, usage and fidelity over data; None: the run's validation part."""
        if data is None:
            samples = open_dataset(self.settings.data, self.settings.seed).validation
        else:
            samples = self.open_checked(data, key)
        whole = Pass(self.model, self.settings.loss)
        fidelity = ClassFidelity() if self.spec.classes else ValueFidelity()
        for chunk in reconstruct(self.model, samples, self.settings.loss, "eval"):
            whole.add(chunk)
            fidelity.add(chunk.rows, chunk.restored)
        return Report(whole.result(), fidelity.result(), self.model.bits(samples.size))

    def count(self, data: str, key: str | None = None) -> Tally:
        """The hits of each code, and the distinct ids, over data."""
        samples = self.open_checked(data, key)
        tally = Tally(self.model.quantizer.codebook_sizes, ids=not self.spec.size)
        step = batch_rows(self.model, samples.size, len(samples))
        with pass_bar("inspect", len(samples)) as bar:
            for start in range(0, len(samples), step):
                indices = self.encode_samples(samples.read(start, min(start + step, len(samples))))
                tally.add(indices.numpy())
                bar.update(len(indices))
        return tally

    def open_checked(self, data: str, key: str | None) -> Samples:
        """Data whose rows are like the run's, scanned.

        Raises:
            DataError: they are not, or hold what is not finite.
        """
        source, samples = self.open(data, key)
        self.survey(source)
        return samples

    def open(self, data: str | None, key: str | None) -> tuple[Source, Samples]:
        """Data whose rows are like the run's, not scanned yet; None: the run's own.

        Raises:
            DataError: they are not.
        """
        if data is None and key is not None:
            raise DataError(
                f"key {key!r}: names an array of other data, but none is given; the run's own key stands in it"
            )
        source = open_source(self.settings.data, self.settings.seed) if data is None else FileSource(data, key)
        self._check_like(source.rows.shape, source.rows.dtype, source.name)
        return source, Samples(source.rows, self.spec)

    def survey(self, source: Source) -> Survey:
        """Scan data.

        Raises:
            DataError: a value is not finite, or no class of the run's.
        """
        survey = source.verify(self.spec.layout)
        if self.spec.classes:
            source.check_classes(survey, self.spec.classes)
        return survey

    def _check_like(self, row_shape: Size, dtype: torch.dtype, what: str) -> None:
        self.model.check_rows(row_shape, what)
        if holds_classes(self.spec.layout, dtype) != bool(self.spec.classes):
            holds = "classes" if self.spec.classes else "values"
            raise DataError(f"{what}: {dtype_name(dtype)}, but the model was trained on {holds}, {self.spec.dtype}")

    def index_shape(self, size: Size) -> Size:
        """(L,), or (L, Q)."""
        quantizer = self.model.quantizer
        levels = (len(quantizer.codebook_sizes),) if quantizer.has_levels else ()
        return (math.prod(self.model.grid(size)), *levels)

    def encode_samples(self, samples: Tensor) -> Tensor:
        """The indices (n, L), or (n, L, Q), of samples as the model takes them."""
        rows = chunk_rows(self.model, self.model.size_of(samples))
        return torch.cat(over_items(self._encode_chunk, chunks(samples, rows), self.device))

    def _encode_chunk(self, chunk: tuple[Tensor, int]) -> Tensor:
        x, n = chunk
        with torch.inference_mode():
            return self.model.encode(x.to(self.device))[:n].cpu()

    def _decode_chunk(self, indices: Tensor, size: Size) -> Tensor:
        with torch.inference_mode():
            return self.spec.rows(self.model.decode(indices.to(self.device), size).cpu())


def load(run: str | Path, device: str | None = None) -> Tokenizer:
    """The tokenizer of a run directory.

    Raises:
        CheckpointError: there is no run, it has no model yet, or the model is damaged.
    """
    return Tokenizer(Run(run), device)


def _resolved_spec(run: Run, settings: RunSettings) -> SampleSpec:
    """The spec of a run's samples, of settings that leave nothing open."""
    try:
        spec = spec_of(settings.data)
        resolved = resolve_model(settings.model, spec)
    except ConfigError as error:
        raise CheckpointError(f"{run.config}: {error}") from error
    if resolved != settings.model:
        raise CheckpointError(f"{run.config}: model: left open what a run has resolved")
    return spec


def as_rows(array: Tensor | NDArray[Any]) -> Tensor:
    """A tensor of an array of any byte order.

    Raises:
        DataError: a single number, or a type that no tensor has.
    """
    if isinstance(array, Tensor) and array.ndim:
        return array
    array = np.asarray(array)
    try:
        return NumpyRows(array).read(0, len(array))
    except (TypeError, IndexError) as error:
        raise DataError(f"not rows of numbers: {array.dtype} {array.shape}") from error


def to_numpy(rows: Tensor) -> NDArray[Any]:
    """Rows as NumPy has them: bfloat16, which it has not, becomes float32."""
    array: NDArray[Any] = (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
    return array
