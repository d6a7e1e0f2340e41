"""Scores of vectors of few dimensions, on a CPU: a product would spend its time on writing them, so they never are.

Shapes: R vectors, K codes, C codes with padding, D dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtool.search.kernels import MAX_SMALL_DIM, settle_short
from vqtool.search.scores import Scores

# Classes of up to so many codes, and of more.
_FEW, _NARROW, _WIDE = 2048, 64, 128


class SmallDimSearch(Scores):
    """Scores in float32 of codes with `MAX_SMALL_DIM` dimensions at the most."""

    def __init__(self, codebook: Tensor) -> None:
        super().__init__(codebook)
        width = _NARROW if len(codebook) <= _FEW else _WIDE
        padding = -len(codebook) % width
        columns = F.pad(self._codes, (0, MAX_SMALL_DIM - codebook.shape[1], 0, padding)).view(-1, width, MAX_SMALL_DIM)
        heights = F.pad(self._half_norms, (0, padding), value=torch.inf).view(-1, width)
        self._tables = {
            "columns": columns.mT.contiguous(),
            "heights": heights,
            "classes": columns.permute(1, 2, 0).contiguous(),
            "heights_of_classes": heights.T.contiguous(),
            "codes": self._codebook,
        }

    def nearest(self, vectors: Tensor) -> Tensor:
        shifted = self._centre - vectors
        slack = self._slack(self._norms(shifted))
        rows = F.pad(shifted.masked_fill_(slack.isinf()[:, None], 0), (0, MAX_SMALL_DIM - vectors.shape[1], 0, 3))
        nearest = torch.empty(len(vectors), dtype=torch.int64)
        given = {"rows": rows, "slack": slack, "vectors": vectors, "nearest": nearest, **self._tables}
        settle_short(**{name: tensor.numpy() for name, tensor in given.items()})
        return nearest
