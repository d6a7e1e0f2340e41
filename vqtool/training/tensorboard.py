"""TensorBoard files of a run: the event file, and the codes for the embedding projector.

PyTorch's `SummaryWriter` is not used. It writes in a thread, which ends with a traceback when the disk is full. It also
starts a new file when a run is resumed, and keeps the events of steps that the resumed run repeats.

Shapes: K codes, D code dimension.
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
from google.protobuf.text_format import MessageToString
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.summary.writer.record_writer import RecordWriter, masked_crc32c
from torch import Tensor
from torch.utils.tensorboard import summary

from vqtool.models.autoencoder import Autoencoder
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.files import atomic_write, convert_write_errors
from vqtool.runtime.progress import pass_bar

_HISTOGRAM_BINS = 64
# A record is: its length and a checksum of the length, the event, a checksum of the event (TFRecord format).
_RECORD_HEADER = struct.Struct("<QI")
_RECORD_FOOTER_BYTES = 4
# More points make the projector too slow in a browser.
_MAX_PROJECTOR_CODES = 10_000


class TensorBoardLogger:
    """Writes the one event file of a run. An event file of an earlier process is replaced by a copy that continues.

    Args:
        run: run directory.
        last_step: number of completed steps. Events of later steps are not copied.
        log: called with one line for the user if events are lost in a damaged file.

    Raises:
        DataError: the file cannot be written. All methods that write raise it too.
    """

    def __init__(self, run: RunDirectory, last_step: int, log: Callable[[str], None] = lambda line: None) -> None:
        old_paths = run.event_files()
        self._path = run.folder / f"events.out.tfevents.{_later_timestamp(old_paths):010d}.{socket.gethostname()}"
        with atomic_write(self._path) as temp, temp.open("wb") as file:
            records = RecordWriter(file)
            records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
            # Makes a running TensorBoard drop the events that it has read; they follow again.
            session_start = SessionLog(status=SessionLog.START)
            records.write(Event(wall_time=time.time(), session_log=session_start).SerializeToString())
            for path in old_paths[-1:]:
                for event in _events_until(path, last_step, log):
                    records.write(event)
        for path in old_paths:
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
        """Write values by tag, after `step` steps."""
        for tag, value in values.items():
            self._write(step, summary.scalar(tag, value))
        with convert_write_errors(self._path):
            self._records.flush()

    def histogram(self, step: int, tag: str, values: Tensor) -> None:
        """Write a histogram with 64 bins of values (n,), which must be on the CPU."""
        self._write(step, summary.histogram(tag, np.asarray(values), bins=_HISTOGRAM_BINS))

    def image(self, step: int, tag: str, image: Tensor) -> None:
        """Write an image (3, H, W) in [0, 1]."""
        self._write(step, summary.image(tag, image, dataformats="CHW"))

    def sync(self) -> None:
        """Flush the file to disk (fsync)."""
        with convert_write_errors(self._path):
            self._records.flush()
            os.fsync(self._file.fileno())

    def _write(self, step: int, content: Summary) -> None:
        event = Event(wall_time=time.time(), step=step, summary=content)
        with convert_write_errors(self._path):
            self._records.write(event.SerializeToString())


def _later_timestamp(paths: list[Path]) -> int:
    """Return the time in whole seconds, or one second after the latest in the file names, if that is later.

    TensorBoard reads files in this order.
    """
    times = [int(name) for path in paths if re.fullmatch("[0-9]{1,12}", name := path.name.split(".")[3])]
    return max([int(time.time()), *(seconds + 1 for seconds in times)])


def _events_until(path: Path, last_step: int, log: Callable[[str], None]) -> Iterator[bytes]:
    """Yield the serialised summary events of a file up to `last_step`; log a line if the file is damaged.

    Nothing after a damaged record can be read.
    """
    bytes_read = 0
    for record in RawEventFileLoader(str(path)).Load():
        bytes_read += _RECORD_HEADER.size + len(record) + _RECORD_FOOTER_BYTES
        try:
            event = Event.FromString(record)
        except DecodeError:
            continue
        if event.HasField("summary") and event.step <= last_step:
            yield record
    if _is_damaged(path, bytes_read):
        log(
            f"{path}: damaged after {bytes_read:,} bytes; later events are missing from TensorBoard; metrics.jsonl has "
            "them"
        )


def _is_damaged(path: Path, bytes_read: int) -> bool:
    """Return whether the file is damaged after its first `bytes_read` bytes, which are intact records.

    One truncated record at the end, which a killed process leaves, is not damage.
    """
    with path.open("rb") as file:
        file.seek(bytes_read)
        header = file.read(_RECORD_HEADER.size)
    if len(header) < _RECORD_HEADER.size:
        return False
    length, checksum = _RECORD_HEADER.unpack(header)
    record_bytes = _RECORD_HEADER.size + length + _RECORD_FOOTER_BYTES
    return checksum != masked_crc32c(header[:8]) or path.stat().st_size - bytes_read >= record_bytes


def write_projector(run: RunDirectory, model: Autoencoder, max_codes: int = _MAX_PROJECTOR_CODES) -> None:
    """Write the learned codes of the run's best model for TensorBoard's embedding projector.

    Each code has its hits in the validation of that model as metadata. Without learned codes nothing is written.

    Args:
        run: run directory.
        model: model of the run; the best weights are loaded into it.
        max_codes: maximum number of codes per level. If a level has more, only those with the most hits are written.

    Raises:
        CheckpointError: the best model is damaged.
        DataError: a file cannot be written.
        Stopped: a stop signal was received.
    """
    saved, _ = read_model(run.model)
    model.load_state_dict(saved.state)
    levels = enumerate(zip(model.quantizer.learned_codes, saved.counts, strict=True))
    learned = [(level, codes.detach().cpu(), hits) for level, (codes, hits) in levels if codes is not None]
    if not learned:
        return
    config = ProjectorConfig()
    with convert_write_errors(run.projector):
        run.projector.mkdir(exist_ok=True)
    with pass_bar("write codes", len(learned), "levels") as bar:
        for level, codes, hits in learned:
            shown = hits.argsort(descending=True, stable=True)[:max_codes].sort().values
            codes_path, hits_path = (run.projector / f"level_{level}_{name}.tsv" for name in ("codes", "hits"))
            with atomic_write(codes_path) as temp:
                np.savetxt(temp, codes[shown].float().numpy(), fmt="%.6g", delimiter="\t")
            with atomic_write(hits_path) as temp:
                rows = [f"{code}\t{count}" for code, count in zip(shown.tolist(), hits[shown].tolist(), strict=True)]
                temp.write_text("\n".join(["code\thits", *rows]) + "\n", encoding="utf-8")
            embedding = config.embeddings.add()
            embedding.tensor_name = f"codebook, level {level}"
            embedding.tensor_path = str(codes_path.relative_to(run.folder))
            embedding.metadata_path = str(hits_path.relative_to(run.folder))
            bar.update()
    with atomic_write(run.projector_config) as temp:
        temp.write_text(MessageToString(config), encoding="utf-8")
