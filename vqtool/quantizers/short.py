"""Scores of vectors of few dimensions, on a CPU: a product would spend its time on writing them, so they never are.

Shapes: R vectors, K codes, C codes with padding, D dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtool.quantizers.kernels import SHORT, settle_short
from vqtool.quantizers.scores import Scores

# Classes of codes, of few or more codes than so many.
_FEW, _SMALL, _CLASSES = 2048, 64, 128


class ShortScores(Scores):
    """Scores in float32 of codes with `SHORT` dimensions at the most."""

    def __init__(self, codebook: Tensor) -> None:
        super().__init__(codebook)
        width = _SMALL if len(codebook) <= _FEW else _CLASSES
        padding = -len(codebook) % width
        columns = F.pad(self._codes, (0, SHORT - codebook.shape[1], 0, padding)).view(-1, width, SHORT)
        heights = F.pad(self._half_norms, (0, padding), value=torch.inf).view(-1, width)
        # By member, then class, and the other way round.
        self._members = columns.permute(0, 2, 1).contiguous(), heights
        self._classes = columns.permute(1, 2, 0).contiguous(), heights.T.contiguous()

    def nearest(self, vectors: Tensor) -> Tensor:
        shifted = self._centre - vectors
        slack = self._slack(self._norms(shifted))
        rows = F.pad(shifted.masked_fill_(slack.isinf()[:, None], 0), (0, SHORT - vectors.shape[1], 0, 3))
        nearest = torch.empty(len(vectors), dtype=torch.int64)
        tables = (*self._members, *self._classes, self._codebook)
        settle_short(*(each.numpy() for each in (rows, slack, vectors, *tables, nearest)))
        return nearest
