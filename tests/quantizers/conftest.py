"""Quantizers here start from a few vectors."""

from collections.abc import Callable, Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _small_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.quantizers.initialization._LEAST", 1)


@pytest.fixture
def matmul_precision() -> Iterator[Callable[[str], None]]:
    """Sets the user's precision of float32 products, until the test ends."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)
