"""Encode data in parts by several workers. The worker that completes the last part joins all parts.

Parts begin at chunk boundaries, so the joined file has the same bytes for any number of workers. A part is a .npy file
in the directory OUT.parts, with a JSON marker that identifies model, data and rows.

Shapes: N rows, L tokens per sample, Q levels.
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

from vqtool.data import Samples, Source, map_npy
from vqtool.errors import ConfigError, DataError
from vqtool.inference.encoding import encoded, encoding
from vqtool.inference.tokenizer import Tokenizer
from vqtool.models.chunks import chunk_rows
from vqtool.runs.index_file import (
    Manifest,
    check_indices_output,
    check_not_input,
    index_dtype,
    read_indices,
    writing_array,
    writing_indices,
)
from vqtool.runtime.files import convert_write_errors, error_reason, read_json, try_lock, write_json
from vqtool.runtime.memory import convert_out_of_memory
from vqtool.runtime.progress import pass_bar
from vqtool.runtime.signals import deferred_signals
from vqtool.runtime.torchrun import rank_info

_LARGEST_MARKER = 1 << 16
# Bytes hashed at a time.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Part:
    """Part `number` of `of`, counted from 1."""

    number: int
    of: int

    @staticmethod
    def parse(text: str) -> "Part":
        """Parse text such as `3/16`.

        Raises:
            ConfigError: the text is not a part.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        part = Part(int(match[1]), int(match[2])) if match else None
        if part is None or not 1 <= part.number <= part.of:
            raise ConfigError(f"--part: {text} is not a part; expected I/N with I from 1 to N, such as 3/16")
        return part

    @staticmethod
    def of_process(environment: Mapping[str, str] = os.environ) -> "Part | None":
        """Part of this process by its rank under torchrun; None for a single process."""
        own = rank_info(environment)
        return Part(own.rank + 1, own.size) if own.size > 1 else None

    def rows(self, rows: int, chunk: int) -> range:
        """Row numbers of this part of `rows` rows; the first one starts a chunk."""
        chunks = -(-rows // chunk)
        first, last = (chunks * rank_info // self.of * chunk for rank_info in (self.number - 1, self.number))
        return range(min(first, rows), min(last, rows))


@deferred_signals()
def encode_part(
    tokenizer: Tokenizer,
    out: Path,
    part: Part,
    data: str | None = None,
    key: str | None = None,
    batch_size: int = 4096,
    overwrite: bool = False,
) -> Manifest | None:
    """Encode one part of the data; if all parts are complete, join them into the index file `out`.

    A part that is already complete is not encoded again.

    Args:
        part: the part to encode.
        data, key, batch_size, overwrite: as for `encode_file`.

    Returns:
        The manifest of the index file; None if parts are missing or another worker joins them.

    Raises:
        DataError: as `encode_file`; also if existing parts were encoded from other data or by another model.
    """
    source, samples = tokenizer.open(data, key)
    check_not_input(out, source.paths, source.name)
    work = _Work(tokenizer, source, samples, out, part.of)
    finished = None if overwrite else work.finished()
    if finished:
        return finished
    check_indices_output(out, overwrite)
    with convert_write_errors(work.folder):
        work.folder.mkdir(exist_ok=True)
    if not work.done(part):
        work.encode(part, batch_size)
    return work.join(data, key) if all(map(work.done, work.parts())) else None


@dataclass(frozen=True)
class _Work:
    """State of one output that all workers share, on disk.

    Attributes:
        of: number of parts.
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
        """Digest that identifies the data and their state: names, sizes and modification times of the files."""
        statuses = [(path.name, path.stat()) for path in self.source.paths]
        files = [[name, status.st_size, status.st_mtime_ns] for name, status in statuses]
        return hashlib.sha256(json.dumps([self.source.name, files]).encode()).hexdigest()

    def mark(self, part: Part) -> dict[str, Any]:
        """Content of the marker of a part: its model, data and rows."""
        rows = self.rows(part)
        return {
            "model_sha256": self.tokenizer.model_sha256,
            "data": self.data,
            "rows": [rows.start, rows.stop],
            "shape": list(self.shape),
        }

    def parts(self) -> list[Part]:
        """All parts that have rows."""
        every = [Part(number + 1, self.of) for number in range(self.of)]
        return [part for part in every if self.rows(part)]

    def finished(self) -> Manifest | None:
        """The manifest of an existing output of the same model and data; None if there is none."""
        try:
            manifest = read_indices(self.out)[1]
        except DataError:
            return None
        alike = (manifest.model_sha256, manifest.shape) == (self.tokenizer.model_sha256, list(self.shape))
        return manifest if alike and manifest.data_sha256 == self.tokenizer.survey(self.source).sha256 else None

    def done(self, part: Part) -> bool:
        """Whether a part is complete.

        Raises:
            DataError: it was encoded by another model or from other data.
        """
        path = self.path(part)
        marker = path.with_suffix(".json")
        if not self.rows(part):
            return True
        if not marker.exists():
            return False
        try:
            said = read_json(marker, _LARGEST_MARKER)
            digest = said.pop("sha256")
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{marker}: damaged: {error_reason(error)}; remove {self.folder} and encode all parts again"
            ) from error
        if said != self.mark(part):
            raise DataError(
                f"{marker}: the part was encoded by another model or from other data; remove {self.folder} and encode "
                "all parts again"
            )
        return path.is_file() and self.hashed(part) == digest

    def hashed(self, part: Part) -> str:
        """SHA-256 of the file of a part."""
        digest, path = hashlib.sha256(), self.path(part)
        with (
            path.open("rb") as file,
            pass_bar(f"hash part {part.number} of {part.of}", path.stat().st_size, "bytes") as bar,
        ):
            while block := file.read(_BLOCK):
                digest.update(block)
                bar.update(len(block))
        return digest.hexdigest()

    def encode(self, part: Part, batch_size: int) -> None:
        """Write a part, then its marker."""
        rows, progress = self.rows(part), f"encode part {part.number} of {part.of}"
        if self.tokenizer.spec.classes:
            self.tokenizer.survey(self.source)  # an embedding cannot look up a class that is out of range
        with (
            convert_out_of_memory(DataError, "lower --batch-size"),
            writing_array(self.path(part), (len(rows), *self.shape[1:]), self.dtype) as array,
        ):
            for start, indices in encoded(self.tokenizer, self.samples, rows, batch_size, progress):
                array[start - rows.start :][: len(indices)] = indices
        self.source.check_unchanged()
        path = self.path(part)
        write_json(path.with_suffix(".json"), {**self.mark(part), "sha256": self.hashed(part)})

    def join(self, data: str | None, key: str | None) -> Manifest | None:
        """Write the index file from all parts and remove the parts; None if another worker does it."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            if not try_lock(handle) or not self.folder.exists():
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
