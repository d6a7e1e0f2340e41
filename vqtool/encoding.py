"""Samples on their way to indices: read a step ahead of their encoding, and looked over meanwhile.

Shapes: N rows, L positions per sample, Q levels.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from vqtool.chunks import batch_rows
from vqtool.data import Samples, Source, Survey
from vqtool.errors import DataError
from vqtool.indices import Manifest, check_not_input, index_dtype
from vqtool.memory import out_of_memory_told
from vqtool.printable import well_formed
from vqtool.progress import pass_bar
from vqtool.threads import lone_threads
from vqtool.tokenizer import Tokenizer


@contextmanager
def encoding(tokenizer: Tokenizer, out: Path, data: str | None, key: str | None) -> Iterator["Encoding"]:
    """Open data like the run's, to be encoded into another file `out`; None: the run's own.

    Raises:
        DataError: they are not like the run's, or are `out` itself; also from within, where memory runs out.
    """
    source, samples = tokenizer.open(data, key)
    check_not_input(out, source.paths)
    threads = lone_threads(2)
    try:
        survey = threads.submit(tokenizer.survey, source)
        if tokenizer.spec.classes:
            survey.result()  # an encoder has no place for a class that is none
        with out_of_memory_told(DataError, "lower --batch-size"):
            yield Encoding(tokenizer, source, samples, survey, threads)
    finally:
        threads.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Encoding:
    """What a thread reads, another looks over, and the caller encodes."""

    tokenizer: Tokenizer
    source: Source
    samples: Samples
    survey: Future[Survey]
    threads: ThreadPoolExecutor

    @property
    def shape(self) -> list[int]:
        """Of the indices."""
        return [len(self.samples), *self.tokenizer.index_shape(self.samples.size)]

    @property
    def grid(self) -> list[int]:
        """Behind the positions of a sample."""
        return list(self.tokenizer.model.grid(self.samples.size))

    @property
    def dtype(self) -> str:
        """Of the indices."""
        return index_dtype(self.tokenizer.model.quantizer.codebook_sizes).name

    def encoded(self, batch_size: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Row numbers and the indices of the rows from there on, about `batch_size` of them.

        Raises:
            DataError: a value is not finite.
        """
        step = batch_rows(self.tokenizer.model, self.samples.size, batch_size)
        starts = range(0, len(self.samples), step)
        ahead = deque(self.threads.submit(self._read, start, step) for start in starts[:1])
        with pass_bar("encode", len(self.samples)) as bar:
            for start in starts:
                if start + step in starts:
                    ahead.append(self.threads.submit(self._read, start + step, step))
                indices = self.tokenizer.encode_samples(ahead.popleft().result()).numpy()
                if self.survey.done():
                    self.survey.result()
                yield start, indices
                bar.update(len(indices))

    def manifest(self) -> Manifest:
        """What is to be known of the indices, once all samples were looked over.

        Raises:
            DataError: a value is not finite, or the data changed meanwhile.
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
            shards=[{**asdict(shard), "name": well_formed(shard.name)} for shard in survey.shards],
        )

    def _read(self, start: int, step: int) -> Tensor:
        return self.samples.read(start, min(start + step, len(self.samples)))
