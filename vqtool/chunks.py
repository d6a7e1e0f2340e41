"""Arithmetic in chunks of one fixed shape, aligned to row numbers, the last one padded.

A row's result then depends neither on how many rows are asked for at once nor on its neighbours: matrix products of
another shape may round differently, and a vector between two codes would change sides.
"""

import math
from collections.abc import Iterator

from torch import Tensor

from vqtool.autoencoder import Autoencoder
from vqtool.nets import Size

# The most positions, and the most input numbers, in one chunk.
_POSITIONS = 1 << 12
_NUMBERS = 1 << 18
# The most chunks that are read together: with more, large samples fill memory, and threads end far apart.
_TOGETHER = 4


def chunk_rows(model: Autoencoder, size: Size) -> int:
    """Rows of one chunk for samples of `size`: a power of two, given by the model and the size alone."""
    positions = math.prod(model.grid(size))
    numbers = model.spec.channels * math.prod(size)
    return 1 << max(0, int(math.log2(min(_POSITIONS / positions, _NUMBERS / numbers))))


def batch_rows(model: Autoencoder, size: Size, batch_size: int) -> int:
    """Rows to read at a time: `batch_size`, rounded up to whole chunks, of which there are few at the most."""
    chunk = chunk_rows(model, size)
    return chunk * min(-(-batch_size // chunk), _TOGETHER)


def chunks(x: Tensor, rows: int) -> Iterator[tuple[Tensor, int]]:
    """Cut (n, ...) into pieces of `rows`, the last one padded with zeros; with each, how many of its rows are real."""
    for piece in x.split(rows):
        missing = rows - len(piece)
        yield (_pad(piece, missing) if missing else piece), len(piece)


def _pad(piece: Tensor, missing: int) -> Tensor:
    padded = piece.new_zeros((len(piece) + missing, *piece.shape[1:]))
    padded[: len(piece)] = piece
    return padded
