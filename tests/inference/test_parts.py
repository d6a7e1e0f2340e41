"""Encoding in parts: any number of workers write the same bytes as one."""

import json
import re
import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from tests import CONV1D, IDENTITY, files, make_run, normal
from tests.conftest import Result, TrainedRun
from vqtool import load
from vqtool.errors import ConfigError, DataError
from vqtool.inference import parts
from vqtool.inference.encode import encode_file
from vqtool.inference.parts import Part, encode_part
from vqtool.inference.tokenizer import Tokenizer

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def sequences_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 300 sequences; a chunk has 32 rows."""
    return make_run(tmp_path_factory.mktemp("sequences"), normal(300, 2, 256), CONV1D)


@pytest.fixture
def tokenizer(sequences_run: Path) -> Tokenizer:
    return load(sequences_run)


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5", ""])
def test_invalid_parts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"--part: {re.escape(text)} .*3/16"):
        Part.parse(text)


def test_part_of_a_rank_under_torchrun() -> None:
    assert Part.parse("3/16") == Part(3, 16)
    assert Part.from_environment({"RANK": "2", "WORLD_SIZE": "16"}) == Part(3, 16)
    assert Part.from_environment({"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert Part.from_environment({}) is None


@pytest.mark.parametrize("of", [1, 2, 3, 7, 16, 100])
@pytest.mark.parametrize(("rows", "chunk"), [(300, 32), (1, 64), (64, 64), (1000, 1)])
def test_parts_cover_all_rows_and_start_at_chunks(of: int, rows: int, chunk: int) -> None:
    ranges = [Part(number + 1, of).row_range(rows, chunk) for number in range(of)]
    assert [row for part in ranges for row in part] == list(range(rows))
    assert all(part.start % chunk == 0 for part in ranges if part)


@pytest.mark.parametrize("of", [1, 2, 3, 16])
@pytest.mark.parametrize("backwards", [False, True])
def test_joined_parts_have_the_bytes_of_one_worker(
    tokenizer: Tokenizer, tmp_path: Path, of: int, backwards: bool
) -> None:
    encode_file(tokenizer, tmp_path / "reference.npy")
    numbers = range(of, 0, -1) if backwards else range(1, of + 1)
    results = [encode_part(tokenizer, tmp_path / "parts.npy", Part(number, of), batch_size=64) for number in numbers]
    joined = [result for result in results if result is not None]
    assert joined
    assert files(tmp_path / "parts.npy") == files(tmp_path / "reference.npy")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".npy", ".npy"]


def test_worker_that_completes_the_last_part_joins_all(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for number, order in enumerate(permutations([1, 2, 3])):
        out = tmp_path / f"{number}.npy"
        results = [encode_part(tokenizer, out, Part(part, 3)) for part in order]
        assert [result is not None for result in results] == [False, False, True]


def test_complete_parts_are_not_encoded_again(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tokens.npy"
    encode_part(tokenizer, out, Part(1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_batch", lambda *args: pytest.fail("encoded again"))
        assert encode_part(tokenizer, out, Part(1, 2)) is None
    manifest = encode_part(tokenizer, out, Part(2, 2))
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *args: pytest.fail("encoded again"))
    assert encode_part(tokenizer, out, Part(1, 2)) == manifest


def test_interrupted_and_damaged_parts_are_encoded_again(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_file(tokenizer, tmp_path / "reference.npy")
    out = tmp_path / "tokens.npy"
    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_json", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            encode_part(tokenizer, out, Part(1, 2))
    encode_part(tokenizer, out, Part(2, 2))
    damaged = next(path for path in (tmp_path / "tokens.npy.parts").glob("part-000002*.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    assert encode_part(tokenizer, out, Part(1, 2)) is None  # part 2 is damaged and not complete
    assert encode_part(tokenizer, out, Part(2, 2)) is not None
    assert files(out) == files(tmp_path / "reference.npy")


def test_parts_of_another_model_are_refused(sequences_run: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    out = tmp_path / "tokens.npy"
    encode_part(tokenizer, out, Part(1, 2))
    other = make_run(tmp_path, normal(300, 2, 256, seed=1), CONV1D)
    with pytest.raises(
        DataError, match=r"tokens\.npy\.parts/part-000001.*\.json: .*another model .*remove .*tokens\.npy\.parts"
    ):
        encode_part(load(other), out, Part(1, 2))
    marker = next((tmp_path / "tokens.npy.parts").glob("*.json"))
    for content in ("", "[1]", "{}", json.dumps({"sha256": 1})):
        marker.write_text(content)
        with pytest.raises(DataError, match="part"):
            encode_part(tokenizer, out, Part(1, 2))


def test_parts_of_changed_data_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data, out = tmp_path / "data.npy", tmp_path / "tokens.npy"
    np.save(data, normal(300, 2, 256, seed=1))
    encode_part(tokenizer, out, Part(1, 2), str(data))
    np.save(data, normal(300, 2, 256, seed=2))
    with pytest.raises(
        DataError, match=r"tokens\.npy\.parts/part-000001.*\.json: .*another model .*remove .*tokens\.npy\.parts"
    ):
        encode_part(tokenizer, out, Part(2, 2), str(data))


def test_existing_output_of_changed_data_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data, out = tmp_path / "data.npy", tmp_path / "tokens.npy"
    np.save(data, normal(300, 2, 256, seed=1))
    finished = encode_part(tokenizer, out, Part(1, 1), str(data))
    assert finished
    assert encode_part(tokenizer, out, Part(1, 1), str(data)) == finished
    np.save(data, normal(300, 2, 256, seed=2))
    with pytest.raises(DataError, match=r"tokens\.npy: .*exists.*--overwrite"):
        encode_part(tokenizer, out, Part(1, 1), str(data))


def test_existing_file_at_the_output_path_is_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokens.npy").write_text("notes")
    with pytest.raises(DataError, match=r"tokens\.npy: .*exists.*--overwrite"):
        encode_part(tokenizer, tmp_path / "tokens.npy", Part(1, 1))
    assert (tmp_path / "tokens.npy").read_text() == "notes"


def test_encode_part_command(trained: TrainedRun, tmp_path: Path, vqtool: Command) -> None:
    assert vqtool("encode", trained.folder, "--out", tmp_path / "reference.npy").code == 0
    first = vqtool("encode", trained.folder, "--out", tmp_path / "t.npy", "--part", "1/2", "--json")
    printed = json.loads(first.out)
    incomplete = {"out": str(tmp_path / "t.npy"), "part": 1, "of": 2, "joined": False}
    if printed != incomplete:  # all rows are in one chunk, so part 1 has no rows, or all
        assert printed["shape"][0] == 60
    assert vqtool("encode", trained.folder, "--out", tmp_path / "t.npy", "--part", "2/2").code == 0
    assert files(tmp_path / "t.npy") == files(tmp_path / "reference.npy")


@pytest.mark.parametrize(("options", "rank"), [(["--part", "1/2"], None), ([], "1")])
def test_unique_refuses_parts(
    options: list[str],
    rank: str | None,
    trained: TrainedRun,
    tmp_path: Path,
    vqtool: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if rank:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
    refused = vqtool("encode", trained.folder, "--out", tmp_path / "u.npy", "--unique", *options)
    assert refused.code == 2
    assert "--unique" in refused.err
    assert not (tmp_path / "u.npy").exists()


def test_parts_of_vectors_with_thousands_of_rows_per_chunk(tmp_path: Path) -> None:
    run = make_run(tmp_path, normal(9000, 4), IDENTITY)
    tokenizer = load(run)
    encode_file(tokenizer, tmp_path / "reference.npy")
    for number in (2, 1, 3):
        encode_part(tokenizer, tmp_path / "parts.npy", Part(number, 3))
    assert files(tmp_path / "parts.npy") == files(tmp_path / "reference.npy")
    assert np.load(tmp_path / "parts.npy").shape == (9000, 1)
    shutil.rmtree(tmp_path / "run")
