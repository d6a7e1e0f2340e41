"""`vqtool encode`."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli import mentions
from tests.conftest import Result, TrainedRun
from vqtool.inference.tokenizer import load

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def _workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def file_names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def test_file_names_that_are_not_utf8_are_escaped_in_json(trained: TrainedRun, tmp_path: Path, vqtool: Command) -> None:
    data, out = (tmp_path / os.fsdecode(name) for name in (b"\xff.npy", b"t\xfe.npy"))
    shutil.copy(trained.data, data)
    result = vqtool("encode", trained.folder, data, "--out", out, "--json")
    manifest = json.loads(out.with_suffix(".json").read_text())
    assert manifest["shards"][0]["name"] == r"\udcff.npy"
    assert json.loads(result.out)["out"] == str(tmp_path / r"t\udcfe.npy")
    assert vqtool("decode", trained.folder, out, "--out", tmp_path / "back.npy").code == 0


def test_indices_equal_those_of_the_python_api(trained: TrainedRun, vqtool: Command) -> None:
    result = vqtool("encode", trained.folder, trained.data, "--out", "tokens.npy")
    assert (result.code, result.err) == (0, "")
    assert mentions(result.out, "tokens.npy ... uint8 ... (60, 16) ... (4, 4) ... tokens.json")
    assert result.out.count("\n") == 1
    tokens = np.load("tokens.npy", mmap_mode="r")
    assert tokens.dtype == np.uint8
    assert np.array_equal(tokens, load(trained.folder).encode(trained.array))
    assert file_names() == ["tokens.json", "tokens.npy"]


def test_without_data_all_rows_of_the_runs_data_are_encoded_in_order(trained: TrainedRun, vqtool: Command) -> None:
    assert vqtool("encode", trained.folder, "--out", "default.npy").code == 0
    assert vqtool("encode", trained.folder, trained.data, "--out", "given.npy").code == 0
    assert Path("default.npy").read_bytes() == Path("given.npy").read_bytes()
    assert Path("default.json").read_bytes() == Path("given.json").read_bytes()


def test_json_is_the_manifest_and_the_path(trained: TrainedRun, vqtool: Command) -> None:
    result = vqtool("encode", trained.folder, "--out", "tokens.npy", "--json")
    assert (result.code, result.err, result.out.count("\n")) == (0, "", 1)
    assert json.loads(result.out) == {"out": "tokens.npy", **json.loads(Path("tokens.json").read_text())}


def test_manifest_has_exactly_the_documented_keys_and_values(trained: TrainedRun, vqtool: Command) -> None:
    assert vqtool("encode", trained.folder, "--out", "tokens.npy").code == 0
    data = hashlib.sha256(trained.data.read_bytes()).hexdigest()
    manifest = json.loads(Path("tokens.json").read_text())
    assert manifest.pop("format_version")
    assert manifest == {
        "shape": [60, 16],
        "dtype": "uint8",
        "grid": [4, 4],
        "codebook_sizes": [16],
        "unique": False,
        "row_shape": [1, 8, 8],
        "layout": "CHW",
        "model_sha256": hashlib.sha256((trained.folder / "model.safetensors").read_bytes()).hexdigest(),
        "data_sha256": data,
        "shards": [{"name": "images.npy", "rows": 60, "sha256": data}],
    }


def test_bytes_do_not_depend_on_path_and_modification_time(trained: TrainedRun, vqtool: Command) -> None:
    written = []
    for folder, time in (("one", 1_000_000_000), ("two", 1_700_000_000)):
        Path(folder).mkdir()
        data = Path(shutil.copy(trained.data, f"{folder}/x.npy"))
        os.utime(data, (time, time))
        assert vqtool("encode", trained.folder, data, "--out", f"{folder}/tokens.npy").code == 0
        written.append([Path(f"{folder}/tokens{suffix}").read_bytes() for suffix in (".npy", ".json")])
    assert written[0] == written[1]


@pytest.mark.parametrize("size", [1, 7, 999])
def test_bytes_do_not_depend_on_batch_size(size: int, trained: TrainedRun, vqtool: Command) -> None:
    assert vqtool("encode", trained.folder, "--out", "a.npy").code == 0
    assert vqtool("encode", trained.folder, "--out", "b.npy", "--batch-size", size).code == 0
    assert Path("a.npy").read_bytes() == Path("b.npy").read_bytes()


@pytest.mark.parametrize("data", ["shards", "shards/*.npy"])
def test_shards_are_encoded_in_the_order_of_their_names(data: str, trained: TrainedRun, vqtool: Command) -> None:
    Path("shards").mkdir()
    np.save("shards/b.npy", trained.array[10:30])
    np.save("shards/a.npy", trained.array[:10])
    assert vqtool("encode", trained.folder, data, "--out", "tokens.npy").code == 0
    assert np.array_equal(np.load("tokens.npy"), load(trained.folder).encode(trained.array[:30]))
    shards = json.loads(Path("tokens.json").read_text())["shards"]
    assert [(shard["name"], shard["rows"]) for shard in shards] == [("a.npy", 10), ("b.npy", 20)]
    assert shards[0]["sha256"] == hashlib.sha256(Path("shards/a.npy").read_bytes()).hexdigest()


def test_key_selects_an_array_of_a_container(trained: TrainedRun, vqtool: Command) -> None:
    np.savez("two.npz", **{"0": trained.array[:3], "other": trained.array[:5]})
    result = vqtool("encode", trained.folder, "two.npz", "--out", "tokens.npy")
    assert result.code == 2
    assert mentions(result.err, "\n  0  ... float32 (3, 1, 8, 8)\n  other  ... float32 (5, 1, 8, 8)")
    assert vqtool("encode", trained.folder, "two.npz", "--key", "0", "--out", "tokens.npy").code == 0
    assert np.load("tokens.npy").shape == (3, 16)


def test_images_of_another_size_have_another_grid(trained: TrainedRun, vqtool: Command) -> None:
    np.save("wide.npy", np.zeros((5, 1, 6, 14), np.float32))
    assert vqtool("encode", trained.folder, "wide.npy", "--out", "tokens.npy").code == 0
    manifest = json.loads(Path("tokens.json").read_text())
    assert (manifest["shape"], manifest["grid"], manifest["row_shape"]) == ([5, 21], [3, 7], [1, 6, 14])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.npy", "--out", "t.npy"], "gone.npy: does not exist"),
        (["rgb.npy", "--out", "t.npy"], "rgb.npy ... (3, 8, 8) ... (1, 8, 8)"),
        (["c.npy", "--out", "t.npy"], "c.npy ... (64,) ... (1, 8, 8)"),
        (["nan.npy", "--out", "t.npy"], "nan.npy: row 2 ... NaN"),
        (["text.npy", "--out", "t.npy"], "text.npy: damaged"),
        (["--out", "t.txt"], "t.txt ... .npy"),
        (["--out", "tokens"], "tokens: ... .npy"),
        (["--out", "no/t.npy"], "no/t.npy ... directory no "),
        (["--out", "there.npy"], "there.npy ... exists ... --overwrite"),
        (["--out", "folder.npy"], "folder.npy ... directory"),
        (["--out", "folder.npy", "--overwrite"], "folder.npy: "),
        (["--out", "t.npy", "--device", "gpu"], "--device ... auto, cpu, cuda ... gpu"),
        (["--out", "t.npy", "--key", "x"], "no array is named x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_input_exits_with_2_and_writes_nothing(
    arguments: list[str], message: str, trained: TrainedRun, vqtool: Command
) -> None:
    np.save("rgb.npy", np.zeros((4, 3, 8, 8), np.float32))
    np.save("c.npy", np.zeros((4, 64), np.float32))
    np.save("nan.npy", trained.array[:3] * np.array([1, 1, np.nan], np.float32)[:, None, None, None])
    Path("text.npy").write_text("not an array")
    Path("there.npy").write_text("notes")
    Path("folder.npy").mkdir()
    data = [trained.data] if "--key" in arguments else []
    before = file_names()
    result = vqtool("encode", trained.folder, *data, *arguments)
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, message)
    assert file_names() == before
    assert Path("there.npy").read_text() == "notes"


def test_overwrite_replaces_index_file_and_manifest(trained: TrainedRun, vqtool: Command) -> None:
    assert vqtool("encode", trained.folder, "--out", "tokens.npy").code == 0
    np.save("few.npy", trained.array[:7])
    assert vqtool("encode", trained.folder, "few.npy", "--out", "tokens.npy", "--overwrite").code == 0
    assert np.load("tokens.npy").shape == (7, 16)
    assert json.loads(Path("tokens.json").read_text())["shape"] == [7, 16]


def test_other_file_with_the_name_of_the_manifest_is_not_replaced(trained: TrainedRun, vqtool: Command) -> None:
    Path("tokens.json").write_text("notes")
    result = vqtool("encode", trained.folder, "--out", "tokens.npy")
    assert (result.code, Path("tokens.json").read_text()) == (2, "notes")
    assert "tokens.json" in result.err
    assert file_names() == ["tokens.json"]


@pytest.mark.parametrize("content", [b"", b"junk", b"cut"], ids=["empty", "junk", "cut"])
@pytest.mark.parametrize("command", ["encode", "eval", "inspect"])
def test_damaged_model_exits_with_2(command: str, content: bytes, trained: TrainedRun, vqtool: Command) -> None:
    shutil.copytree(trained.folder, "run")
    model = Path("run/model.safetensors")
    model.write_bytes(model.read_bytes()[:5000] if content == b"cut" else content)
    result = vqtool(command, "run", *(["--out", "t.npy"] if command == "encode" else []))
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("vqtool: run/model.safetensors: damaged: ")


def test_model_that_does_not_match_its_config_exits_with_2(trained: TrainedRun, vqtool: Command) -> None:
    shutil.copytree(trained.folder, "run")
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("codebook_size: 16", "codebook_size: 17"))
    result = vqtool("encode", "run", "--out", "t.npy")
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, "vqtool: run/model.safetensors ... config.yaml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("codebook_dim: 4", "codebook_dim: auto"),
        ("layout: CHW", "layout: auto"),
        ("\n  decoder:\n    kind: conv2d\n    width: 8\n    downsamples: 1\n    res_blocks: 1", ""),
        ("codebook_size: 16", "codebook_sise: 16"),
        ("kind: vector", "kind: [vector"),
    ],
    ids=["dim", "layout", "decoder", "key", "yaml"],
)
def test_damaged_config_of_a_run_exits_with_2(old: str, new: str, trained: TrainedRun, vqtool: Command) -> None:
    shutil.copytree(trained.folder, "run")
    config = Path("run/config.yaml")
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    result = vqtool("encode", "run", "--out", "t.npy")
    assert (result.code, result.out) == (2, "")
    assert "run/config.yaml" in result.err


def test_missing_data_file_of_the_run_exits_with_2(trained: TrainedRun, vqtool: Command) -> None:
    shutil.copytree(trained.folder, "run")
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace(str(trained.data), "/gone/away.npy"))
    result = vqtool("encode", "run", "--out", "t.npy")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert mentions(result.err, "vqtool: data.path: /gone/away.npy ... exist")


def test_brackets_in_file_names_are_printed_literally(trained: TrainedRun, vqtool: Command) -> None:
    np.save("[red]x.npy", trained.array[:2])
    result = vqtool("encode", trained.folder, "[red]x.npy", "--out", "[bold]t.npy")
    assert mentions(result.out, "[bold]t.npy: ... (2, 16) ... [bold]t.json")


# Unique ids


def test_unique_appends_a_level_that_makes_all_ids_distinct(catalogue: TrainedRun, vqtool: Command) -> None:
    assert vqtool("encode", catalogue.folder, "--out", "plain.npy").code == 0
    result = vqtool("encode", catalogue.folder, "--unique", "--out", "ids.npy")
    assert (result.code, result.err) == (0, "")
    assert mentions(result.out, "ids.npy ... uint8 ... (60, 1, 3) ... (1,) ... ids.json")
    assert result.out.count("\n") == 1
    plain, ids = np.load("plain.npy"), np.load("ids.npy")
    assert np.array_equal(ids[..., :-1], plain)
    assert len(np.unique(plain, axis=0)) < len(np.unique(ids, axis=0)) == 60
    manifest, before = (json.loads(Path(f"{name}.json").read_text()) for name in ("ids", "plain"))
    extra = {"unique": True, "shape": [60, 1, 3], "codebook_sizes": [4, 4, int(ids[..., -1].max()) + 1]}
    assert manifest == before | extra


def test_json_of_unique_ids_is_the_manifest_and_the_path(catalogue: TrainedRun, vqtool: Command) -> None:
    result = vqtool("encode", catalogue.folder, catalogue.data, "--unique", "--out", "ids.npy", "--json")
    assert (result.code, result.err, result.out.count("\n")) == (0, "", 1)
    assert json.loads(result.out) == {"out": "ids.npy", **json.loads(Path("ids.json").read_text())}


def test_extend_keeps_the_published_ids(catalogue: TrainedRun, vqtool: Command) -> None:
    np.save("grown.npy", np.concatenate([catalogue.array, catalogue.array[::-2]]))
    assert vqtool("encode", catalogue.folder, "--unique", "--out", "old.npy").code == 0
    extend = ["grown.npy", "--unique", "--extend", "old.npy", "--out", "new.npy"]
    assert vqtool("encode", catalogue.folder, *extend).code == 0
    new = np.load("new.npy")
    assert new.shape == (90, 1, 3)
    assert np.array_equal(new[:60], np.load("old.npy"))
    assert len(np.unique(new, axis=0)) == 90


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["moved.npy", "--unique", "--extend", "old.npy"],
            "old.npy: 60 ... row 0",
        ),
        (["fewer.npy", "--unique", "--extend", "old.npy"], "old.npy ... 60 ... 9"),
        (["--unique", "--extend", "plain.npy"], "plain.npy ... --unique"),
        (["--unique", "--extend", "other.npy"], "other.npy ... model ... 000000000000"),
        (["--unique", "--extend", "gone.npy"], "gone.npy: does not exist"),
        (["--unique", "--extend", "moved.npy"], "moved.npy ... manifest moved.json"),
        (["--extend", "old.npy"], "--extend needs --unique"),
        (["--unique", "--overwrite", "--extend", "old.npy", "fewer.npy"], "old.npy ... 60 rows"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_extend_exits_with_2_and_writes_nothing(
    arguments: list[str], message: str, catalogue: TrainedRun, vqtool: Command
) -> None:
    for name, options in (("old", ["--unique"]), ("plain", []), ("other", ["--unique"])):
        assert vqtool("encode", catalogue.folder, "--out", f"{name}.npy", *options).code == 0
    Path("other.json").write_text(json.dumps(json.loads(Path("other.json").read_text()) | {"model_sha256": "0" * 64}))
    np.save("moved.npy", catalogue.array[::-1])
    np.save("fewer.npy", catalogue.array[:9])
    before = file_names()
    result = vqtool("encode", catalogue.folder, *arguments, "--out", "new.npy")
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, message)
    assert file_names() == before


def test_unique_needs_one_token_per_sample(trained: TrainedRun, vqtool: Command) -> None:
    result = vqtool("encode", trained.folder, "--unique", "--out", "ids.npy")
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, "--unique ... 16 ... (4, 4)")
    assert file_names() == []
