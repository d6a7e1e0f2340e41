"""Of each code, the vectors that lie nearest to it: what it stands for at its purest.

Shapes: n vectors, K codes, M places kept a code.
"""

import numpy as np
from numpy.typing import NDArray


class Nearest:
    """Keeps the M nearest vectors of each code, block by block.

    Attributes:
        distances: (K, M) ascending; infinite where there are fewer.
        places: (K, M) what `add` called them; -1 where there are fewer.
    """

    def __init__(self, codes: int, kept: int) -> None:
        self.distances = np.full((codes, kept), np.inf)
        self.places = np.full((codes, kept), -1, dtype=np.int64)

    def add(self, codes: NDArray[np.int64], distances: NDArray[np.float64], places: NDArray[np.int64]) -> None:
        """Look at vectors (n,), each with its code, its distance and its place; earlier ones win ties."""
        closer = distances < self.distances[codes, -1]
        codes, distances, places = codes[closer], distances[closer], places[closer]
        touched, kept = np.unique(codes), self.distances.shape[1]
        if not len(touched):
            return
        codes = np.concatenate([np.repeat(touched, kept), codes])
        distances = np.concatenate([self.distances[touched].reshape(-1), distances])
        places = np.concatenate([self.places[touched].reshape(-1), places])
        order = np.lexsort((distances, codes))  # stable: what is kept stands before what is new
        codes = codes[order]
        starts = np.searchsorted(codes, touched)
        chosen = order[starts[:, None] + np.arange(kept)]
        self.distances[touched], self.places[touched] = distances[chosen], places[chosen]
