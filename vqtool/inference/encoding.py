"""Encode samples by several threads, while another thread scans the data for NaN and hashes them.

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
from vqtool.runs.index_file import Manifest, check_not_input, index_dtype
from vqtool.runtime.memory import convert_out_of_memory
from vqtool.runtime.progress import pass_bar
from vqtool.runtime.terminal import escape_surrogates
from vqtool.runtime.threads import single_threaded_pool


@contextmanager
def encoding(tokenizer: Tokenizer, out: Path, data: str | None, key: str | None) -> Iterator["Encoding"]:
    """Open data to be encoded to the file `out`; None: the run's own data.

    Raises:
        DataError: the data do not match the training data, or `out` is one of their files; also from within the
            context, when memory runs out.
    """
    source, samples = tokenizer.open(data, key)
    check_not_input(out, source.paths, source.name)
    thread = single_threaded_pool(1)
    try:
        survey = thread.submit(tokenizer.survey, source)
        if tokenizer.spec.classes:
            survey.result()  # an embedding cannot look up a class that is out of range
        with convert_out_of_memory(DataError, "lower --batch-size"):
            yield Encoding(tokenizer, source, samples, survey)
    finally:
        thread.shutdown(cancel_futures=True)


def encoded(
    tokenizer: Tokenizer, samples: Samples, rows: range, batch_size: int, progress: str
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the number of the first row and the indices of each batch of `batch_rows(..., batch_size)` rows, in order.

    Each thread reads and encodes its own batches.

    Args:
        rows: the rows to encode; the first one starts a chunk.
        progress: name of the progress bar.
    """
    step = batch_rows(tokenizer.model, samples.size, batch_size)
    count = max(2, torch.get_num_threads())
    threads, starts = single_threaded_pool(count), iter(rows[::step])

    def encode(start: int) -> NDArray[Any]:
        return tokenizer.encode_samples(samples.read(start, min(start + step, rows.stop))).numpy()

    try:
        ahead = deque((start, threads.submit(encode, start)) for start in islice(starts, count + 1))
        with pass_bar(progress, len(rows)) as bar:
            while ahead:
                start, future = ahead.popleft()
                indices = future.result()
                ahead.extend((later, threads.submit(encode, later)) for later in islice(starts, 1))
                yield start, indices
                bar.update(len(indices))
    finally:
        threads.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Encoding:
    """Samples that several threads encode while another thread scans them."""

    tokenizer: Tokenizer
    source: Source
    samples: Samples
    survey: Future[DatasetScan]

    @property
    def shape(self) -> list[int]:
        """Shape of the indices."""
        return [len(self.samples), *self.tokenizer.index_shape(self.samples.size)]

    @property
    def grid(self) -> list[int]:
        """Shape whose row-major order gives the tokens of a sample."""
        return list(self.tokenizer.model.grid(self.samples.size))

    @property
    def dtype(self) -> str:
        """Dtype of the indices."""
        return index_dtype(self.tokenizer.model.quantizer.codebook_sizes).name

    def encoded(self, batch_size: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield the number of the first row and the indices of each batch, in order.

        Raises:
            DataError: a value is NaN or infinite.
        """
        for start, indices in encoded(self.tokenizer, self.samples, range(len(self.samples)), batch_size, "encode"):
            if self.survey.done():
                self.survey.result()
            yield start, indices

    def manifest(self) -> Manifest:
        """The manifest of the indices; waits for the scan of the data.

        Raises:
            DataError: a value is NaN or infinite, or the data changed while they were read.
        """
        survey = self.survey.result()
        self.source.check_unchanged()
        return Manifest(
            shape=self.shape,
            dtype=self.dtype,
            grid=self.grid,
            codebook_sizes=list(self.tokenizer.model.quantizer.codebook_sizes),
            row_shape=list(self.samples.rows.shape),
            layout=self.tokenizer.spec.layout,
            model_sha256=self.tokenizer.model_sha256,
            data_sha256=survey.sha256,
            shards=[{**asdict(shard), "name": escape_surrogates(shard.name)} for shard in survey.shards],
        )
