"""Decode index files to arrays."""

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.data.layout import sample_shape
from vqtool.errors import DataError
from vqtool.inference.semantic_ids import check_unique_sizes
from vqtool.inference.tokenizer import Tokenizer
from vqtool.models.chunks import chunk_rows
from vqtool.runs.index_file import atomic_write_array, check_not_input, check_output, manifest_path, read_indices
from vqtool.runtime.progress import pass_bar
from vqtool.runtime.signals import deferred_signals


@deferred_signals()
def decode_file(
    tokenizer: Tokenizer, path: Path, out: Path, overwrite: bool = False, levels: int | None = None
) -> tuple[tuple[int, ...], str]:
    """Decode an index file to a .npy file of rows in the layout, units and dtype of the training data.

    Args:
        path: index file to read; its manifest is beside it.
        out: .npy file to write. NumPy has no bfloat16, so bfloat16 rows are written as float32.
        overwrite: replace an existing output.
        levels: number of leading levels to decode, 1 to Q (fewer than Q: residual quantizers only); None: all. The
            level that `--unique` appended is never decoded and does not count.

    Returns:
        Shape (N, *row) and NumPy dtype name of the output.

    Raises:
        DataError: the indices were written by another model or are damaged, `levels` is out of range, or the output
            exists without `overwrite` or cannot be written.
    """
    check_output(out, overwrite)
    check_not_input(out, [path])
    tokenizer.check_levels(levels, "--levels")
    indices, manifest = read_indices(path)
    if manifest.model_sha256 != tokenizer.model_sha256:
        raise DataError(
            f"{path}: written by another model ({manifest.model_sha256[:12]}...), not by this one "
            f"({tokenizer.model_sha256[:12]}...); decode with the run that wrote it, or encode the data with this run"
        )
    row_shape = tuple(manifest.row_shape)
    tokenizer.model.check_rows(row_shape, f"{manifest_path(path)}: row_shape")
    size = sample_shape(tokenizer.spec.layout, row_shape)[1]
    rows_per_chunk = chunk_rows(tokenizer.model, size)
    if manifest.unique:
        check_unique_sizes(path, manifest, tokenizer)
        indices = indices[..., :-1].reshape(len(indices), *tokenizer.index_shape(size))
    shape, dtype = (len(indices), *row_shape), _to_numpy(torch.empty(0, dtype=tokenizer.spec.torch_dtype)).dtype
    with atomic_write_array(out, shape, dtype) as array, pass_bar("decode", len(indices)) as bar:
        for start in range(0, len(indices), rows_per_chunk):
            chunk = indices[start : start + rows_per_chunk]
            rows = tokenizer.decode_batch(tokenizer.validate_indices(chunk, size, levels, str(path), start), size)
            array[start : start + len(rows)] = _to_numpy(rows)
            bar.update(len(rows))
    return shape, dtype.name


def _to_numpy(rows: Tensor) -> NDArray[Any]:
    """Return rows on the CPU as a NumPy array; bfloat16 becomes float32, because NumPy does not support it."""
    array: NDArray[Any] = (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
    return array
