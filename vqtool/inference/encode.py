"""Encode data to an index file: several threads encode batches while another thread scans the data.

Three levels: `encode_file` writes the file, `iter_indices` yields the indices of batches, `Tokenizer.encode_batch`
encodes one batch in chunks of a fixed size.

Shapes: N rows, L tokens per sample, Q levels.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from vqtool.data import DatasetScan, Samples, Source
from vqtool.errors import DataError
from vqtool.inference.tokenizer import Tokenizer
from vqtool.models.chunks import batch_rows
from vqtool.runs.index_file import (
    Manifest,
    atomic_write_indices,
    check_indices_output,
    check_not_input,
    index_dtype,
)
from vqtool.runtime.memory import convert_out_of_memory
from vqtool.runtime.progress import pass_bar
from vqtool.runtime.signals import deferred_signals
from vqtool.runtime.terminal import escape_surrogates
from vqtool.runtime.threads import single_threaded_pool


@deferred_signals()
def encode_file(
    tokenizer: Tokenizer,
    out: Path,
    data: str | None = None,
    key: str | None = None,
    batch_size: int = 4096,
    overwrite: bool = False,
) -> Manifest:
    """Encode data to an index file and its manifest.

    Args:
        out: index file to write, NAME.npy, of shape (N, L) or (N, L, Q); the manifest is NAME.json.
        data: path as in `data.path`; None: the run's own data, all rows in order.
        key: name of the array, for files with several arrays.
        batch_size: rows that a thread reads at a time, adjusted by `batch_rows`; does not change the indices.
        overwrite: replace existing files.

    Returns:
        The manifest.

    Raises:
        DataError: the data do not match the training data, contain NaN or infinity, or a class is out of range; `out`
            is an input, exists without `overwrite` or cannot be written; or memory runs out.
    """
    check_indices_output(out, overwrite)
    with open_encode_job(tokenizer, out, data, key) as job:
        with atomic_write_indices(out, job.shape, job.dtype, job.manifest) as array:
            for start, indices in iter_indices(tokenizer, job.samples, job.rows, batch_size, "encode", job.scan):
                array[start : start + len(indices)] = indices
        return job.manifest()


@dataclass(frozen=True)
class EncodeJob:
    """Data to encode, and the scan of the data that runs in another thread.

    Attributes:
        tokenizer: tokenizer to encode with.
        source: source of the data.
        samples: all samples of the data.
        scan: future of `Tokenizer.scan`; its result raises a DataError if a value is NaN or infinite.
    """

    tokenizer: Tokenizer
    source: Source
    samples: Samples
    scan: Future[DatasetScan]

    @property
    def rows(self) -> range:
        """Numbers of all rows, 0 to N - 1."""
        return range(len(self.samples))

    @property
    def shape(self) -> list[int]:
        """Shape of the indices, [N, L] or [N, L, Q]."""
        return [len(self.samples), *self.tokenizer.index_shape(self.samples.size)]

    @property
    def grid(self) -> list[int]:
        """Shape of the L tokens of a sample, in row-major order: [H, W] for images."""
        return list(self.tokenizer.model.grid(self.samples.size))

    @property
    def dtype(self) -> str:
        """Name of the dtype of the indices."""
        return index_dtype(self.tokenizer.model.quantizer.codebook_sizes).name

    def manifest(self) -> Manifest:
        """Wait for the scan, and return the manifest of the indices.

        Raises:
            DataError: a value is NaN or infinite, or the data changed since they were opened.
        """
        scan = self.scan.result()
        self.source.check_unchanged()
        return Manifest(
            shape=self.shape,
            dtype=self.dtype,
            grid=self.grid,
            codebook_sizes=list(self.tokenizer.model.quantizer.codebook_sizes),
            row_shape=list(self.samples.rows.shape),
            layout=self.tokenizer.spec.layout,
            model_sha256=self.tokenizer.model_sha256,
            data_sha256=scan.sha256,
            shards=[{**asdict(shard), "name": escape_surrogates(shard.name)} for shard in scan.shards],
        )


@contextmanager
def open_encode_job(tokenizer: Tokenizer, out: Path, data: str | None, key: str | None) -> Iterator[EncodeJob]:
    """Open data to encode to the file `out`, and scan them in another thread; for classes, wait for the scan.

    Args:
        data: path as in `data.path`; None: the run's own data, all rows in order.
        key: name of the array, for files with several arrays.

    Raises:
        DataError: the data do not match the training data, `out` is one of their files or in their directory, a class
            is out of range, or memory runs out within the context.
    """
    source, samples = tokenizer.open_data(data, key)
    check_not_input(out, source.paths, source.name)
    thread = single_threaded_pool(1)
    try:
        scan = thread.submit(tokenizer.scan, source)
        if tokenizer.spec.classes:
            scan.result()  # before encoding, because an embedding cannot look up a class that is out of range
        with convert_out_of_memory(DataError, "lower --batch-size"):
            yield EncodeJob(tokenizer, source, samples, scan)
    finally:
        thread.shutdown(cancel_futures=True)


def iter_indices(
    tokenizer: Tokenizer,
    samples: Samples,
    rows: range,
    batch_size: int,
    progress_name: str,
    scan: Future[DatasetScan] | None = None,
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Encode samples in batches, each of which one thread reads and encodes.

    Args:
        rows: consecutive rows to encode; the first one must be the first row of a chunk.
        batch_size: rows per batch, adjusted by `batch_rows`.
        progress_name: name of the progress bar.
        scan: scan of the data. If it fails meanwhile, the iteration stops with its error. The iteration does not wait
            for the scan: it can end first, and the caller must wait.

    Yields:
        The number of the first row of each batch, and the int64 indices (n, L) or (n, L, Q), in row order.

    Raises:
        DataError: the scan has found NaN or infinity.
    """
    rows_per_batch = batch_rows(tokenizer.model, samples.size, batch_size)
    num_threads = max(2, torch.get_num_threads())
    pool, starts = single_threaded_pool(num_threads), iter(rows[::rows_per_batch])

    def encode(start: int) -> NDArray[Any]:
        return tokenizer.encode_batch(samples.read(start, min(start + rows_per_batch, rows.stop))).numpy()

    try:
        # One batch more than threads, so that no thread waits while the caller writes.
        pending = deque((start, pool.submit(encode, start)) for start in islice(starts, num_threads + 1))
        with pass_bar(progress_name, len(rows)) as bar:
            while pending:
                start, future = pending.popleft()
                indices = future.result()
                pending.extend((next_start, pool.submit(encode, next_start)) for next_start in islice(starts, 1))
                if scan is not None and scan.done():
                    scan.result()
                yield start, indices
                bar.update(len(indices))
    finally:
        pool.shutdown(cancel_futures=True)
