"""`vqtool decode`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli import mentions
from tests.conftest import Result, TrainedRun
from vqtool.inference.encode import encode_file
from vqtool.inference.tokenizer import load

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def _workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: TrainedRun) -> None:
    monkeypatch.chdir(tmp_path)
    encode_file(load(trained.folder), Path("tokens.npy"), str(trained.data))


def edit_manifest(**changes: Any) -> None:
    manifest = json.loads(Path("tokens.json").read_text())
    Path("tokens.json").write_text(json.dumps(manifest | changes))


def test_decoded_array_has_the_shape_and_dtype_of_the_data(trained: TrainedRun, vqtool: Command) -> None:
    result = vqtool("decode", trained.folder, "tokens.npy", "--out", "back.npy")
    assert (result.code, result.err, result.out.count("\n")) == (0, "", 1)
    assert mentions(result.out, "back.npy: ... float32 ... (60, 1, 8, 8)")
    back = np.load("back.npy")
    assert (back.shape, back.dtype) == (trained.array.shape, trained.array.dtype)
    tokenizer = load(trained.folder)
    assert np.array_equal(back, tokenizer.decode(tokenizer.encode(trained.array)))
    assert sorted(path.name for path in Path().iterdir()) == ["back.npy", "tokens.json", "tokens.npy"]


def test_mse_of_the_decoded_array_equals_mse_of_eval(trained: TrainedRun, vqtool: Command) -> None:
    assert vqtool("decode", trained.folder, "tokens.npy", "--out", "back.npy").code == 0
    fields = json.loads(vqtool("eval", trained.folder, trained.data, "--json").out)
    error = np.square(np.load("back.npy").astype(np.float64) - trained.array).mean()
    assert fields["mse"] == pytest.approx(error, rel=1e-12)


def test_json_has_path_shape_and_dtype(trained: TrainedRun, vqtool: Command) -> None:
    result = vqtool("decode", trained.folder, "tokens.npy", "--out", "back.npy", "--json")
    assert (result.code, result.err, result.out.count("\n")) == (0, "", 1)
    assert json.loads(result.out) == {"out": "back.npy", "shape": [60, 1, 8, 8], "dtype": "float32"}


def test_images_of_another_size_are_decoded_to_that_size(trained: TrainedRun, vqtool: Command) -> None:
    np.save("wide.npy", np.zeros((5, 1, 7, 13), np.float32))
    assert vqtool("encode", trained.folder, "wide.npy", "--out", "wide_tokens.npy").code == 0
    assert vqtool("decode", trained.folder, "wide_tokens.npy", "--out", "back.npy").code == 0
    assert np.load("back.npy").shape == (5, 1, 7, 13)


def test_indices_of_another_model_are_refused_with_both_digests(trained: TrainedRun, vqtool: Command) -> None:
    model_sha256 = json.loads(Path("tokens.json").read_text())["model_sha256"]
    edit_manifest(model_sha256="0123456789ab" + "0" * 52)
    result = vqtool("decode", trained.folder, "tokens.npy", "--out", "back.npy")
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, "tokens.npy ... model ... 0123456789ab")
    assert model_sha256[:12] in result.err
    assert not Path("back.npy").exists()


def test_index_out_of_range_is_refused(trained: TrainedRun, vqtool: Command) -> None:
    tokens = np.load("tokens.npy")
    tokens[50, 3] = 16
    np.save("tokens.npy", tokens)
    result = vqtool("decode", trained.folder, "tokens.npy", "--out", "back.npy")
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, "tokens.npy ... index 16 ... row 50 ")
    assert sorted(path.name for path in Path().iterdir()) == ["tokens.json", "tokens.npy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.npy", "--out", "b.npy"], "gone.npy: does not exist"),
        (["alone.npy", "--out", "b.npy"], "alone.npy ... manifest alone.json"),
        (["short.npy", "--out", "b.npy"], "short.npy ... uint8 [3, 16] ... short.json ... uint8 [60, 16]"),
        (["int.npy", "--out", "b.npy"], "int.npy ... int64 [60, 16] ... int.json ... uint8 [60, 16]"),
        (["tokens.npy", "--out", "b.dat"], "b.dat ... .npy"),
        (["tokens.npy", "--out", "no/b.npy"], "no/b.npy ... directory no "),
        (["tokens.npy", "--out", "alone.npy"], "alone.npy ... exists ... --overwrite"),
        (["tokens.npy", "--out", "b.npy", "--device", "gpu"], "--device ... auto, cpu, cuda ... gpu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_exits_with_2_and_writes_nothing(
    arguments: list[str], message: str, trained: TrainedRun, vqtool: Command
) -> None:
    tokens = np.load("tokens.npy")
    for name, array in (("alone", tokens), ("short", tokens[:3]), ("int", tokens.astype(np.int64))):
        np.save(f"{name}.npy", array)
    for name in ("short", "int"):
        shutil.copy("tokens.json", f"{name}.json")
    before = sorted(Path().iterdir())
    result = vqtool("decode", trained.folder, *arguments)
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, message)
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("row_shape", [None, [], [64], ["1", 8, 8], [1, 0, 8], [1, -8, 8], [1, 16, 16]])
def test_invalid_row_shape_in_the_manifest_is_refused(row_shape: Any, trained: TrainedRun, vqtool: Command) -> None:
    edit_manifest(row_shape=row_shape)
    result = vqtool("decode", trained.folder, "tokens.npy", "--out", "back.npy")
    assert (result.code, result.out) == (2, "")
    fragments = "tokens.npy ... (N, 64)" if row_shape == [1, 16, 16] else "tokens.json: "
    assert mentions(result.err, fragments)
    assert not Path("back.npy").exists()


def test_overwrite_replaces_the_array(trained: TrainedRun, vqtool: Command) -> None:
    Path("back.npy").write_text("old")
    assert vqtool("decode", trained.folder, "tokens.npy", "--out", "back.npy", "--overwrite").code == 0
    assert np.load("back.npy").shape == (60, 1, 8, 8)


# Levels


def test_levels_option_decodes_the_first_levels_only(catalogue: TrainedRun, vqtool: Command) -> None:
    encode_file(load(catalogue.folder), Path("ids.npy"))
    result = vqtool("decode", catalogue.folder, "ids.npy", "--levels", 1, "--out", "coarse.npy")
    assert (result.code, result.err, result.out.count("\n")) == (0, "", 1)
    assert mentions(result.out, "coarse.npy: ... float32 ... (60, 6)")
    tokenizer = load(catalogue.folder)
    first = tokenizer.codebook[0][torch.from_numpy(np.load("ids.npy")).long()[..., 0]]
    expected = tokenizer.model.data_io.postprocess(first[:, 0])
    np.testing.assert_allclose(np.load("coarse.npy"), expected, rtol=1e-5, atol=1e-6)
    for option in ([], ["--levels", 2]):
        assert vqtool("decode", catalogue.folder, "ids.npy", *option, "--out", "all.npy", "--overwrite").code == 0
        assert np.array_equal(np.load("all.npy"), tokenizer.decode(np.load("ids.npy")))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (0, "--levels"),
        (-1, "--levels"),
        ("two", "--levels"),
        (3, "--levels: 3 ... 1 to 2"),
    ],
)
def test_levels_out_of_range_exits_with_2(levels: object, message: str, catalogue: TrainedRun, vqtool: Command) -> None:
    encode_file(load(catalogue.folder), Path("ids.npy"))
    result = vqtool("decode", catalogue.folder, "ids.npy", "--levels", levels, "--out", "back.npy")
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, message)
    assert not Path("back.npy").exists()


def test_levels_option_needs_a_residual_quantizer(trained: TrainedRun, vqtool: Command) -> None:
    assert vqtool("decode", trained.folder, "tokens.npy", "--levels", 1, "--out", "back.npy").code == 0
    result = vqtool("decode", trained.folder, "tokens.npy", "--levels", 2, "--out", "no.npy")
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, "--levels ... residual ... 1 ... 2")


def test_unique_level_does_not_change_the_decoded_array(catalogue: TrainedRun, vqtool: Command) -> None:
    for name, option in (("plain", []), ("unique", ["--unique"])):
        assert vqtool("encode", catalogue.folder, *option, "--out", f"{name}.npy").code == 0
        assert vqtool("decode", catalogue.folder, f"{name}.npy", "--out", f"{name}_back.npy").code == 0
    assert Path("plain_back.npy").read_bytes() == Path("unique_back.npy").read_bytes()
