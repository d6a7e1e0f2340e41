"""Encode data in parts by several workers. The worker that completes the last part joins all parts.

Parts begin at chunk boundaries, so the joined file has the same bytes for any number of workers. The directory
OUT.parts holds a .npy file for each part, and a JSON marker with the digests of model, data and part, which is written
when the part is complete.

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
from vqtool.inference.encode import iter_indices, open_encode_job
from vqtool.inference.tokenizer import Tokenizer
from vqtool.models.chunks import chunk_rows
from vqtool.runs.index_file import (
    Manifest,
    atomic_write_array,
    atomic_write_indices,
    check_indices_output,
    check_not_input,
    index_dtype,
    read_indices,
)
from vqtool.runtime.files import convert_write_errors, error_reason, read_json, try_lock, write_json
from vqtool.runtime.memory import convert_out_of_memory
from vqtool.runtime.progress import pass_bar
from vqtool.runtime.signals import deferred_signals
from vqtool.runtime.torchrun import rank_info

_MAX_MARKER_BYTES = 1 << 16
_HASH_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Part:
    """Part `number` of `total`; numbers start at 1."""

    number: int
    total: int

    @staticmethod
    def parse(text: str) -> "Part":
        """Parse the text `number/total`, such as `3/16`.

        Raises:
            ConfigError: the text is not a part, or the number is not in 1..total.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        part = Part(int(match[1]), int(match[2])) if match else None
        if part is None or not 1 <= part.number <= part.total:
            raise ConfigError(f"--part: {text} is not a part; expected I/N with I from 1 to N, such as 3/16")
        return part

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "Part | None":
        """Return part rank + 1 of world_size under torchrun; None for a single process."""
        process = rank_info(environment)
        return Part(process.rank + 1, process.world_size) if process.world_size > 1 else None

    def row_range(self, num_rows: int, rows_per_chunk: int) -> range:
        """Return the row numbers of this part of `num_rows` rows: whole chunks, so the range can be empty."""
        num_chunks = -(-num_rows // rows_per_chunk)
        start, stop = (num_chunks * i // self.total * rows_per_chunk for i in (self.number - 1, self.number))
        return range(min(start, num_rows), min(stop, num_rows))


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

    A part that is already complete is not encoded again. If `out` contains the indices of these data by this model,
    nothing is encoded, unless `overwrite`.

    Args:
        part: the part to encode.
        data, key, batch_size, overwrite: as for `encode_file`.

    Returns:
        The manifest of the index file; None if parts are missing, or another worker joins or has joined them.

    Raises:
        DataError: as `encode_file`; also if existing parts were encoded from other data or by another model.
    """
    source, samples = tokenizer.open_data(data, key)
    check_not_input(out, source.paths, source.name)
    job = _PartsJob(tokenizer, source, samples, out, part.total)
    manifest = None if overwrite else job.existing_manifest()
    if manifest:
        return manifest
    check_indices_output(out, overwrite)
    with convert_write_errors(job.folder):
        job.folder.mkdir(exist_ok=True)
    if not job.is_complete(part):
        job.encode(part, batch_size)
    return job.join(data, key) if all(map(job.is_complete, job.parts())) else None


@dataclass(frozen=True)
class _PartsJob:
    """Data that several workers encode to one index file; the workers only communicate by the directory `folder`.

    Attributes:
        tokenizer: tokenizer to encode with.
        source: source of the data.
        samples: all samples of the data.
        out: index file to write.
        total: number of parts.
    """

    tokenizer: Tokenizer
    source: Source
    samples: Samples
    out: Path
    total: int

    @property
    def folder(self) -> Path:
        """Directory OUT.parts."""
        return self.out.with_name(f"{self.out.name}.parts")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the index file."""
        return (len(self.samples), *self.tokenizer.index_shape(self.samples.size))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the index file."""
        return index_dtype(self.tokenizer.model.quantizer.codebook_sizes)

    def rows(self, part: Part) -> range:
        return part.row_range(len(self.samples), chunk_rows(self.tokenizer.model, self.samples.size))

    def path(self, part: Part) -> Path:
        return self.folder / f"part-{part.number:06d}-of-{part.total:06d}.npy"

    @cached_property
    def data_digest(self) -> str:
        """SHA-256 of the path of the data as given, and of names, sizes and modification times of the files."""
        statuses = [(path.name, path.stat()) for path in self.source.paths]
        files = [[name, status.st_size, status.st_mtime_ns] for name, status in statuses]
        return hashlib.sha256(json.dumps([self.source.name, files]).encode()).hexdigest()

    def marker(self, part: Part) -> dict[str, Any]:
        """Return the content that the marker of a part must have, without the digest of the part's file."""
        rows = self.rows(part)
        return {
            "model_sha256": self.tokenizer.model_sha256,
            "data": self.data_digest,
            "rows": [rows.start, rows.stop],
            "shape": list(self.shape),
        }

    def parts(self) -> list[Part]:
        """Return all parts that have rows, in order."""
        parts = [Part(number, self.total) for number in range(1, self.total + 1)]
        return [part for part in parts if self.rows(part)]

    def existing_manifest(self) -> Manifest | None:
        """Return the manifest of `out` if this model encoded it from these data; otherwise None. May scan the data."""
        try:
            manifest = read_indices(self.out)[1]
        except DataError:
            return None
        if (manifest.model_sha256, manifest.shape) != (self.tokenizer.model_sha256, list(self.shape)):
            return None
        return manifest if manifest.data_sha256 == self.tokenizer.scan(self.source).sha256 else None

    def is_complete(self, part: Part) -> bool:
        """Return whether the marker of a part exists and has the SHA-256 of its file; true for a part without rows.

        Raises:
            DataError: the part was encoded by another model or from other data, or its marker is damaged.
        """
        path = self.path(part)
        marker_path = path.with_suffix(".json")
        if not self.rows(part):
            return True
        if not marker_path.exists():
            return False
        try:
            marker = read_json(marker_path, _MAX_MARKER_BYTES)
            digest = marker.pop("sha256")
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{marker_path}: damaged: {error_reason(error)}; remove {self.folder} and encode all parts again"
            ) from error
        if marker != self.marker(part):
            raise DataError(
                f"{marker_path}: the part was encoded by another model or from other data; remove {self.folder} and "
                "encode all parts again"
            )
        return path.is_file() and self.file_sha256(part) == digest

    def file_sha256(self, part: Part) -> str:
        """Return the SHA-256 of the file of a part."""
        digest, path = hashlib.sha256(), self.path(part)
        with (
            path.open("rb") as file,
            pass_bar(f"hash part {part.number} of {part.total}", path.stat().st_size, "bytes") as bar,
        ):
            while block := file.read(_HASH_BLOCK_BYTES):
                digest.update(block)
                bar.update(len(block))
        return digest.hexdigest()

    def encode(self, part: Part, batch_size: int) -> None:
        """Write the file of a part, then its marker. NaN and infinity are only found when the parts are joined.

        Raises:
            DataError: the data changed since they were opened, a class is out of range, a file cannot be written, or
                memory runs out.
        """
        rows, progress_name = self.rows(part), f"encode part {part.number} of {part.total}"
        if self.tokenizer.spec.classes:
            self.tokenizer.scan(self.source)  # an embedding cannot look up a class that is out of range
        with (
            convert_out_of_memory(DataError, "lower --batch-size"),
            atomic_write_array(self.path(part), (len(rows), *self.shape[1:]), self.dtype) as array,
        ):
            for start, indices in iter_indices(self.tokenizer, self.samples, rows, batch_size, progress_name):
                array[start - rows.start :][: len(indices)] = indices
        self.source.check_unchanged()
        path = self.path(part)
        write_json(path.with_suffix(".json"), {**self.marker(part), "sha256": self.file_sha256(part)})

    def join(self, data: str | None, key: str | None) -> Manifest | None:
        """Write the index file from all parts, and remove the parts.

        Returns:
            The manifest; None if another worker joins the parts or has joined them.

        Raises:
            DataError: a value of the data is NaN or infinite, or the index file cannot be written.
        """
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            # After a join by another worker, the folder does not exist any more.
            if not try_lock(handle) or not self.folder.exists():
                return None
            with open_encode_job(self.tokenizer, self.out, data, key) as job:
                with atomic_write_indices(self.out, self.shape, self.dtype.name, job.manifest) as array:
                    for part in self.parts():
                        rows = self.rows(part)
                        array[rows.start : rows.stop] = map_npy(self.path(part))
                manifest = job.manifest()
            shutil.rmtree(self.folder)
            return manifest
        finally:
            os.close(handle)
