"""Files that are whole or not there: written beside, synced, renamed."""

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

# A name may have 255 bytes; from here on, a part's name is made of a digest.
_LONGEST_NAME = 200
# Characters of the text of an exception that a message shows.
_LONGEST_REASON = 120


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield an empty file beside `path` to be written; on success it takes that name, on any failure it is removed.

    What a killed process left of it is written over, and never has the final name.

    Raises:
        DataError: the folder cannot be written to, the disk is full, or another process is writing this file.
    """
    with convert_write_errors(path):
        part = temp_path(path)
        handle = _claim(part, path)
        try:
            yield part
            os.fsync(handle)
            os.fchmod(handle, 0o666 & ~_umask())
            os.replace(part, path)
            fsync_path(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)


@contextmanager
def convert_write_errors(path: Path) -> Iterator[None]:
    """Convert an OSError of the body to a DataError that names the file `path`.

    Raises:
        DataError: there is no room, no permission, or no such folder.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: {_unwritable(path, error)}") from error


def _unwritable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
        return f"directory {path.parent} does not exist; create it"
    if isinstance(error, IsADirectoryError):
        return "is a directory; name a file"
    counts = re.fullmatch(r"(\d+) requested and (\d+) written", str(error))  # NumPy, on a full disk
    if counts:
        return f"cannot be written: only {counts[2]} of {counts[1]} values written; check the free disk space"
    return f"cannot be written: {error.strerror or error}"


def read_error_reason(error: OSError) -> str:
    """Why a file cannot be read."""
    known = {
        errno.ENOENT: "does not exist",
        errno.ENOTDIR: "does not exist",
        errno.EISDIR: "is a directory; name a file",
        errno.ELOOP: "is a symbolic link to itself",
    }
    return known.get(error.errno or 0, f"cannot be read: {error.strerror or error}")


def temp_path(path: Path) -> Path:
    """What a file is called while it is written."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:  # any bytes may be a name
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(f".{name}.part")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whose bytes depend on the value alone; NaN is refused."""
    with atomic_write(path) as part:
        part.write_text(to_json(value), encoding="utf-8")


def read_json(path: Path, most: int) -> dict[str, Any]:
    """Return the JSON object in a file of at most `most` bytes.

    Raises:
        OSError: the file is larger, missing, or not a regular file: a device can be endless. The text does not name
            the path.
        ValueError: the content is not a JSON object; says what is wrong, in a few words.
    """
    if not path.is_file():
        raise OSError("not a regular file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"larger than {most:,} bytes")
    return parse_json(content)


def parse_json(content: str | bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: says what is wrong, in a few words.
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
    """What an exception says of a damaged file: one line, without a path, and a key in words."""
    if isinstance(error, KeyError):
        return f"{error.args[0]}: missing"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.split("\n")[0][:_LONGEST_REASON] or type(error).__name__


def check_format_version(
    path: Path, found: Any, supported: int, kind: str, again: str, error: type[VqtoolError]
) -> None:
    """Refuse a file in a format that this version of vqtool cannot read.

    Called before any other check of the content, whose meaning depends on the version.

    Args:
        found: `format_version` as stored in the file; None if it has none.
        kind: what the file should be, such as "manifest".
        again: how to write the file again.
        error: the exception to raise.
    """
    if found is None:
        raise error(
            f"{path}: format_version: missing (not a {kind}, or written by an earlier version of vqtool); {again}"
        )
    if found != supported:
        raise error(f"{path}: format_version: {unsupported_version(found, supported, again)}")


def unsupported_version(found: Any, supported: int, again: str) -> str:
    """What is wrong with a version of a format that this version of vqtool cannot read."""
    return (
        f"{json.dumps(found, default=str):.40} is not supported; this version of vqtool reads {supported}; "
        f"update vqtool, or {again}"
    )


def to_json(value: Any) -> str:
    """Text that depends on the value alone; NaN is refused."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def preallocate(path: Path) -> None:
    """Claim the room on the disk for all of a file as long as it is: a mapped one that finds none kills the process."""
    with path.open("r+b") as file, suppress(AttributeError):  # Not every system has this.
        os.posix_fallocate(file.fileno(), 0, max(1, path.stat().st_size))


def fsync_path(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(handle: int) -> bool:
    """Lock an open file or folder until it is closed; whether no other process has it locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # A file system without locks.
    return True


def _claim(part: Path, path: Path) -> int:
    """Open and lock a part, emptied: what a killed process left is written over, what a living one writes is not."""
    while True:
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if not try_lock(handle):
            os.close(handle)
            raise DataError(f"{path}: another process is writing this file")
        # Between opening and locking, its writer may have been done with it, and have renamed it.
        if part.exists() and os.path.samestat(os.fstat(handle), part.stat()):
            os.ftruncate(handle, 0)
            return handle
        os.close(handle)


def _umask() -> int:
    # The mask can only be read by setting it; a part is private, and a result should be as readable as any.
    mask = os.umask(0)
    os.umask(mask)
    return mask
