"""TensorBoard's event file: one at a time, whose events are those of the run as it stands.

TensorBoard's own writer works in a thread of its own, which a full disk ends with a traceback; and it leaves a file for
each process that had a part in the run, with steps that were lost.
"""

import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter, masked_crc32c
from torch import Tensor
from torch.utils.tensorboard import summary

from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.files import atomic_write, convert_write_errors

# Of a histogram of hits.
_BINS = 64
# Before a record stand its length and a checksum of that; after it, one of its own.
_HEADER = struct.Struct("<QI")
_FOOTER = 4


class TensorBoardLogger:
    """Writes events in step with the run.

    Args:
        start: steps already done; events of later ones are dropped.
        say: called with a line for the user where a damaged file costs events.

    Raises:
        DataError: the file cannot be written; so from all that writes.
    """

    def __init__(self, run: RunDirectory, start: int, say: Callable[[str], None] = lambda line: None) -> None:
        before = run.event_files()
        self._path = run.folder / f"events.out.tfevents.{_later(before):010d}.{socket.gethostname()}"
        with atomic_write(self._path) as part, part.open("wb") as file:
            records = RecordWriter(file)
            records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
            # To one who looks on, all that he saw so far is void: it comes again below.
            anew = SessionLog(status=SessionLog.START)
            records.write(Event(wall_time=time.time(), session_log=anew).SerializeToString())
            for path in before[-1:]:
                for event in _kept(path, start, say):
                    records.write(event)
        for path in before:
            path.unlink()
        with convert_write_errors(self._path):
            self._file = self._path.open("ab")
        self._records = RecordWriter(self._file)

    def __enter__(self) -> "TensorBoardLogger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with convert_write_errors(self._path):
            self._file.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Values by their tags, after `step` steps."""
        for tag, value in values.items():
            self._add(step, summary.scalar(tag, value))
        with convert_write_errors(self._path):
            self._records.flush()

    def histogram(self, step: int, tag: str, values: Tensor) -> None:
        """Of values (n,)."""
        self._add(step, summary.histogram(tag, np.asarray(values), bins=_BINS))

    def image(self, step: int, tag: str, picture: Tensor) -> None:
        """(3, H, W) in [0, 1]."""
        self._add(step, summary.image(tag, picture, dataformats="CHW"))

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        with convert_write_errors(self._path):
            self._records.flush()
            os.fsync(self._file.fileno())

    def _add(self, step: int, what: Summary) -> None:
        event = Event(wall_time=time.time(), step=step, summary=what)
        with convert_write_errors(self._path):
            self._records.write(event.SerializeToString())


def _later(before: list[Path]) -> int:
    """The time in seconds, later than those in the names of event files: TensorBoard reads them in this order."""
    times = [int(name) for path in before if re.fullmatch("[0-9]{1,12}", name := path.name.split(".")[3])]
    return max([int(time.time()), *(seconds + 1 for seconds in times)])


def _kept(path: Path, step: int, say: Callable[[str], None]) -> Iterator[bytes]:
    """The events of a file up to a step; those after a record that was cut short, or is damaged, are lost."""
    read = 0
    for record in RawEventFileLoader(str(path)).Load():
        read += _HEADER.size + len(record) + _FOOTER
        try:
            event = Event.FromString(record)
        except DecodeError:
            continue
        if event.HasField("summary") and event.step <= step:
            yield record
    if _is_damaged(path, read):
        say(f"{path}: damaged after {read:,} bytes; later events are missing from TensorBoard; metrics.jsonl has them")


def _is_damaged(path: Path, read: int) -> bool:
    """Whether more follows on so many bytes than a record that was cut short, as one is when its process is killed."""
    with path.open("rb") as file:
        file.seek(read)
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return False
    length, check = _HEADER.unpack(header)
    return check != masked_crc32c(header[:8]) or path.stat().st_size - read >= _HEADER.size + length + _FOOTER
