"""Compute in chunks of one fixed shape, aligned to row numbers; the last chunk is padded.

A row's result then does not depend on the batch size or on the other rows. Matrix products of another shape can round
differently, and a vector halfway between two codes would get the other index.
"""

import math
from collections.abc import Iterator

from torch import Tensor

from vqtool.models.autoencoder import Autoencoder
from vqtool.models.encoders import Size

# Maximum number of tokens, and of input numbers, in one chunk.
_POSITIONS = 1 << 12
_NUMBERS = 1 << 18
# Maximum number of chunks per read: with more, large samples fill memory, and threads finish far apart.
_TOGETHER = 4


def chunk_rows(model: Autoencoder, size: Size) -> int:
    """Rows per chunk for samples of `size`: a power of two that depends only on the model and the size."""
    positions = math.prod(model.grid(size))
    numbers = model.spec.channels * math.prod(size)
    return 1 << max(0, int(math.log2(min(_POSITIONS / positions, _NUMBERS / numbers))))


def batch_rows(model: Autoencoder, size: Size, batch_size: int) -> int:
    """Rows to read at a time: `batch_size` rounded up to whole chunks, four chunks at most."""
    chunk = chunk_rows(model, size)
    return chunk * min(-(-batch_size // chunk), _TOGETHER)


def chunks(x: Tensor, rows: int) -> Iterator[tuple[Tensor, int]]:
    """Split (n, ...) into chunks of `rows`, the last one padded with zeros; yield each with its number of real rows."""
    for piece in x.split(rows):
        missing = rows - len(piece)
        yield (_pad(piece, missing) if missing else piece), len(piece)


def _pad(piece: Tensor, missing: int) -> Tensor:
    padded = piece.new_zeros((len(piece) + missing, *piece.shape[1:]))
    padded[: len(piece)] = piece
    return padded
