"""model.safetensors: written, read, damaged, and of other format versions."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tests.cli import mentions
from vqtool.errors import CheckpointError
from vqtool.metrics.collisions import IdCounts
from vqtool.runs.model_file import SavedModel, read_model, write_model

METRICS = {"validation/loss/total": 0.1, "codebook/usage": 1.0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def saved_model(
    state: dict[str, Tensor] | None = None, counts: list[Tensor] | None = None, distinct: IdCounts | None = None
) -> SavedModel:
    return SavedModel(state or {"a": torch.ones(100)}, counts or [], distinct, 5, METRICS, 80, "d" * 64)


def test_model_and_its_validation_are_read_unchanged(path: Path) -> None:
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False]), "c": torch.tensor(3)}
    write_model(path, saved_model(state, [torch.tensor([3, 0, 2]), torch.tensor([1, 4])]))
    model, sha256 = read_model(path)
    assert set(model.state) == set(state)
    assert all(torch.equal(model.state[name], state[name]) for name in state)
    assert [hits.tolist() for hits in model.counts] == [[3, 0, 2], [1, 4]]
    assert (model.distinct, model.step, model.metrics) == (None, 5, METRICS)
    assert model.tokens == 80
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_distinct_ids_are_read_unchanged(path: Path) -> None:
    write_model(path, saved_model(distinct=IdCounts(rows=2**40, ids=7)))
    model, _ = read_model(path)
    assert model.distinct == IdCounts(2**40, 7)
    assert set(model.state) == {"a"}


def test_counts_are_in_the_order_of_levels(path: Path) -> None:
    write_model(path, saved_model(counts=[torch.tensor([level]) for level in range(12)]))
    assert [hits.item() for hits in read_model(path)[0].counts] == list(range(12))


def test_non_contiguous_weights_are_written(path: Path) -> None:
    original = torch.arange(12.0).reshape(3, 4)
    write_model(path, saved_model({"turned": original.T, "part": original[1:, :2]}))
    weights = read_model(path)[0].state
    assert torch.equal(weights["turned"], original.T)
    assert torch.equal(weights["part"], original[1:, :2])


def test_equal_models_give_equal_bytes(path: Path) -> None:
    state = {name: torch.ones(3) for name in ("z", "a", "m")}
    write_model(path, saved_model(state, [torch.tensor([1])]))
    first = path.read_bytes()
    write_model(path, saved_model(dict(reversed(state.items())), [torch.tensor([1])]))
    assert path.read_bytes() == first


def test_missing_model_names_validate_every(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors .*training\.validate_every"):
        read_model(path)


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 64, b"cut"])
def test_damaged_model_is_refused(content: bytes, path: Path) -> None:
    write_model(path, saved_model())
    path.write_bytes(content if content != b"cut" else path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        read_model(path)


def test_flipped_bits_are_detected(path: Path) -> None:
    write_model(path, saved_model({"a": torch.rand(7), "b": torch.arange(3)}, [torch.tensor([1, 2])], IdCounts(3, 2)))
    original, before = path.read_bytes(), read_model(path)[0]
    rng = random.Random(0)
    harmless = 0
    for _ in range(500):
        content = bytearray(original)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            after = read_model(path)[0]
        except CheckpointError:
            continue
        else:  # the bit was in the padding of the header
            harmless += 1
            assert (after.step, after.metrics, after.distinct) == (before.step, before.metrics, before.distinct)
            assert all(torch.equal(after.state[name], before.state[name]) for name in before.state)
    assert harmless < 25


def test_file_without_metadata_is_read_and_a_wrong_digest_is_refused(path: Path) -> None:
    save_file({"a": torch.ones(3)}, path)
    model, _ = read_model(path)
    assert (list(model.state), model.step, model.metrics) == (["a"], None, {})
    metadata = json.dumps({"format_version": 1, "sha256": "0" * 64, "step": 1})
    save_file({"a": torch.ones(3)}, path, metadata={"vqtool": metadata})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged: SHA-256"):
        read_model(path)


def metadata_of(path: Path) -> dict[str, Any]:
    """Return vqtool's metadata in a file."""
    with safe_open(path, "pt") as file:
        metadata: dict[str, Any] = json.loads(file.metadata()["vqtool"])
    return metadata


def test_metadata_have_a_format_version(path: Path) -> None:
    write_model(path, saved_model())
    assert metadata_of(path)["format_version"] == 1


@pytest.mark.parametrize("version", [2, 0, "1"])
def test_unknown_format_version_is_refused(version: Any, path: Path) -> None:
    write_model(path, saved_model())
    fields = {**metadata_of(path), "format_version": version}
    save_file({"a": torch.ones(3)}, path, metadata={"vqtool": json.dumps(fields)})
    with pytest.raises(CheckpointError) as error:
        read_model(path)
    expected = f"model.safetensors: format_version: {json.dumps(version)} ... 1; update vqtool ... train"
    assert mentions(str(error.value), expected)


@pytest.mark.parametrize("fields", [{}, {"step": 1, "sha256": "0" * 64}])
def test_missing_format_version_is_refused(fields: dict[str, Any], path: Path) -> None:
    save_file({"a": torch.ones(3)}, path, metadata={"vqtool": json.dumps(fields)})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: format_version: missing.*train"):
        read_model(path)
