"""Malicious tensor files and configs: pickles with side effects, decompression bombs, absurd sizes, deep nesting."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

HUGE = 1 << 50


class Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.target), "w"))


def npy(shape: str, body: bytes = b"", descr: str = "<f4") -> bytes:
    """Return a .npy file whose header declares this shape and `descr`, followed by `body`."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def zip_bomb(path: Path, megabytes: int, declared: int | None = None) -> None:
    """Write an archive of an array of zeros, about a thousandth of its size.

    Its directory declares `declared` bytes; None: the true size.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    header = npy(f"({megabytes << 10}, 256)")
    compressed_header = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    body = compressed_header + block * megabytes + packer.flush()
    size = declared if declared is not None else len(header) + (megabytes << 20)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", body)
    content = path.read_bytes()
    # Set method "deflated" and the declared size in the directory entry and in the local header.
    for mark, method in ((b"PK\x01\x02", 10), (b"PK\x03\x04", 8)):
        offset = content.rindex(mark) if mark == b"PK\x01\x02" else content.index(mark)
        content = content[: offset + method] + struct.pack("<H", 8) + content[offset + method + 2 :]
        content = content[: offset + method + 14] + struct.pack("<I", size) + content[offset + method + 18 :]
    path.write_bytes(content)


def npz(path: Path, member: bytes, name: str = "x.npy", declared: int | None = None) -> None:
    """Write an archive of one member; its directory declares `declared` bytes, or the true size."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, member)
        if declared is not None:
            archive.infolist()[0].file_size = declared


def _expanded_view(path: Path) -> None:
    torch.save(torch.zeros(1).expand(HUGE, 4), path)


def _long_header(path: Path, length: int) -> None:
    with path.open("wb") as file:
        file.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", length))
        file.truncate(length + 100)


def _deep_safetensors(path: Path) -> None:
    header = b'{"x":' * 100_000
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def _many_arrays(path: Path) -> None:
    offsets = {f"x{i}": [4 * i, 4 * i + 4] for i in range(20_000)}
    arrays = {name: {"dtype": "F32", "shape": [1, 1], "data_offsets": span} for name, span in offsets.items()}
    header = json.dumps(arrays)
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(80_000))


def _object_array(path: Path) -> None:
    trap = np.array([[Trap(path.parent / "sprung")]], dtype=object)
    np.save(path, trap, allow_pickle=True) if path.suffix == ".npy" else np.savez(path, x=trap)


def _huge_declared_size(path: Path) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, x=np.zeros((100, 100), dtype=np.float32))
    path.write_bytes(file.getvalue().replace(struct.pack("<I", 40_128), b"\xfe\xff\xff\xff"))


# By file name: function that writes the file, and text of the error message.
TENSOR_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "trap.pt": (lambda path: torch.save(Trap(path.parent / "sprung"), path), "pickled objects"),
    "trap-beside.pt": (
        lambda path: torch.save({"x": torch.ones(1), "y": Trap(path.parent / "sprung")}, path),
        "pickled objects",
    ),
    "raw.pt": (
        lambda path: path.write_bytes(pickle.dumps(Trap(path.parent / "sprung"))),
        "zip format of torch.save",
    ),
    "expanded-view.pt": (_expanded_view, "18,014,398,509,481,984 bytes ... 4 stored"),
    "meta.pt": (
        lambda path: torch.save(torch.zeros(HUGE, 4, device="meta"), path),
        "device meta",
    ),
    "objects.npy": (_object_array, "dtype object"),
    "objects.npz": (_object_array, "dtype object"),
    "petabytes.npy": (lambda path: path.write_bytes(npy(f"({HUGE}, 4)", bytes(64))), "damaged"),
    "long-header.npy": (lambda path: _long_header(path, (1 << 32) - 1), "4,294,967,295 bytes"),
    "petabytes.npz": (lambda path: npz(path, npy(f"({HUGE}, 4)", bytes(64))), "header declares"),
    "petabytes-by-directory.npz": (lambda path: npz(path, npy(f"({HUGE}, 4)"), declared=HUGE * 32), "GB of memory"),
    "declared-size.npz": (_huge_declared_size, "declared-size.npz"),
    "bomb.npz": (lambda path: zip_bomb(path, 2048), "GB of memory"),
    "bomb-that-declares-little.npz": (lambda path: zip_bomb(path, 2048, declared=200), "Bad CRC-32"),
    "petabytes.safetensors": (lambda path: path.write_bytes(struct.pack("<Q", HUGE) + b"{}"), "damaged"),
    "deep.safetensors": (_deep_safetensors, "damaged"),
    "many.safetensors": (_many_arrays, "and 19,900 more"),
    "loop.npy": (lambda path: path.symlink_to(path), "symbolic link"),
    "device.npy": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "pipe.npy": (os.mkfifo, "not a regular file"),
    f"{'long' * 100}.npy": (lambda path: None, "File name too long"),
}  # fmt: skip


_NUM_LINES = 20_000
# By description: config that tries to run code or to exhaust time or memory, and text of the error message.
CONFIGS: dict[str, tuple[bytes, str]] = {
    "tag": (b"data: !!python/object/apply:os.mkdir [sprung]\n", "/apply:os.mkdir"),
    "module": (b"data: !!python/module:os\nseed: !!python/name:os.system x\n", "is not supported"),
    "laughs": (b"a: &a [x]\n" + b"".join(b"b%d: &b%d [*a, *a]\n" % (i, i) for i in range(30)), "aliases"),
    "itself": (b"data: &a {kind: *a}\n", "aliases"),
    "anchors": (b"".join(b"a%d: &a%d 1\n" % (i, i) for i in range(_NUM_LINES)), "first 100"),
    "nested anchors": (b"".join(b" " * i + b"a: &a%d\n" % i for i in range(1000)), "nested too deeply"),
    "brackets": (b"[" * 1_000_000, "nested too deeply"),
    "braces": (b"{a: " * 250_000, "nested too deeply"),
    "the same key": (b"a: 1\n" * _NUM_LINES, "first 100"),
    "tags": (b"".join(b"a%d: !t 1\n" % i for i in range(_NUM_LINES)), "first 100"),
    "a long key": (b"? " + b"y" * 900_000 + b"\n: 1\n", "unknown key"),
    "a long number": (b"seed: " + b"9" * 900_000, "expected an integer"),
    "escapes": (b'"\\e[2J\\a": 1\n"a\\nb": 2\n"\\u202e": 3\n', r'"\x1b[2J\x07": unknown key'),
}  # fmt: skip
