"""Mutants of valid tensor files, with random damage and false headers.

A mutant is a function of a seed and a number, so each one can be reproduced; only the times in .npz and .pt archives
differ.
"""

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from random import Random

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

SUFFIXES = [".npy", ".npz", ".safetensors", ".pt"]
SHAPES = [(24, 8), (12, 3, 20), (10, 3, 6, 6), (16, 5, 5), (2, 1)]
DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    torch.uint8,
    torch.int16,
    torch.int64,
]


def mutant(seed: int, number: int) -> tuple[str, bytes]:
    """Return suffix and content of a mutant: a valid file with one to three changes.

    Consecutive numbers cycle through the suffixes.
    """
    random = Random(f"{seed}/{number}")
    suffix = SUFFIXES[number % len(SUFFIXES)]
    content = _valid(suffix, random.randrange(len(SHAPES)), random.randrange(len(DTYPES)), random.randrange(4))
    for _ in range(random.choice([1, 1, 2, 3])):
        content = random.choice([*_MUTATIONS, *_FORMAT_MUTATIONS[suffix]])(content, random)
    return suffix, content


@cache
def _valid(suffix: str, shape: int, dtype: int, variant: int) -> bytes:
    """Return the content of a valid file with the array of `SHAPES[shape]` and `DTYPES[dtype]`.

    Variant 1 has a second array, except in .npy. Variant 2 is transposed in .pt, in Fortran order in .npy, and
    compressed in .npz. All other files have one contiguous array.
    """
    values = torch.rand(SHAPES[shape], generator=torch.Generator().manual_seed(0)) * 20
    tensor = values.to(DTYPES[dtype])
    tensors = {"x": tensor, "y": torch.ones(3, 2)} if variant == 1 else {"x": tensor}
    file = io.BytesIO()
    match suffix:
        case ".safetensors":
            return safetensors.torch.save(tensors)
        case ".pt":
            single = tensor.transpose(0, 1) if variant == 2 else tensor
            torch.save(single if variant != 1 else tensors, file)
        case ".npy":
            np.save(file, np.asfortranarray(_array(tensor)) if variant == 2 else _array(tensor))
        case _:
            write: Callable[..., None] = np.savez_compressed if variant == 2 else np.savez
            write(file, **{name: _array(tensor) for name, tensor in tensors.items()})
    return file.getvalue()


def _array(tensor: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = (
        tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    ).numpy()
    return array


def _flip(content: bytes, random: Random) -> bytes:
    """Flip bits, more often near the ends, where headers and directories are."""
    changed = bytearray(content or b"a")
    for _ in range(random.choice([1, 1, 2, 8])):
        ends = [random.randrange(min(200, len(changed))), -1 - random.randrange(min(200, len(changed)))]
        changed[random.choice([*ends, random.randrange(len(changed))])] ^= 1 << random.randrange(8)
    return bytes(changed)


def _truncate(content: bytes, random: Random) -> bytes:
    return content[: random.choice([random.randrange(len(content) + 1), max(0, len(content) - random.randint(1, 64))])]


def _extend(content: bytes, random: Random) -> bytes:
    return content + random.randbytes(random.choice([1, 8, 100])) * random.choice([1, 1, 1000])


def _cut(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content) + 1)
    return content[:start] + content[start + random.randint(1, 64) :]


def _overwrite(content: bytes, random: Random) -> bytes:
    """Overwrite bytes with NaN, infinity, limits of integers or zeros."""
    pattern = random.choice(_PATTERNS) * random.choice([1, 4, 32])
    start = random.randrange(len(content) + 1)
    return content[:start] + pattern + content[start + len(pattern) :]


def _number(content: bytes, random: Random) -> bytes:
    """Replace a number in a header; in .npy and .safetensors, shapes and offsets are text."""
    numbers = list(re.finditer(rb"\d+", content[:4000]))
    if not numbers:
        return content
    match = random.choice(numbers)
    return content[: match.start()] + random.choice(_HEADER_NUMBERS) + content[match.end() :]


def _word(content: bytes, random: Random) -> bytes:
    """Replace a word of a header: a dtype, an order or a key."""
    old, new = random.choice(_WORDS), random.choice(_WORDS)
    return content.replace(old, new, random.choice([1, -1]))


def _length(content: bytes, random: Random) -> bytes:
    """Replace the length of a header: two bytes in .npy, otherwise the first eight bytes, as in .safetensors."""
    start, form = (0, "<Q") if content[:1] != b"\x93" else (8, "<H")
    value = random.choice([0, 1, 2, 100, 1000, 65535, 2**31, 2**53, 2**63, 2**64 - 1]) % 2 ** (
        8 * struct.calcsize(form)
    )
    return content[:start] + struct.pack(form, value) + content[start + struct.calcsize(form) :]


def _directory(content: bytes, random: Random) -> bytes:
    """Replace a field of a zip's central directory or of a local header: size, offset, method or flags."""
    offsets = [match.start() for match in re.finditer(rb"PK\x01\x02|PK\x03\x04|PK\x05\x06", content)]
    if not offsets:
        return content
    at = random.choice(offsets) + random.randint(4, 46)
    new = random.choice(
        [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x01\0", b"\x08\0", b"\xff\xff\xff\x7f", random.randbytes(2)]
    )
    return content[:at] + new + content[at + len(new) :]


def _repack(content: bytes, random: Random) -> bytes:
    """Repack a zip as a valid archive with changed names, contents and order of members."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as old:
            members = {name: old.read(name) for name in old.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError, OSError, zlib.error):
        return content
    name = random.choice([*members, "x"])
    member = members.pop(name, b"")
    changed = random.choice([_flip, _truncate, _cut, _number, _word, _overwrite])(member or b"a", random)
    members[random.choice([name, name, name, *_NAMES])] = changed
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as new:
        for name, body in members.items():
            new.writestr(name, body)
    return file.getvalue()


_PATTERNS = [
    *(b"\0", b"\xff", b"\x80", b"\x7f", struct.pack("<f", float("nan")), struct.pack("<f", float("inf"))),
    *(struct.pack("<d", float("nan")), struct.pack("<d", 1e300), struct.pack("<q", -(2**63)), struct.pack("<q", 2**40)),
]
_HEADER_NUMBERS = [
    *(b"0", b"1", b"-1", b"2", b"7", b"24", b"1000000", b"4294967296", b"9223372036854775807", b"18446744073709551616"),
    *(b"9" * 400, b"1e3", b"true", b"", b"1, 1", b"0x10", b"1.5"),
]
_WORDS = [
    *(b"<f4", b"<f8", b"<f2", b"|b1", b"|u1", b"<i2", b"<i8", b">i8", b"|O", b"|S8", b"<U2", b"<c8", b"|V4", b"<M8[s]"),
    *(b"False", b"True", b"shape", b"descr", b"F32", b"F16", b"BF16", b"I64", b"U8", b"BOOL", b"F8_E4M3", b"dtype"),
    *(
        b"data_offsets",
        b"__metadata__",
        b"FloatStorage",
        b"LongStorage",
        b"_rebuild_tensor_v2",
        b"torch",
        b"OrderedDict",
    ),
    *(b"(", b")", b"[", b"]", b"{", b"}", b":", b",", b'"', b"\n", b"x", b"y", b"storage", b"cpu", b"cuda"),
]
_NAMES = [
    "../../x.npy",
    "/tmp/x.npy",
    "\x1b[31m.npy",
    "a\nb.npy",
    ".npy",
    "x.npy",
    "y.npy",
    "archive/data.pkl",
    "é" * 200,
]

Mutation = Callable[[bytes, Random], bytes]
# For all formats, and for each format; one is drawn uniformly, so a mutation listed several times is more likely.
_MUTATIONS: list[Mutation] = [_flip, _truncate, _extend, _cut, _overwrite]
_FORMAT_MUTATIONS: dict[str, list[Mutation]] = {
    ".npy": [_number, _number, _word, _word, _length, _overwrite],
    ".npz": [_repack, _repack, _repack, _directory, _directory, _number, _word],
    ".safetensors": [_number, _number, _number, _word, _word, _length],
    ".pt": [_repack, _repack, _repack, _directory, _directory, _word],
}
