"""Search in few dimensions on a CPU, where writing scores to memory would take longer than computing them.

Shapes: N vectors, K codes, D dimensions, W lanes of G codes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtool.search.kernels import MAX_SMALL_DIM, search_small_dim
from vqtool.search.scores import ScoreSearch

# Number of lanes for at most, and for more than, this many codes; see `kernels`.
_FEW_CODES, _LANES_FEW_CODES, _LANES = 2048, 64, 128


class SmallDimSearch(ScoreSearch):
    """Search by float32 scores that stay in registers, for D <= `MAX_SMALL_DIM`."""

    def __init__(self, codebook: Tensor) -> None:
        super().__init__(codebook)
        lanes = _LANES_FEW_CODES if len(codebook) <= _FEW_CODES else _LANES
        padding = -len(codebook) % lanes
        codes = F.pad(self._codes, (0, MAX_SMALL_DIM - codebook.shape[1], 0, padding)).view(-1, lanes, MAX_SMALL_DIM)
        half_sq_norms = F.pad(self._half_sq_norms, (0, padding), value=torch.inf).view(-1, lanes)
        self._code_arguments = {
            "columns": codes.mT.contiguous(),
            "half_sq_norms": half_sq_norms,
            "lane_columns": codes.permute(1, 2, 0).contiguous(),
            "lane_half_sq_norms": half_sq_norms.T.contiguous(),
            "codes": self._codebook,
        }

    def nearest(self, vectors: Tensor) -> Tensor:
        shifted = self._centre - vectors
        tolerance = self._tolerance(self._upper_norms(shifted))
        # The kernel reads four rows at a time, all finite.
        shifted = shifted.masked_fill_(tolerance.isinf()[:, None], 0)
        rows = F.pad(shifted, (0, MAX_SMALL_DIM - vectors.shape[1], 0, 3))
        nearest = torch.empty(len(vectors), dtype=torch.int64)
        arguments = {"rows": rows, "tolerance": tolerance, "vectors": vectors, "nearest": nearest}
        search_small_dim(**{name: tensor.numpy() for name, tensor in (arguments | self._code_arguments).items()})
        return nearest
