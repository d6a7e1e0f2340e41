"""The nearest vectors of each code."""

import numpy as np
import pytest

from vqtool.inspection.report.nearest import Nearest


@pytest.mark.parametrize("block", [1, 7, 64, 500])
def test_they_are_those_of_sorting_all(block: int) -> None:
    random = np.random.default_rng(0)
    codes, distances = random.integers(0, 9, 500), random.integers(0, 50, 500).astype(float)
    codes[codes == 4] = 5
    nearest = Nearest(9, 6)
    for start in range(0, 500, block):
        part = slice(start, start + block)
        nearest.add(codes[part], distances[part], 1_000 + np.arange(500)[part])
    for code in range(9):
        own = np.flatnonzero(codes == code)
        wanted = own[np.argsort(distances[own], kind="stable")][:6]
        count = len(wanted)
        assert nearest.places[code, :count].tolist() == (1_000 + wanted).tolist()
        assert nearest.distances[code, :count].tolist() == distances[wanted].tolist()
        assert (nearest.places[code, count:] == -1).all()
