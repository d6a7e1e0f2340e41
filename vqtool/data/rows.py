"""Rows that are read when they are asked for: one array, or many as one."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RowIndices = NDArray[np.int64]


class Rows(ABC):
    """N rows of one shape and type.

    Attributes:
        shape: of one row.
        dtype: of the array.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop, as a new tensor (stop - start, *shape)."""

    @abstractmethod
    def take(self, numbers: RowIndices) -> Tensor:
        """The rows of these numbers (n,), in this order, as a new tensor (n, *shape)."""


class NumpyRows(Rows):
    """Rows of a NumPy array, mapped or in memory.

    Args:
        dtype: what its bits mean, where NumPy has no such type; None: what NumPy says.
    """

    def __init__(self, array: NDArray[Any], dtype: torch.dtype | None = None) -> None:
        self._array = array
        self.shape = array.shape[1:]
        self.dtype = dtype or _tensor(array[:0]).dtype

    def __len__(self) -> int:
        return len(self._array)

    def read(self, start: int, stop: int) -> Tensor:
        return _tensor(self._array[start:stop]).view(self.dtype)

    def take(self, numbers: RowIndices) -> Tensor:
        return _tensor(self._array[numbers]).view(self.dtype)


class TensorRows(Rows):
    """Rows of a tensor, mapped or in memory."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.shape = tuple(tensor.shape[1:])
        self.dtype = tensor.dtype

    def __len__(self) -> int:
        return len(self._tensor)

    def read(self, start: int, stop: int) -> Tensor:
        return self._tensor[start:stop].clone()

    def take(self, numbers: RowIndices) -> Tensor:
        return self._tensor[torch.from_numpy(numbers)]


class ShardedRows(Rows):
    """Rows of several sources, one after the other, which agree in shape and type."""

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

    def take(self, numbers: RowIndices) -> Tensor:
        owners = np.searchsorted(self._starts, numbers, side="right") - 1
        by_owner = np.argsort(owners, kind="stable")
        pieces = [
            self._shards[owner].take(numbers[owners == owner] - self._starts[owner]) for owner in np.unique(owners)
        ]
        return torch.cat(pieces)[torch.from_numpy(np.argsort(by_owner))] if pieces else self.read(0, 0)


def _tensor(array: NDArray[Any]) -> Tensor:
    """A tensor of its own memory and of the machine's byte order."""
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
