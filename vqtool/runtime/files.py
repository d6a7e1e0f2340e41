"""Atomic file writes (temporary file, fsync, rename), JSON files, format versions and file locks."""

import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vqtool.errors import DataError, VqtoolError

# File systems allow 255 bytes. For a file name longer than this, `temp_path` uses the SHA-256 of the name.
_MAX_NAME_BYTES = 200
# Characters of an exception's text that a message shows.
_MAX_REASON_CHARS = 120


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of an empty temporary file to write; on success rename it to `path`, on failure remove it.

    `path` is therefore always the old or the new file, complete. The body must write to the temporary file and not
    replace it. The temporary file of a killed process is overwritten.

    Raises:
        DataError: the directory is missing or not writable, the disk is full, or another process is writing this file.
            Any OSError of the body is converted, too.
    """
    with convert_write_errors(path):
        temp = temp_path(path)
        fd = _open_temp(temp, path)
        try:
            yield temp
            os.fsync(fd)
            os.fchmod(fd, 0o666 & ~_umask())  # the temporary file is private, the result has the usual mode
            os.replace(temp, path)
            fsync_path(path.parent)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)


@contextmanager
def convert_write_errors(path: Path) -> Iterator[None]:
    """Convert an OSError of the body to a DataError that names the file `path`.

    Raises:
        DataError: for example the disk is full, or the directory is missing or not writable.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: {_write_error_reason(path, error)}") from error


def _write_error_reason(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
        return f"directory {path.parent} does not exist; create it"
    if isinstance(error, IsADirectoryError):
        return "is a directory; name a file"
    counts = re.fullmatch(r"(\d+) requested and (\d+) written", str(error))  # NumPy's message when the disk is full
    if counts:
        return f"cannot be written: only {counts[2]} of {counts[1]} values written; check the free disk space"
    return f"cannot be written: {error.strerror or error}"


def read_error_reason(error: OSError) -> str:
    """Return why a file cannot be read, such as "does not exist", for a message that begins with its path."""
    known = {
        errno.ENOENT: "does not exist",
        errno.ENOTDIR: "does not exist",
        errno.EISDIR: "is a directory; name a file",
        errno.ELOOP: "is a symbolic link to itself",
    }
    return known.get(error.errno or 0, f"cannot be read: {error.strerror or error}")


def temp_path(path: Path) -> Path:
    """Return the path of the temporary file of `atomic_write`: .NAME.part beside the file; a long NAME is hashed."""
    name = path.name
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(f".{name}.part")


def write_json(path: Path, value: Any) -> None:
    """Write a value as `to_json` formats it, atomically.

    Raises:
        ValueError: the value contains NaN or infinity.
        DataError: the file cannot be written.
    """
    with atomic_write(path) as temp:
        temp.write_text(to_json(value), encoding="utf-8")


def read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: the file is missing, is not a regular file (a device can be endless), has more than `max_bytes` bytes,
            or cannot be read. `error_reason` gives its text without a path.
        ValueError: the content is not a JSON object; says in a few words what is wrong.
    """
    if not path.is_file():
        raise OSError("not a regular file")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(f"larger than {max_bytes:,} bytes")
    return parse_json(content)


def parse_json(content: str | bytes) -> dict[str, Any]:
    """Parse a JSON object. Like `json.loads`, accept NaN and Infinity as numbers.

    Raises:
        ValueError: the content is not a JSON object; says in a few words what is wrong.
    """
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON (line {error.lineno}, column {error.colno})") from error
    except ValueError as error:
        raise ValueError("a number has too many digits") from error
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    return value


def error_reason(error: Exception) -> str:
    """Return the text of an exception as the reason why a file is damaged: one short line, without a path."""
    if isinstance(error, KeyError):
        return f"{error.args[0]}: missing"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.split("\n")[0][:_MAX_REASON_CHARS] or type(error).__name__


def check_format_version(
    path: Path, version: Any, supported: int, kind: str, remedy: str, error_type: type[VqtoolError]
) -> None:
    """Check the format version of a file, before any other content, whose meaning depends on it.

    Args:
        version: `format_version` as stored in the file; None if it has none.
        supported: the version that this version of vqtool reads.
        kind: what the file should be, such as "manifest".
        remedy: how to get a readable file, such as "encode the data again".

    Raises:
        error_type: `version` is None or differs from `supported`.
    """
    if version is None:
        raise error_type(
            f"{path}: format_version: missing (not a {kind}, or written by an earlier version of vqtool); {remedy}"
        )
    if version != supported:
        raise error_type(f"{path}: format_version: {unsupported_version_message(version, supported, remedy)}")


def unsupported_version_message(version: Any, supported: int, remedy: str) -> str:
    """Return the message for a version other than `supported`, without file and key (see `check_format_version`)."""
    return (
        f"{json.dumps(version, default=str):.40} is not supported; this version of vqtool reads {supported}; "
        f"update vqtool, or {remedy}"
    )


def to_json(value: Any) -> str:
    """Format a value as indented JSON with a final line break. Keys keep their order.

    Raises:
        ValueError: the value contains NaN or infinity.
    """
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def preallocate(path: Path) -> None:
    """Reserve disk space for the whole of a sparse, non-empty file, without changing its size.

    Without reserved space, writing to a memory map of the file raises SIGBUS if the disk is full, which kills the
    process. On macOS this function has no effect.

    Raises:
        OSError: the disk is full.
    """
    with path.open("r+b") as file, suppress(AttributeError):  # macOS has no posix_fallocate
        os.posix_fallocate(file.fileno(), 0, max(1, path.stat().st_size))


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool:
    """Lock an open file or directory exclusively, and return True; return False at once if it is locked already.

    The lock ends when the file descriptor `fd` is closed, or when the process ends. On a file system without locks
    return True.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _open_temp(temp: Path, path: Path) -> int:
    """Create or open the temporary file of `path`, lock and empty it; return its file descriptor.

    Raises:
        DataError: another process holds the lock. The lock of a killed process is free, so its file is reused.
    """
    while True:
        fd = os.open(temp, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if not try_lock(fd):
            os.close(fd)
            raise DataError(f"{path}: another process is writing this file")
        # Between opening and locking, the previous holder may have renamed the file: then try again.
        if temp.exists() and os.path.samestat(os.fstat(fd), temp.stat()):
            os.ftruncate(fd, 0)
            return fd
        os.close(fd)


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
