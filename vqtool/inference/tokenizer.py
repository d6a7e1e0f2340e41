"""Trained tokenizer: load a run, encode, decode, evaluate. All commands that use a run use it.

Shapes: n or N rows, L tokens per sample, D code dimension, K codes, Q levels; `row` is the shape of one row of the
user's array, in that array's layout and units.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.config import RunSettings
from vqtool.data import DatasetScan, FileSource, Samples, SampleSpec, Source, open_dataset, open_source, spec_of
from vqtool.data.layout import holds_classes, sample_shape
from vqtool.data.rows import NumpyRows
from vqtool.data.spec import dtype_name
from vqtool.errors import CheckpointError, ConfigError, DataError
from vqtool.metrics.code_counter import CodeCounter
from vqtool.metrics.evaluation import Evaluation, EvaluationAccumulator, reconstruct
from vqtool.metrics.reconstruction_metrics import CategoricalMetrics, ContinuousMetrics, ReconstructionMetrics
from vqtool.models.autoencoder import Autoencoder, resolve_model
from vqtool.models.chunks import batch_rows, chunk_rows, chunks
from vqtool.models.encoders import Size
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.device import resolve_device
from vqtool.runtime.progress import pass_bar
from vqtool.runtime.threads import map_items


@dataclass(frozen=True)
class Report:
    """Result of `Tokenizer.evaluate`.

    Attributes:
        evaluation: losses and codebook usage; losses are in normalised units.
        fidelity: reconstruction quality in the units of the data: mse and nmse, or accuracy for classes.
        bits_per_sample: L times the sum over levels of log2 K.
    """

    evaluation: Evaluation
    fidelity: ReconstructionMetrics
    bits_per_sample: float


class Tokenizer:
    """Tokenizer of a trained run. Create it with `vqtool.load`.

    Shapes: n rows, L tokens per sample, D code dimension, K codes, Q levels; `row` is the shape of one row of the
    user's array. Indices are (n, L, Q) for residual and product quantizers, and (n, L) otherwise.

    Attributes:
        settings: settings of the run (config.yaml).
        spec: shape, dtype and layout of the samples that the model was trained on.
        device: the device that the model is on.
        model: the autoencoder, in evaluation mode, without gradients.
        model_sha256: SHA-256 of model.safetensors.
        grid: shape whose row-major order gives the L tokens, such as (H, W), for samples of the run's size.
    """

    def __init__(self, run: RunDirectory, device: str | None = None) -> None:
        self.settings: RunSettings = run.settings()
        self.spec = _resolved_spec(run, self.settings)
        self.device = resolve_device(device, "--device") if device else resolve_device(self.settings.training.device)
        saved, self.model_sha256 = read_model(run.model)
        channels = self.spec.channels
        self.model = Autoencoder(self.settings.model, self.spec, (0.0,) * channels, (1.0,) * channels)
        try:
            self.model.load_state_dict(saved.state)
        except RuntimeError as error:
            raise CheckpointError(
                f"{run.model}: tensors do not match the model in {run.config.name}; use both files of the same run"
            ) from error
        self.model.to(self.device).eval().requires_grad_(False)
        self.model.quantizer.skip_entropy()  # figures come from the raw terms
        self.grid = self.model.grid(self.spec.size)

    @property
    def codebook(self) -> Tensor:
        """The codes, shape (K, D); (Q, K, D) for residual and product quantizers."""
        return self.model.quantizer.codes

    def encode(self, rows: Tensor | NDArray[Any]) -> Tensor:
        """Encode rows to indices.

        Args:
            rows: array or tensor (n, *row), in the layout and units of the training data.

        Returns:
            (n, L), or (n, L, Q), int64, on the CPU.

        Raises:
            DataError: the shape or kind of the rows differs from the training data, a value is NaN or infinite in
                float32, or a class is out of range.
        """
        rows = as_rows(rows)
        self._check_like(tuple(rows.shape[1:]), rows.dtype, "encode")
        samples = self.spec.samples(rows)
        if self.spec.classes:
            bad = ((samples < 0) | (samples >= self.spec.classes)).nonzero()
            if len(bad):
                raise DataError(
                    f"encode: class {int(samples[tuple(bad[0])])} in row {int(bad[0, 0])} is out of range; the model "
                    f"was trained on classes 0 to {self.spec.classes - 1}"
                )
        if not (finite := samples.isfinite()).all():
            row = int((~finite).nonzero()[0, 0])
            raise DataError(f"encode: row {row} contains NaN or a value that is infinite in float32; remove it")
        return self.encode_samples(samples)

    def decode(
        self, indices: Tensor | NDArray[Any], row_shape: Size | None = None, levels: int | None = None
    ) -> Tensor:
        """Decode indices to rows.

        Args:
            indices: integers (n, L), or (n, L, Q).
            row_shape: shape of one decoded row; None: that of the training data. Other sizes need a convolutional or
                identity encoder.
            levels: number of leading levels to decode (residual quantizers only); None: all.

        Returns:
            (n, *row), in the layout, units and dtype of the training data, on the CPU.

        Raises:
            DataError: the shape does not match the model, an index or the number of levels is out of range.
        """
        self.model.check_rows(row_shape or self.spec.row_shape, "decode")
        size = sample_shape(self.spec.layout, row_shape or self.spec.row_shape)[1]
        return self.decode_checked(self.checked(indices, size, levels, "decode"), size)

    def embed(self, indices: Tensor | NDArray[Any], levels: int | None = None) -> Tensor:
        """Look up the code vectors of indices. Levels are summed (residual) or concatenated (product).

        Args:
            indices: integers (n, L), or (n, L, Q), of rows of the run's size.
            levels: number of leading levels to use (residual quantizers only); None: all.

        Returns:
            (n, L, D), on the CPU.

        Raises:
            DataError: as `decode`.
        """
        checked = self.checked(indices, self.spec.size, levels, "embed")
        with torch.inference_mode():
            return self.model.quantizer.embed(checked.to(self.device)).cpu()

    def checked(
        self, indices: Tensor | NDArray[Any], size: Size, levels: int | None, what: str, first: int = 0
    ) -> Tensor:
        """Validate indices; return int64 with `levels` levels. Errors start with `what` and count rows from `first`."""
        indices = as_rows(indices)
        if indices.dtype.is_floating_point or indices.dtype == torch.bool:
            raise DataError(f"{what}: expected integer indices, got {dtype_name(indices.dtype)}")
        indices = indices.long()
        expected = self.index_shape(size)
        if tuple(indices.shape[1:]) != expected:
            raise DataError(
                f"{what}: expected indices of shape (N, {', '.join(map(str, expected))}), got {tuple(indices.shape)}"
            )
        sizes = self.model.quantizer.codebook_sizes
        limits = torch.tensor(sizes if self.model.quantizer.has_levels else sizes[0])
        bad = ((indices < 0) | (indices >= limits)).nonzero()
        if len(bad):
            index, limit = int(indices[tuple(bad[0])]), int(limits.expand(expected)[tuple(bad[0, 1:])])
            raise DataError(
                f"{what}: index {index} in row {first + int(bad[0, 0])} is out of range; valid indices are 0 to "
                f"{limit - 1}"
            )
        self.check_levels(levels, f"{what}: levels")
        return indices if levels in (None, len(sizes)) else indices[..., :levels]

    def check_levels(self, levels: int | None, what: str) -> None:
        """Check a number of levels to decode. Errors, DataErrors all, start with `what`."""
        count = len(self.model.quantizer.codebook_sizes)
        if levels is None or levels == count:
            return
        if not self.model.quantizer.supports_prefix_decoding:
            raise DataError(
                f"{what}: only a residual quantizer can decode fewer than all levels; omit it, or use {count} "
                f"(got {levels})"
            )
        if not 1 <= levels < count:
            raise DataError(f"{what}: {levels} is out of range; expected 1 to {count}")

    def evaluate(self, data: str | None = None, key: str | None = None) -> Report:
        """Compute losses, codebook usage and reconstruction quality over data.

        Args:
            data: path as in `data.path`; None: the validation split of the run.
            key: name of the array in a file with several.

        Raises:
            DataError: the data do not match the training data, or contain NaN or infinity.
        """
        if data is None:
            samples = open_dataset(self.settings.data, self.settings.seed).validation
        else:
            samples = self.open_checked(data, key)
        whole = EvaluationAccumulator(self.model, self.settings.loss)
        fidelity = CategoricalMetrics() if self.spec.classes else ContinuousMetrics()
        for chunk in reconstruct(self.model, samples, self.settings.loss, "eval"):
            whole.add(chunk)
            fidelity.add(chunk.rows, chunk.restored)
        return Report(whole.result(), fidelity.result(), self.model.bits(samples.size))

    def count(self, data: str, key: str | None = None) -> CodeCounter:
        """Count the hits of each code over data; for vectors also the distinct ids.

        Args, raises: as `evaluate`.
        """
        samples = self.open_checked(data, key)
        tally = CodeCounter(self.model.quantizer.codebook_sizes, ids=not self.spec.size)
        step = batch_rows(self.model, samples.size, len(samples))
        with pass_bar("inspect", len(samples)) as bar:
            for start in range(0, len(samples), step):
                indices = self.encode_samples(samples.read(start, min(start + step, len(samples))))
                tally.add(indices.numpy())
                bar.update(len(indices))
        return tally

    def open_checked(self, data: str, key: str | None) -> Samples:
        """Open data and scan them.

        Raises:
            DataError: the data do not match the training data, or contain NaN or infinity.
        """
        source, samples = self.open(data, key)
        self.survey(source)
        return samples

    def open(self, data: str | None, key: str | None) -> tuple[Source, Samples]:
        """Open data without scanning them; None: the run's own data.

        Raises:
            DataError: the data do not match the training data.
        """
        if data is None and key is not None:
            raise DataError(f"key: {key} is given without data; name the data too, or omit key for the run's own data")
        source = open_source(self.settings.data, self.settings.seed) if data is None else FileSource(data, key)
        self._check_like(source.rows.shape, source.rows.dtype, source.name)
        return source, Samples(source.rows, self.spec)

    def survey(self, source: Source) -> DatasetScan:
        """Scan data.

        Raises:
            DataError: a value is NaN or infinite, or a class is out of range.
        """
        survey = source.verify(self.spec.layout)
        if self.spec.classes:
            source.check_classes(survey, self.spec.classes)
        return survey

    def _check_like(self, row_shape: Size, dtype: torch.dtype, what: str) -> None:
        self.model.check_rows(row_shape, what)
        if holds_classes(self.spec.layout, dtype) != bool(self.spec.classes):
            holds = "classes" if self.spec.classes else "values"
            raise DataError(
                f"{what}: dtype {dtype_name(dtype)} does not match the model; it was trained on {holds} "
                f"({self.spec.dtype})"
            )

    def index_shape(self, size: Size) -> Size:
        """Shape of the indices of one sample: (L,), or (L, Q)."""
        quantizer = self.model.quantizer
        levels = (len(quantizer.codebook_sizes),) if quantizer.has_levels else ()
        return (math.prod(self.model.grid(size)), *levels)

    def encode_samples(self, samples: Tensor) -> Tensor:
        """Encode samples in the model's own layout to indices (n, L), or (n, L, Q)."""
        rows = chunk_rows(self.model, self.model.size_of(samples))
        return torch.cat(map_items(self._encode_chunk, chunks(samples, rows), self.device))

    def _encode_chunk(self, chunk: tuple[Tensor, int]) -> Tensor:
        x, n = chunk
        with torch.inference_mode():
            return self.model.encode(x.to(self.device))[:n].cpu()

    def decode_checked(self, indices: Tensor, size: Size) -> Tensor:
        """Decode indices that `checked` returned."""
        rows, pieces = chunk_rows(self.model, size), []
        with torch.inference_mode():
            for x, n in chunks(indices, rows):
                pieces.append(self.spec.rows(self.model.decode(x.to(self.device), size).cpu())[:n])
        return torch.cat(pieces)


def load(run: str | Path, device: str | None = None) -> Tokenizer:
    """Load the tokenizer of a trained run.

    Args:
        run: run directory; config.yaml and model.safetensors in it are enough.
        device: "auto", "cpu", "cuda" or "cuda:1"; None: `training.device` of the run.

    Returns:
        A `Tokenizer`: `encode`, `decode`, `embed`, `evaluate`, `codebook`.

    Raises:
        CheckpointError: the directory is not a run, or its model is missing, damaged or in an unknown format.
        ConfigError: config.yaml is invalid, or the device is not available.
    """
    return Tokenizer(RunDirectory(run), device)


def _resolved_spec(run: RunDirectory, settings: RunSettings) -> SampleSpec:
    """The spec of a run's samples, after checking that its settings are resolved."""
    try:
        spec = spec_of(settings.data)
        resolved = resolve_model(settings.model, spec)
    except ConfigError as error:
        raise CheckpointError(f"{run.config}: {error}") from error
    if resolved != settings.model:
        raise CheckpointError(
            f"{run.config}: model: a value is auto or missing, but a run directory needs resolved values; restore the "
            "config.yaml that the run wrote, or train again"
        )
    return spec


def as_rows(array: Tensor | NDArray[Any]) -> Tensor:
    """Convert an array of any byte order to a tensor.

    Raises:
        DataError: the array has no axis, or a dtype that torch does not have.
    """
    if isinstance(array, Tensor) and array.ndim:
        return array
    array = np.asarray(array)
    try:
        return NumpyRows(array).read(0, len(array))
    except (TypeError, IndexError) as error:
        raise DataError(
            f"expected an array of numbers of shape (N, ...), got {array.dtype} of shape {array.shape}"
        ) from error


def to_numpy(rows: Tensor) -> NDArray[Any]:
    """Convert rows to a NumPy array; bfloat16, which NumPy does not have, becomes float32."""
    array: NDArray[Any] = (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
    return array
