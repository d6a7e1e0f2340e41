"""Quantizers here start from a few vectors."""

import pytest


@pytest.fixture(autouse=True)
def _small_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.quantizers.initialization._LEAST", 1)
