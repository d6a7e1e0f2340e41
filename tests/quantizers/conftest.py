"""Quantizers here start from a few vectors."""

import pytest


@pytest.fixture(autouse=True)
def _small_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.quantizers.start._LEAST", 1)
