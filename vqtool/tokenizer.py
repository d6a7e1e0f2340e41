"""A trained model in use: load a run, encode, decode, evaluate. Every command that uses a run goes through it.

Shapes: n or N rows, L positions per sample, D code dimension, K codes, Q levels; `row` is the shape of one row of the
user's array, in the layout and the units that it has there.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.autoencoder import Autoencoder, resolve_model
from vqtool.chunks import chunk_rows, chunks
from vqtool.config import RunSettings
from vqtool.data import FileSource, Samples, SampleSpec, Source, Survey, open_dataset, open_source, spec_of
from vqtool.data.layout import holds_classes, sample_shape
from vqtool.data.rows import NumpyRows
from vqtool.data.spec import dtype_name
from vqtool.device import resolve_device
from vqtool.errors import CheckpointError, ConfigError, DataError
from vqtool.evaluation import Evaluation, Pass, reconstruct
from vqtool.fidelity import ClassFidelity, Fidelity, ValueFidelity
from vqtool.indices import (
    Manifest,
    check_not_input,
    check_output,
    index_dtype,
    manifest_path,
    read_indices,
    writing_array,
    writing_indices,
)
from vqtool.nets import Size
from vqtool.progress import pass_bar
from vqtool.run import Run
from vqtool.usage import Usage, usage_of


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
        validation_usage: of each level, in the validation pass that chose this model.
    """

    def __init__(self, run: Run, device: str | None = None) -> None:
        self.settings: RunSettings = run.settings()
        self.spec = _resolved_spec(run, self.settings)
        self.device = resolve_device(device or self.settings.training.device)
        state, counts, self.model_sha256 = run.load_model()
        channels = self.spec.channels
        self.model = Autoencoder(self.settings.model, self.spec, (0.0,) * channels, (1.0,) * channels)
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(
                f"{run.model}: does not fit {run.config.name}: its tensors are another model's"
            ) from error
        self.model.to(self.device).eval().requires_grad_(False)
        self.grid = self.model.grid(self.spec.size)
        self.validation_usage: list[Usage] = [usage_of(hits) for hits in counts]

    @property
    def codebook(self) -> Tensor:
        """The codes (K, D), in the latent space."""
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
        return self._encode(samples)

    def decode(self, indices: Tensor | NDArray[Any], row_shape: Size | None = None) -> Tensor:
        """Rows (n, *row) of indices (n, L), or (n, L, Q); `row_shape` is that of the run where it is left out.

        Raises:
            DataError: the shape does not fit the model, or an index is none of its codes.
        """
        indices = as_rows(indices)
        if indices.dtype.is_floating_point or indices.dtype == torch.bool:
            raise DataError(f"decode: indices are integers, not {dtype_name(indices.dtype)}")
        indices = indices.long()
        self.model.check_rows(row_shape or self.spec.row_shape, "decode")
        size = sample_shape(self.spec.layout, row_shape or self.spec.row_shape)[1]
        expected = self._index_shape(size)
        if tuple(indices.shape[1:]) != expected:
            raise DataError(
                f"decode: indices of shape {tuple(indices.shape)}, but expected (N, {', '.join(map(str, expected))})"
            )
        limits = torch.tensor(self.model.quantizer.codebook_sizes)
        limits = limits if self.model.quantizer.has_levels else limits[0]
        bad = ((indices < 0) | (indices >= limits)).nonzero()
        if len(bad):
            index = int(indices[tuple(bad[0])])
            raise DataError(
                f"decode: index {index} in row {int(bad[0, 0])} is no code; they are 0 to {limits.max() - 1}"
            )
        pieces = [self._decode_chunk(x, size)[:n] for x, n in chunks(indices, chunk_rows(self.model, size))]
        return torch.cat(pieces)

    def encode_file(
        self,
        out: Path,
        data: str | None = None,
        key: str | None = None,
        batch_size: int = 4096,
        overwrite: bool = False,
    ) -> Manifest:
        """Encode data into an index file and its manifest, reading about `batch_size` rows at a time.

        Args:
            data: what `data.path` may be; None: the run's own, whole and in its order.
            key: the name of the array in a file of several.

        Raises:
            DataError: the data are not like the run's, or the output is there already.
        """
        check_output(out, overwrite, manifest_path(out))
        source, samples = self._open(data, key)
        check_not_input(out, source.paths)
        survey = self._survey(source)
        manifest = Manifest(
            shape=[len(samples), *self._index_shape(samples.size)],
            dtype=index_dtype(self.model.quantizer.codebook_sizes).name,
            grid=list(self.model.grid(samples.size)),
            codebook_sizes=list(self.model.quantizer.codebook_sizes),
            row_shape=list(samples.rows.shape),
            model_sha256=self.model_sha256,
            data_sha256=survey.sha256,
            shards=[asdict(shard) for shard in survey.shards],
        )
        chunk = chunk_rows(self.model, samples.size)
        step = -(-batch_size // chunk) * chunk
        with writing_indices(out, manifest) as array, pass_bar("encode", len(samples)) as bar:
            for start in range(0, len(samples), step):
                rows = samples.read_rows(start, min(start + step, len(samples)))
                array[start : start + len(rows)] = self._encode(self.spec.samples(rows)).numpy()
                bar.update(len(rows))
        return manifest

    def decode_file(self, path: Path, out: Path, overwrite: bool = False) -> tuple[tuple[int, ...], str]:
        """Decode an index file into an array of the data's type; returns its shape and the name of its type.

        Raises:
            DataError: another model wrote the indices, they are damaged, or the output is there already.
        """
        check_output(out, overwrite)
        check_not_input(out, [path])
        indices, manifest = read_indices(path)
        if manifest.model_sha256 != self.model_sha256:
            raise DataError(
                f"{path}: written by another model, {manifest.model_sha256[:12]}..., and this is "
                f"{self.model_sha256[:12]}..."
            )
        row_shape = tuple(manifest.row_shape)
        self.model.check_rows(row_shape, str(path))
        size = sample_shape(self.spec.layout, row_shape)[1]
        step = chunk_rows(self.model, size)
        shape, dtype = (len(indices), *row_shape), _numpy_dtype(self.spec.torch_dtype)
        with writing_array(out, shape, dtype) as array, pass_bar("decode", len(indices)) as bar:
            for start in range(0, len(indices), step):
                rows = self.decode(indices[start : start + step], row_shape)
                array[start : start + len(rows)] = _to_numpy(rows)
                bar.update(len(rows))
        return shape, dtype.name

    def evaluate(self, data: str | None = None, key: str | None = None) -> Report:
        """Losses, usage and fidelity over data; None: the run's validation part."""
        if data is None:
            samples = open_dataset(self.settings.data, self.settings.seed).validation
        else:
            source, samples = self._open(data, key)
            self._survey(source)
        whole = Pass(self.model, self.settings.loss)
        fidelity = ClassFidelity() if self.spec.classes else ValueFidelity()
        for chunk in reconstruct(self.model, samples, self.settings.loss, "eval"):
            whole.add(chunk)
            fidelity.add(chunk.rows, chunk.restored)
        return Report(whole.result(), fidelity.result(), self.model.bits(samples.size))

    def usage(self, data: str, key: str | None = None) -> list[Usage]:
        """The usage of each level over data."""
        source, samples = self._open(data, key)
        self._survey(source)
        step = chunk_rows(self.model, samples.size)
        sizes = self.model.quantizer.codebook_sizes
        counts = [torch.zeros(size, dtype=torch.int64) for size in sizes]
        with pass_bar("inspect", len(samples)) as bar:
            for start in range(0, len(samples), step):
                indices = self._encode(samples.read(start, min(start + step, len(samples))))
                for hits, level in zip(counts, indices.reshape(-1, len(sizes)).T, strict=True):
                    hits += torch.bincount(level, minlength=len(hits))
                bar.update(len(indices))
        return [usage_of(hits) for hits in counts]

    def _open(self, data: str | None, key: str | None) -> tuple[Source, Samples]:
        """Data whose rows are like the run's; None: the run's own."""
        if data is None and key is not None:
            raise DataError(
                f"key {key!r}: names an array of other data, but none is given; the run's own key stands in it"
            )
        source = open_source(self.settings.data, self.settings.seed) if data is None else FileSource(data, key)
        self._check_like(source.rows.shape, source.rows.dtype, source.name)
        return source, Samples(source.rows, self.spec)

    def _survey(self, source: Source) -> Survey:
        """Scan data, and refuse what is not finite or no class of the run's."""
        survey = source.verify(self.spec.layout)
        if self.spec.classes:
            source.check_classes(survey, self.spec.classes)
        return survey

    def _check_like(self, row_shape: Size, dtype: torch.dtype, what: str) -> None:
        self.model.check_rows(row_shape, what)
        if holds_classes(self.spec.layout, dtype) != bool(self.spec.classes):
            holds = "classes" if self.spec.classes else "values"
            raise DataError(f"{what}: {dtype_name(dtype)}, but the model was trained on {holds}, {self.spec.dtype}")

    def _index_shape(self, size: Size) -> Size:
        """(L,), or (L, Q)."""
        quantizer = self.model.quantizer
        levels = (len(quantizer.codebook_sizes),) if quantizer.has_levels else ()
        return (math.prod(self.model.grid(size)), *levels)

    def _encode(self, samples: Tensor) -> Tensor:
        rows = chunk_rows(self.model, self.model.size_of(samples))
        with torch.inference_mode():
            pieces = [self.model.encode(x.to(self.device))[:n].cpu() for x, n in chunks(samples, rows)]
        return torch.cat(pieces)

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


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The type of a .npy file for tensors of `dtype`: bfloat16, which NumPy has not, becomes float32."""
    return _to_numpy(torch.empty(0, dtype=dtype)).dtype


def _to_numpy(rows: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
    return array
