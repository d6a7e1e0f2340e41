"""Encoding in parts: rows are split among any number of workers, and whoever completes the set joins it.

Parts are split where the fixed chunks of arithmetic are, so that the joined file has the same bytes for any number of
workers. A part is an index file of its rows in a folder beside the output, with a marker that says whose it is.

Shapes: N rows, L positions per sample, Q levels.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vqtool.chunks import chunk_rows
from vqtool.data import Samples, Source, map_npy
from vqtool.encoding import encoded, encoding
from vqtool.errors import ConfigError, DataError
from vqtool.files import lock, read_small, write_json, writing
from vqtool.indices import (
    Manifest,
    check_indices_output,
    check_not_input,
    index_dtype,
    read_indices,
    writing_array,
    writing_indices,
)
from vqtool.launcher import place
from vqtool.memory import out_of_memory_told
from vqtool.signals import noting_signals
from vqtool.tokenizer import Tokenizer

_LARGEST_MARKER = 1 << 16


@dataclass(frozen=True)
class Part:
    """Part `number`, counted from 1, of `of`."""

    number: int
    of: int

    @staticmethod
    def parse(text: str) -> "Part":
        """Of `3/16`.

        Raises:
            ConfigError: it is no such part.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        part = Part(int(match[1]), int(match[2])) if match else None
        if part is None or not 1 <= part.number <= part.of:
            raise ConfigError(f"--part {text}: expected a number and how many there are, such as 3/16")
        return part

    @staticmethod
    def of_process(environment: Mapping[str, str] = os.environ) -> "Part | None":
        """That of this process' rank under torchrun; None where it is alone."""
        own = place(environment)
        return Part(own.rank + 1, own.size) if own.size > 1 else None

    def rows(self, rows: int, chunk: int) -> range:
        """The row numbers of this part of `rows`, which begin with a chunk."""
        chunks = -(-rows // chunk)
        first, last = (chunks * place // self.of * chunk for place in (self.number - 1, self.number))
        return range(min(first, rows), min(last, rows))


@noting_signals()
def encode_part(
    tokenizer: Tokenizer,
    out: Path,
    part: Part,
    data: str | None = None,
    key: str | None = None,
    batch_size: int = 4096,
    overwrite: bool = False,
) -> Manifest | None:
    """Encode a part of data, unless that is done; where it completes the set, join all into the index file `out`.

    Args:
        data, key, batch_size, overwrite: as for `encode_file`.

    Returns:
        The manifest of the index file; None where parts are still missing, or another worker is joining them.

    Raises:
        DataError: as `encode_file`; also where parts of other data or of another model are in the way.
    """
    source, samples = tokenizer.open(data, key)
    check_not_input(out, source.paths, source.name)
    work = _Work(tokenizer, source, samples, out, part.of)
    finished = None if overwrite else work.finished()
    if finished:
        return finished
    check_indices_output(out, overwrite)
    with writing(work.folder):
        work.folder.mkdir(exist_ok=True)
    if not work.done(part):
        work.encode(part, batch_size)
    return work.join(data, key) if all(map(work.done, work.parts())) else None


@dataclass(frozen=True)
class _Work:
    """What all workers at one output share.

    Attributes:
        of: how many parts there are.
    """

    tokenizer: Tokenizer
    source: Source
    samples: Samples
    out: Path
    of: int

    @property
    def folder(self) -> Path:
        return self.out.with_name(f"{self.out.name}.parts")

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.samples), *self.tokenizer.index_shape(self.samples.size))

    @property
    def dtype(self) -> np.dtype[Any]:
        return index_dtype(self.tokenizer.model.quantizer.codebook_sizes)

    def rows(self, part: Part) -> range:
        return part.rows(len(self.samples), chunk_rows(self.tokenizer.model, self.samples.size))

    def path(self, part: Part) -> Path:
        return self.folder / f"part-{part.number:06d}-of-{part.of:06d}.npy"

    @cached_property
    def data(self) -> str:
        """What tells these data from others, and from what they were: the names, sizes and times of change of files."""
        statuses = [(path.name, path.stat()) for path in self.source.paths]
        files = [[name, status.st_size, status.st_mtime_ns] for name, status in statuses]
        return hashlib.sha256(json.dumps([self.source.name, files]).encode()).hexdigest()

    def mark(self, part: Part) -> dict[str, Any]:
        """What the marker of a part must say: of which model, data and rows it is."""
        rows = self.rows(part)
        return {
            "model_sha256": self.tokenizer.model_sha256,
            "data": self.data,
            "rows": [rows.start, rows.stop],
            "shape": list(self.shape),
        }

    def parts(self) -> list[Part]:
        """All that have rows."""
        every = [Part(number + 1, self.of) for number in range(self.of)]
        return [part for part in every if self.rows(part)]

    def finished(self) -> Manifest | None:
        """The manifest of the output, where it is there already, by the same model from the same data."""
        try:
            manifest = read_indices(self.out)[1]
        except DataError:
            return None
        alike = (manifest.model_sha256, manifest.shape) == (self.tokenizer.model_sha256, list(self.shape))
        return manifest if alike and manifest.data_sha256 == self.tokenizer.survey(self.source).sha256 else None

    def done(self, part: Part) -> bool:
        """Whether a part is there.

        Raises:
            DataError: it is there, of another model or of other data.
        """
        path = self.path(part)
        marker = path.with_suffix(".json")
        if not self.rows(part):
            return True
        if not marker.exists():
            return False
        try:
            said = json.loads(read_small(marker, _LARGEST_MARKER))
            digest = said.pop("sha256")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{marker}: not the marker of a part: {error}; remove {self.folder}") from error
        if said != self.mark(part):
            raise DataError(f"{marker}: the part is of another model, or of other data; remove {self.folder}")
        return path.is_file() and _sha256(path) == digest

    def encode(self, part: Part, batch_size: int) -> None:
        """Write a part, and then its marker."""
        rows, progress = self.rows(part), f"encode part {part.number} of {part.of}"
        if self.tokenizer.spec.classes:
            self.tokenizer.survey(self.source)  # an encoder has no place for a class that is none
        with (
            out_of_memory_told(DataError, "lower --batch-size"),
            writing_array(self.path(part), (len(rows), *self.shape[1:]), self.dtype) as array,
        ):
            for start, indices in encoded(self.tokenizer, self.samples, rows, batch_size, progress):
                array[start - rows.start :][: len(indices)] = indices
        self.source.check_unchanged()
        path = self.path(part)
        write_json(path.with_suffix(".json"), {**self.mark(part), "sha256": _sha256(path)})

    def join(self, data: str | None, key: str | None) -> Manifest | None:
        """Write the index file from all parts, and remove them; None where another worker is at it."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            if not lock(handle) or not self.folder.exists():
                return None
            with encoding(self.tokenizer, self.out, data, key) as job:
                with writing_indices(self.out, self.shape, self.dtype.name, job.manifest) as array:
                    for part in self.parts():
                        rows = self.rows(part)
                        array[rows.start : rows.stop] = map_npy(self.path(part))
                manifest = job.manifest()
            shutil.rmtree(self.folder)
            return manifest
        finally:
            os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
