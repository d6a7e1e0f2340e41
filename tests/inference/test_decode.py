"""Decoding of index files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import CONV2D, make_run
from tests.conftest import TrainedRun
from vqtool import load
from vqtool.errors import DataError
from vqtool.inference.decode import decode_file
from vqtool.inference.encode import encode_file


def test_indices_of_another_model_are_refused(trained: TrainedRun, tmp_path: Path) -> None:
    encode_file(load(trained.folder), tmp_path / "tokens.npy")
    run = make_run(tmp_path, trained.array, CONV2D)
    digests = rf"{load(trained.folder).model_sha256[:12]}.*{load(run).model_sha256[:12]}"
    with pytest.raises(DataError, match=rf"tokens\.npy: .*{digests}"):
        decode_file(load(run), tmp_path / "tokens.npy", tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


def test_error_names_the_row_of_an_index_out_of_range(
    trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, path = load(trained.folder), tmp_path / "tokens.npy"
    encode_file(tokenizer, path)
    indices = np.load(path)
    indices[50, 3] = 16
    np.save(path, indices)
    monkeypatch.setattr("vqtool.inference.decode.chunk_rows", lambda *_: 8)
    with pytest.raises(DataError, match=r"tokens\.npy: index 16 in row 50 .*0 to 15$"):
        decode_file(tokenizer, path, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("levels", [1, 2])
def test_leading_levels_decode_to_the_sum_of_their_codes(catalogue: TrainedRun, tmp_path: Path, levels: int) -> None:
    tokenizer = load(catalogue.folder)
    encode_file(tokenizer, tmp_path / "tokens.npy")
    decode_file(tokenizer, tmp_path / "tokens.npy", tmp_path / "decoded.npy", levels=levels)
    tokens = torch.from_numpy(np.load(tmp_path / "tokens.npy")).long()
    codes = sum(tokenizer.codebook[level][tokens[..., level]] for level in range(levels))
    expected = tokenizer.model.data_io.postprocess(tokenizer.model.decoder(codes, ()))
    np.testing.assert_allclose(np.load(tmp_path / "decoded.npy"), expected, rtol=1e-5, atol=1e-6)


def test_each_level_reduces_the_error(catalogue: TrainedRun) -> None:
    tokenizer = load(catalogue.folder)
    indices = tokenizer.encode(catalogue.array)
    errors = [np.square(tokenizer.decode(indices, levels=q).numpy() - catalogue.array).mean() for q in (1, 2)]
    assert errors[1] < 0.9 * errors[0] < 0.9 * catalogue.array.var()


@pytest.mark.parametrize("kind", ["vector", "residual"])
def test_plain_indices_with_a_unique_manifest_are_refused(
    kind: str, trained: TrainedRun, catalogue: TrainedRun, tmp_path: Path
) -> None:
    tokenizer = load({"vector": trained, "residual": catalogue}[kind].folder)
    encode_file(tokenizer, tmp_path / "tokens.npy")
    manifest = json.loads((tmp_path / "tokens.json").read_text())
    (tmp_path / "tokens.json").write_text(json.dumps({**manifest, "unique": True}))
    with pytest.raises(DataError):
        decode_file(tokenizer, tmp_path / "tokens.npy", tmp_path / "decoded.npy")
