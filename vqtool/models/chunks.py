"""Fixed-size chunks: the model computes on chunks of one shape, aligned to row numbers; the last chunk is padded.

Matrix products of different shapes can round differently, and a latent halfway between two codes would then get the
other index. With one shape, the tokens of a row depend neither on the batch size nor on the other rows.
"""

import math
from collections.abc import Iterator

from torch import Tensor

from vqtool.models.autoencoder import Autoencoder
from vqtool.models.encoders import Size

_MAX_TOKENS_PER_CHUNK = 1 << 12
# Input values: channels times positions, over all samples of a chunk.
_MAX_VALUES_PER_CHUNK = 1 << 18
# Larger batches of large samples fill memory, and let threads finish far apart.
_MAX_CHUNKS_PER_BATCH = 4


def chunk_rows(model: Autoencoder, size: Size) -> int:
    """Return the number of rows per chunk for samples of `size`.

    It is the largest power of two with at most 2^12 tokens and 2^18 input values per chunk, and at least 1. It depends
    on nothing but the model and the size.
    """
    tokens = math.prod(model.grid(size))
    values = model.spec.channels * math.prod(size)
    return 1 << max(0, int(math.log2(min(_MAX_TOKENS_PER_CHUNK / tokens, _MAX_VALUES_PER_CHUNK / values))))


def batch_rows(model: Autoencoder, size: Size, batch_size: int) -> int:
    """Return the number of rows to read at a time: `batch_size` rounded up to whole chunks, at most four chunks."""
    chunk = chunk_rows(model, size)
    return chunk * min(-(-batch_size // chunk), _MAX_CHUNKS_PER_BATCH)


def chunks(x: Tensor, rows: int) -> Iterator[tuple[Tensor, int]]:
    """Split (n, ...) into chunks of `rows` rows, the last one padded with zeros; one chunk of padding only if n is 0.

    Yields:
        A chunk (rows, ...), and the number of its rows that are not padding.
    """
    for chunk in x.split(rows):
        n = len(chunk)
        if n < rows:
            padded = chunk.new_zeros((rows, *chunk.shape[1:]))
            padded[:n] = chunk
            chunk = padded
        yield chunk, n
