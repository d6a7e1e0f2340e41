"""Rows are read by range or by indices, from one array or from several shards."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vqtool.data.rows import NumpyRows, Rows, ShardedRows, TensorRows

ARRAY = np.random.default_rng(0).integers(0, 100, size=(10, 2, 3)).astype(np.float32)

ROW_TYPES: dict[str, Callable[[], Rows]] = {
    "numpy": lambda: NumpyRows(ARRAY.copy()),
    "fortran": lambda: NumpyRows(np.asfortranarray(ARRAY)),
    "big-endian": lambda: NumpyRows(ARRAY.astype(">f4")),
    "tensor": lambda: TensorRows(torch.from_numpy(ARRAY.copy())),
    "transposed": lambda: TensorRows(torch.from_numpy(ARRAY.T.copy()).permute(2, 1, 0)),
    "shards": lambda: ShardedRows([NumpyRows(ARRAY[:1]), NumpyRows(ARRAY[1:7]), TensorRows(torch.tensor(ARRAY[7:]))]),
}


@pytest.fixture(params=ROW_TYPES)
def rows(request: pytest.FixtureRequest) -> Rows:
    return ROW_TYPES[request.param]()


def test_length_shape_and_dtype_are_those_of_the_array(rows: Rows) -> None:
    assert (len(rows), rows.shape, rows.dtype) == (10, (2, 3), torch.float32)


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (0, 1), (3, 8), (6, 8), (1, 7), (9, 10), (8, 99), (4, 4), (0, 0)])
def test_read_is_a_slice(rows: Rows, start: int, stop: int) -> None:
    read = rows.read(start, stop)
    assert read.dtype == torch.float32
    np.testing.assert_array_equal(read.numpy(), ARRAY[start:stop])


@pytest.mark.parametrize("indices", [[0], [9, 0, 5], [7, 6, 1, 0], [3, 3, 8, 3], list(range(10))[::-1], []])
def test_take_keeps_the_order_of_the_indices(rows: Rows, indices: list[int]) -> None:
    index = np.array(indices, dtype=np.int64)
    taken = rows.take(index)
    assert taken.dtype == torch.float32
    np.testing.assert_array_equal(taken.numpy(), ARRAY[index])


def test_read_and_take_return_copies(rows: Rows) -> None:
    rows.read(0, 10).zero_()
    rows.take(np.arange(10)).zero_()
    np.testing.assert_array_equal(rows.read(0, 10).numpy(), ARRAY)


@pytest.mark.parametrize(
    "dtype",
    [
        *("float16", "bfloat16", "float32", "float64", "bool", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64"),
    ],
)
def test_shards_of_every_dtype_are_read_and_taken(dtype: str) -> None:
    tensor = torch.arange(12).reshape(6, 2).to(getattr(torch, dtype))
    rows = ShardedRows([TensorRows(tensor[:2]), TensorRows(tensor[2:])])
    order = np.array([5, 0, 2, 1])
    assert rows.read(1, 4).dtype == tensor.dtype
    assert rows.read(1, 4).tolist() == tensor[1:4].tolist()
    assert rows.take(order).dtype == tensor.dtype
    assert rows.take(order).tolist() == [tensor.tolist()[i] for i in order]
