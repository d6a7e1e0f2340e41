"""Rows of an array, read on demand: from a NumPy array, a tensor, or several of them concatenated."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RowIndices = NDArray[np.int64]


class Rows(ABC):
    """Array (N, *shape) whose rows are read on demand, into new tensors on the CPU.

    Attributes:
        shape: shape of one row.
        dtype: dtype of the array, and of what is read.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @abstractmethod
    def __len__(self) -> int:
        """Return N."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop` - 1 as a new tensor; there are fewer if `stop` exceeds N."""

    @abstractmethod
    def take(self, indices: RowIndices) -> Tensor:
        """Return the rows with the numbers `indices` (n,), in this order, as a new tensor (n, *shape)."""


class NumpyRows(Rows):
    """Rows of a NumPy array, memory-mapped or in memory.

    Args:
        array: (N, *shape), in any byte order.
        dtype: dtype of the bits in the array, if NumPy does not have it: bfloat16 stored as uint16; None: the array's.
    """

    def __init__(self, array: NDArray[Any], dtype: torch.dtype | None = None) -> None:
        self._array = array
        self.shape = array.shape[1:]
        self.dtype = dtype or _copy_to_tensor(array[:0]).dtype

    def __len__(self) -> int:
        return len(self._array)

    def read(self, start: int, stop: int) -> Tensor:
        return _copy_to_tensor(self._array[start:stop]).view(self.dtype)

    def take(self, indices: RowIndices) -> Tensor:
        return _copy_to_tensor(self._array[indices]).view(self.dtype)


class TensorRows(Rows):
    """Rows of a tensor (N, *shape), memory-mapped or in memory."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.shape = tuple(tensor.shape[1:])
        self.dtype = tensor.dtype

    def __len__(self) -> int:
        return len(self._tensor)

    def read(self, start: int, stop: int) -> Tensor:
        return self._tensor[start:stop].clone()

    def take(self, indices: RowIndices) -> Tensor:
        return self._tensor[torch.from_numpy(indices)]


class ShardedRows(Rows):
    """Rows of several shards, at least one, concatenated in order. All must have the same row shape and dtype."""

    def __init__(self, shards: Sequence[Rows]) -> None:
        self._shards = shards
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])
        self.shape = shards[0].shape
        self.dtype = shards[0].dtype

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> Tensor:
        pieces = [
            shard.read(max(start - first, 0), min(stop - first, len(shard)))
            for shard, first in zip(self._shards, self._starts[:-1], strict=True)
            if start < first + len(shard) and first < stop
        ]
        return torch.cat(pieces) if pieces else self._shards[0].read(0, 0)

    def take(self, indices: RowIndices) -> Tensor:
        shard_of_row = np.searchsorted(self._starts, indices, side="right") - 1
        pieces = [
            self._shards[shard].take(indices[shard_of_row == shard] - self._starts[shard])
            for shard in np.unique(shard_of_row)
        ]
        # The pieces are sorted by shard; the inverse of that stable sort restores the requested order.
        inverse = np.argsort(np.argsort(shard_of_row, kind="stable"))
        return torch.cat(pieces)[torch.from_numpy(inverse)] if pieces else self.read(0, 0)


def _copy_to_tensor(array: NDArray[Any]) -> Tensor:
    """Copy an array into a contiguous tensor in native byte order."""
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
