"""Tokenizer of a trained run: encode, decode, embed, evaluate. All commands that use a trained model use this class."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.config import RunSettings
from vqtool.data import DatasetScan, FileSource, Samples, Source, open_dataset, open_source, spec_of
from vqtool.data.layout import dtype_name, holds_classes, sample_shape
from vqtool.data.rows import NumpyRows
from vqtool.errors import CheckpointError, ConfigError, DataError
from vqtool.metrics.evaluation import Evaluation, EvaluationAccumulator, iter_reconstructions
from vqtool.metrics.reconstruction_metrics import CategoricalMetrics, ContinuousMetrics, ReconstructionMetrics
from vqtool.metrics.usage import CodeCounter
from vqtool.models.autoencoder import Autoencoder, resolve_model
from vqtool.models.chunks import batch_rows, chunk_rows, chunks
from vqtool.models.encoders import Size
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.device import resolve_device
from vqtool.runtime.progress import pass_bar
from vqtool.runtime.threads import map_items


@dataclass(frozen=True)
class EvaluationReport:
    """Result of `Tokenizer.evaluate`.

    Attributes:
        evaluation: losses, in normalised units, and codebook usage.
        reconstruction: mse (in squared units of the data) and nmse; accuracy for classes.
        bits_per_sample: L times the sum over levels of log2 K.
    """

    evaluation: Evaluation
    reconstruction: ReconstructionMetrics
    bits_per_sample: float


class Tokenizer:
    """Maps rows to indices and back with a trained model. Create it with `vqtool.load`.

    Shapes: n rows, L tokens per sample, D code dimension, K codes, Q levels; `row` is the shape of one row of the
    user's array. Indices are (n, L, Q) for residual and product quantizers, and (n, L) otherwise.

    Attributes:
        settings: settings of the run (config.yaml).
        spec: shape, dtype and layout of the samples that the model was trained on.
        device: device of the model.
        model: the autoencoder, in evaluation mode, without gradients.
        model_sha256: SHA-256 of model.safetensors.
        grid: shape of the L tokens of a sample of the training size, in row-major order: (H, W) for images.
    """

    def __init__(self, run: RunDirectory, device: str | None = None) -> None:
        self.settings: RunSettings = run.settings()
        try:
            self.spec = spec_of(self.settings.data)
            resolved = resolve_model(self.settings.model, self.spec)
        except ConfigError as error:
            raise CheckpointError(f"{run.config}: {error}") from error
        if resolved != self.settings.model:
            raise CheckpointError(
                f"{run.config}: model: a value is auto or missing, but a run directory needs resolved values; restore "
                "the config.yaml that the run wrote, or train again"
            )
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
        self.model.quantizer.skip_entropy_loss()  # evaluation computes it from the level statistics
        self.grid = self.model.grid(self.spec.size)

    @property
    def codebook(self) -> Tensor:
        """Codes (K, D) on `device`; (Q, K, D) for residual quantizers, (Q, K, D / G) for product ones of G groups."""
        return self.model.quantizer.codes

    def encode(self, rows: Tensor | NDArray[Any]) -> Tensor:
        """Encode rows to indices.

        Args:
            rows: array or tensor (n, *row), in the layout and units of the training data, not normalised.

        Returns:
            Indices (n, L), or (n, L, Q), int64, on the CPU.

        Raises:
            DataError: the model does not accept the shape of the rows, or they are classes instead of values or values
                instead of classes; a value is NaN or infinite in float32; or a class is out of range.
        """
        rows = to_tensor(rows)
        self._check_rows(tuple(rows.shape[1:]), rows.dtype, "encode")
        samples = self.spec.to_samples(rows)
        if self.spec.classes:
            invalid = ((samples < 0) | (samples >= self.spec.classes)).nonzero()
            if len(invalid):
                raise DataError(
                    f"encode: class {int(samples[tuple(invalid[0])])} in row {int(invalid[0, 0])} is out of range; the "
                    f"model was trained on classes 0 to {self.spec.classes - 1}"
                )
        if not (finite := samples.isfinite()).all():
            row = int((~finite).nonzero()[0, 0])
            raise DataError(f"encode: row {row} contains NaN or a value that is infinite in float32; remove it")
        return self.encode_batch(samples)

    def decode(
        self, indices: Tensor | NDArray[Any], row_shape: Size | None = None, levels: int | None = None
    ) -> Tensor:
        """Decode indices to rows.

        Args:
            indices: integers (n, L), or (n, L, Q) with all levels.
            row_shape: shape of one decoded row; None: that of the training data. Other sizes need encoder and decoder
                families that support them (convolutional, identity).
            levels: number of leading levels to decode, 1 to Q (fewer than Q: residual quantizers only); None: all.

        Returns:
            Rows (n, *row), in the layout, units and dtype of the training data, on the CPU.

        Raises:
            DataError: a shape does not match the model, or indices or `levels` have a wrong dtype or are out of range.
        """
        self.model.check_rows(row_shape or self.spec.row_shape, "decode")
        size = sample_shape(self.spec.layout, row_shape or self.spec.row_shape)[1]
        return self.decode_batch(self.validate_indices(indices, size, levels, "decode"), size)

    def embed(self, indices: Tensor | NDArray[Any], levels: int | None = None) -> Tensor:
        """Look up the codes of indices; those of several levels are summed (residual) or concatenated (product).

        Args:
            indices: integers (n, L), or (n, L, Q) with all levels, of rows of the training size.
            levels: number of leading levels to use, as in `decode`.

        Returns:
            Codes (n, L, D), float32, on the CPU; D is the dimension before any projection to the decoder's width.

        Raises:
            DataError: as `decode`.
        """
        indices = self.validate_indices(indices, self.spec.size, levels, "embed")
        with torch.inference_mode():
            return self.model.quantizer.embed(indices.to(self.device)).cpu()

    def validate_indices(
        self, indices: Tensor | NDArray[Any], size: Size, levels: int | None, source: str, first_row: int = 0
    ) -> Tensor:
        """Check indices of samples of `size`, and return their leading levels as int64: (n, L) or (n, L, levels).

        Args:
            indices: integers (n, L), or (n, L, Q) with all levels.
            levels: number of leading levels to return; None: all.
            source: origin of the indices, such as a file; error messages start with it.
            first_row: number of the first row, for error messages.

        Raises:
            DataError: dtype or shape is wrong, an index is out of range, or `check_levels` fails.
        """
        indices = to_tensor(indices)
        if indices.dtype.is_floating_point or indices.dtype == torch.bool:
            raise DataError(f"{source}: expected integer indices, got {dtype_name(indices.dtype)}")
        indices = indices.long()
        expected = self.index_shape(size)
        if tuple(indices.shape[1:]) != expected:
            raise DataError(
                f"{source}: expected indices of shape (N, {', '.join(map(str, expected))}), got {tuple(indices.shape)}"
            )
        sizes = self.model.quantizer.codebook_sizes
        limits = torch.tensor(sizes if self.model.quantizer.has_levels else sizes[0])
        invalid = ((indices < 0) | (indices >= limits)).nonzero()
        if len(invalid):
            index, limit = int(indices[tuple(invalid[0])]), int(limits.expand(expected)[tuple(invalid[0, 1:])])
            raise DataError(
                f"{source}: index {index} in row {first_row + int(invalid[0, 0])} is out of range; valid indices are 0 "
                f"to {limit - 1}"
            )
        self.check_levels(levels, f"{source}: levels")
        return indices if levels in (None, len(sizes)) else indices[..., :levels]

    def check_levels(self, levels: int | None, option: str) -> None:
        """Check that the quantizer can decode the first `levels` of its Q levels.

        Args:
            levels: number of leading levels to decode, 1 to Q; None: all levels.
            option: name of the option or argument; the error message starts with it.

        Raises:
            DataError: `levels` is not in 1..Q, or it is less than Q and the quantizer can only decode all levels.
        """
        count = len(self.model.quantizer.codebook_sizes)
        if levels is None or levels == count:
            return
        if not self.model.quantizer.supports_prefix_decoding:
            raise DataError(
                f"{option}: only a residual quantizer can decode fewer than all levels; omit it, or use {count} "
                f"(got {levels})"
            )
        if not 1 <= levels < count:
            raise DataError(f"{option}: {levels} is out of range; expected 1 to {count}")

    def evaluate(self, data: str | None = None, key: str | None = None) -> EvaluationReport:
        """Compute losses, codebook usage and reconstruction quality over data.

        Args:
            data: path as in `data.path`; None: the validation split of the run.
            key: name of the array, for files with several arrays; ignored without `data`.

        Raises:
            DataError: the data do not match the training data, contain NaN or infinity, or a class is out of range.
        """
        if data is None:
            samples = open_dataset(self.settings.data, self.settings.seed).validation
        else:
            samples = self.open_scanned(data, key)
        evaluation = EvaluationAccumulator(self.model, self.settings.loss)
        reconstruction = CategoricalMetrics() if self.spec.classes else ContinuousMetrics()
        for chunk in iter_reconstructions(self.model, samples, self.settings.loss, "eval"):
            evaluation.add(chunk)
            reconstruction.add(chunk.rows, chunk.decoded)
        bits = self.model.bits_per_sample(samples.size)
        return EvaluationReport(evaluation.result(), reconstruction.result(), bits)

    def count_codes(self, data: str, key: str | None = None) -> CodeCounter:
        """Count the hits of each code over data, and for vectors the distinct ids; raise errors as `evaluate` does."""
        samples = self.open_scanned(data, key)
        counter = CodeCounter(self.model.quantizer.codebook_sizes, ids=not self.spec.size)
        rows_per_batch = batch_rows(self.model, samples.size, len(samples))
        with pass_bar("inspect", len(samples)) as bar:
            for start in range(0, len(samples), rows_per_batch):
                indices = self.encode_batch(samples.read(start, min(start + rows_per_batch, len(samples))))
                counter.add(indices.numpy())
                bar.update(len(indices))
        return counter

    def open_scanned(self, data: str, key: str | None) -> Samples:
        """Open and scan data, and return all samples; raise errors as `open_data` and `scan` do."""
        source, samples = self.open_data(data, key)
        self.scan(source)
        return samples

    def open_data(self, data: str | None, key: str | None) -> tuple[Source, Samples]:
        """Open data without scanning them; return the source and all its samples.

        Args:
            data: path as in `data.path`; None: the run's own data, all rows in order.
            key: name of the array, for files with several arrays.

        Raises:
            DataError: the data cannot be opened, the model does not accept them, or `key` is given without `data`.
        """
        if data is None and key is not None:
            raise DataError(f"key: {key} is given without data; name the data too, or omit key for the run's own data")
        source = open_source(self.settings.data, self.settings.seed) if data is None else FileSource(data, key)
        self._check_rows(source.rows.shape, source.rows.dtype, source.name)
        return source, Samples(source.rows, self.spec)

    def scan(self, source: Source) -> DatasetScan:
        """Check that a source has only finite values or valid classes, and hash its shards; cached results are reused.

        The moments of the result are unspecified.

        Raises:
            DataError: a value is NaN or infinite in float32, or a class is out of range.
        """
        scan = source.scan(self.spec.layout, moment_rows=False)
        if self.spec.classes:
            source.check_classes(scan, self.spec.classes)
        return scan

    def _check_rows(self, row_shape: Size, dtype: torch.dtype, source: str) -> None:
        self.model.check_rows(row_shape, source)
        if holds_classes(self.spec.layout, dtype) != bool(self.spec.classes):
            expected = "classes" if self.spec.classes else "values"
            raise DataError(
                f"{source}: dtype {dtype_name(dtype)} does not match the model; it was trained on {expected} "
                f"({self.spec.dtype})"
            )

    def index_shape(self, size: Size) -> Size:
        """Return the shape of the indices of one sample of `size`: (L,), or (L, Q)."""
        quantizer = self.model.quantizer
        levels = (len(quantizer.codebook_sizes),) if quantizer.has_levels else ()
        return (math.prod(self.model.grid(size)), *levels)

    def encode_batch(self, samples: Tensor) -> Tensor:
        """Encode samples in fixed-size chunks: (n, C, *size) or (n, *size) to int64 (n, L) or (n, L, Q), on the CPU.

        Values must be finite and classes in range. On a CPU, each chunk is computed by one thread.
        """

        def encode_chunk(chunk: tuple[Tensor, int]) -> Tensor:
            x, n = chunk
            with torch.inference_mode():
                return self.model.encode(x.to(self.device))[:n].cpu()

        rows = chunk_rows(self.model, self.model.size_of(samples))
        return torch.cat(map_items(encode_chunk, chunks(samples, rows), self.device))

    def decode_batch(self, indices: Tensor, size: Size) -> Tensor:
        """Decode valid indices (n, L) or (n, L, levels) in fixed-size chunks to rows (n, *row) of `size` on the CPU."""
        rows_per_chunk, decoded = chunk_rows(self.model, size), []
        with torch.inference_mode():
            for x, n in chunks(indices, rows_per_chunk):
                decoded.append(self.spec.to_rows(self.model.decode(x.to(self.device), size).cpu())[:n])
        return torch.cat(decoded)


def load(run: str | Path, device: str | None = None) -> Tokenizer:
    """Load the tokenizer of a trained run.

    Args:
        run: run directory; config.yaml and model.safetensors in it are enough.
        device: "auto", "cpu", "cuda" or "cuda:N"; None: `training.device` of the run.

    Raises:
        CheckpointError: the directory is not a run, or its model is missing, damaged or of another format or run.
        ConfigError: config.yaml is invalid, or the device is not available.
    """
    return Tokenizer(RunDirectory(run), device)


def to_tensor(array: Tensor | NDArray[Any]) -> Tensor:
    """Copy an array (N, ...) of any byte order to a tensor; a tensor with at least one axis is returned unchanged.

    Raises:
        DataError: the array has no axes, or a dtype that torch does not support.
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
