"""Whole files through a tokenizer: data to an index file, and back."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests import CONV2D, IDENTITY, MLP, files, make_run, normal, save
from tests.conftest import TrainedRun
from vqtool import load
from vqtool.config import RunSettings
from vqtool.errors import DataError
from vqtool.inference.tokenizer import Tokenizer
from vqtool.inference.transcode import decode_file, encode_file, encode_unique_file
from vqtool.runs.index_file import read_indices, writing_indices
from vqtool.training import train


def test_encode_takes_the_runs_own_data_whole_and_in_order(trained: TrainedRun, tmp_path: Path) -> None:
    tokenizer = load(trained.folder)
    encode_file(tokenizer, tmp_path / "own.npy")
    encode_file(tokenizer, tmp_path / "named.npy", str(trained.data))
    assert files(tmp_path / "own.npy") == files(tmp_path / "named.npy")
    assert np.array_equal(np.load(tmp_path / "own.npy"), tokenizer.encode(trained.array).numpy())


def test_synthetic_data_are_made_again(tmp_path: Path) -> None:
    data = {"kind": "synthetic", "samples": 32, "source": {"kind": "gaussian", "dim": 3}}
    blocks = {
        "name": "made",
        "seed": 5,
        "data": data,
        "model": {"encoder": IDENTITY, "quantizer": {"kind": "vector", "codebook_size": 4}},
        "training": {"steps": 1, "batch_size": 8, "device": "cpu"},
    }
    train(RunSettings.model_validate(blocks), tmp_path / "run")
    tokenizer = load(tmp_path / "run")
    encode_file(tokenizer, tmp_path / "tokens.npy")
    array = np.random.default_rng(5).standard_normal((32, 3), dtype=np.float32)
    assert np.array_equal(np.load(tmp_path / "tokens.npy"), tokenizer.encode(array).numpy())


def test_indices_of_another_model_are_refused(trained: TrainedRun, tmp_path: Path) -> None:
    encode_file(load(trained.folder), tmp_path / "tokens.npy")
    run = make_run(tmp_path, trained.array, CONV2D)
    with pytest.raises(
        DataError, match=r"tokens.npy: written by another model \([0-9a-f]{12}\.\.\.\), .*\([0-9a-f]{12}\.\.\.\)"
    ):
        decode_file(load(run), tmp_path / "tokens.npy", tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


def test_an_index_out_of_range_is_named_by_its_row_in_the_file(
    trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, path = load(trained.folder), tmp_path / "tokens.npy"
    encode_file(tokenizer, path)
    indices = np.load(path)
    indices[50, 3] = 16
    np.save(path, indices)
    monkeypatch.setattr("vqtool.inference.transcode.chunk_rows", lambda *_: 8)
    with pytest.raises(DataError, match=r"tokens\.npy: index 16 in row 50 .*0 to 15$"):
        decode_file(tokenizer, path, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


def test_outputs_that_are_there_are_kept(trained: TrainedRun, tmp_path: Path) -> None:
    tokenizer, out = load(trained.folder), tmp_path / "tokens.npy"
    encode_file(tokenizer, out)
    before = files(out)
    with pytest.raises(DataError, match=r"tokens.npy: already exists; .*--overwrite"):
        encode_file(tokenizer, out)
    with pytest.raises(DataError, match="already exists"):
        decode_file(tokenizer, out, out)
    assert files(out) == before
    encode_file(tokenizer, out, overwrite=True)
    assert files(out) == before


def test_a_stranger_under_the_manifests_name_is_kept(trained: TrainedRun, tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("mine")
    with pytest.raises(DataError, match=r"tokens\.json: already exists"):
        encode_file(load(trained.folder), tmp_path / "tokens.npy")
    assert (tmp_path / "tokens.json").read_text() == "mine"


# Levels


@pytest.mark.parametrize("kind", ["residual", "product"])
def test_levels_stand_on_an_axis_of_their_own(tmp_path: Path, kind: str) -> None:
    inner = {"kind": "vector", "codebook_size": 4}
    quantizer = {"kind": kind, {"residual": "levels", "product": "groups"}[kind]: 2, "quantizer": inner}
    array = normal(24, 4, 5)
    tokenizer = load(make_run(tmp_path, array, IDENTITY, quantizer=quantizer, layout="CT"))
    manifest = encode_file(tokenizer, tmp_path / "tokens.npy")
    tokens = np.load(tmp_path / "tokens.npy")
    assert (tokens.shape, tokens.dtype) == ((24, 5, 2), np.uint8)
    assert (manifest.shape, manifest.grid, manifest.codebook_sizes) == ([24, 5, 2], [5], [4, 4])
    assert np.array_equal(tokens, tokenizer.encode(array))
    decode_file(tokenizer, tmp_path / "tokens.npy", tmp_path / "decoded.npy")
    assert np.array_equal(np.load(tmp_path / "decoded.npy"), tokenizer.decode(tokens))


def test_one_level_still_has_its_axis(tmp_path: Path) -> None:
    quantizer = {"kind": "residual", "levels": 1, "quantizer": {"kind": "vector", "codebook_size": 4}}
    tokenizer = load(make_run(tmp_path, normal(24, 4), IDENTITY, quantizer=quantizer))
    assert encode_file(tokenizer, tmp_path / "tokens.npy").shape == [24, 1, 1]


@pytest.mark.parametrize("levels", [1, 2])
def test_the_first_levels_decode_to_the_sum_of_their_codes(catalogue: TrainedRun, tmp_path: Path, levels: int) -> None:
    tokenizer = load(catalogue.folder)
    encode_file(tokenizer, tmp_path / "tokens.npy")
    decode_file(tokenizer, tmp_path / "tokens.npy", tmp_path / "decoded.npy", levels=levels)
    tokens = torch.from_numpy(np.load(tmp_path / "tokens.npy")).long()
    codes = sum(tokenizer.codebook[level][tokens[..., level]] for level in range(levels))
    by_hand = tokenizer.model.modality.restore(tokenizer.model.decoder(codes, ()))
    np.testing.assert_allclose(np.load(tmp_path / "decoded.npy"), by_hand, rtol=1e-5, atol=1e-6)


def test_every_level_lowers_the_error(catalogue: TrainedRun) -> None:
    tokenizer = load(catalogue.folder)
    indices = tokenizer.encode(catalogue.array)
    errors = [np.square(tokenizer.decode(indices, levels=q).numpy() - catalogue.array).mean() for q in (1, 2)]
    assert errors[1] < 0.9 * errors[0] < 0.9 * catalogue.array.var()


# Unique ids


def ids(path: Path) -> list[tuple[int, ...]]:
    return [tuple(row) for row in np.load(path).reshape(len(np.load(path)), -1).tolist()]


def test_a_level_more_makes_every_row_unique(catalogue: TrainedRun, tmp_path: Path) -> None:
    tokenizer = load(catalogue.folder)
    plain = encode_file(tokenizer, tmp_path / "plain.npy")
    manifest = encode_unique_file(tokenizer, tmp_path / "unique.npy")
    tokens = np.load(tmp_path / "unique.npy")
    assert np.array_equal(tokens[..., :-1], np.load(tmp_path / "plain.npy"))
    seen: Counter[tuple[int, ...]] = Counter()
    for row, number in zip(ids(tmp_path / "plain.npy"), tokens[:, 0, -1].tolist(), strict=True):
        assert number == seen[row]
        seen[row] += 1
    assert len(seen) < 60 == len(set(ids(tmp_path / "unique.npy")))
    sizes = [4, 4, max(seen.values())]
    assert manifest == replace(plain, shape=[60, 1, 3], codebook_sizes=sizes, unique=True)
    assert read_indices(tmp_path / "unique.npy")[1] == manifest


def test_where_no_two_rows_are_alike_the_level_more_has_one_number(tmp_path: Path) -> None:
    array = 100 * np.eye(4, dtype=np.float32)
    quantizer = {"kind": "vector", "codebook_size": 4}
    tokenizer = load(make_run(tmp_path, np.repeat(array, 8, axis=0), IDENTITY, quantizer=quantizer))
    manifest = encode_unique_file(tokenizer, tmp_path / "tokens.npy", str(save(tmp_path, array, "four")))
    assert (manifest.shape, manifest.codebook_sizes) == ([4, 1, 2], [4, 1])
    assert sorted(ids(tmp_path / "tokens.npy")) == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_many_equal_rows_need_a_wider_type(catalogue: TrainedRun, tmp_path: Path) -> None:
    path = save(tmp_path, np.repeat(catalogue.array[:1], 257, axis=0), "same")
    tokenizer = load(catalogue.folder)
    for rows, dtype in ((256, np.uint8), (257, np.uint16)):
        np.save(path, np.repeat(catalogue.array[:1], rows, axis=0))
        manifest = encode_unique_file(tokenizer, tmp_path / "tokens.npy", str(path), overwrite=True)
        tokens = np.load(tmp_path / "tokens.npy")
        assert (tokens.dtype, manifest.dtype, manifest.codebook_sizes[-1]) == (dtype, np.dtype(dtype).name, rows)
        assert tokens[:, 0, -1].tolist() == list(range(rows))


def test_the_batch_size_changes_no_byte_of_unique_ids(catalogue: TrainedRun, tmp_path: Path) -> None:
    tokenizer = load(catalogue.folder)
    for size in (1, 4096):
        encode_unique_file(tokenizer, tmp_path / f"{size}.npy", batch_size=size)
    assert files(tmp_path / "1.npy") == files(tmp_path / "4096.npy")


@pytest.mark.parametrize("levels", [None, 1, 2])
def test_what_makes_rows_unique_does_not_reach_the_decoder(
    catalogue: TrainedRun, tmp_path: Path, levels: int | None
) -> None:
    tokenizer = load(catalogue.folder)
    encode_file(tokenizer, tmp_path / "plain.npy")
    encode_unique_file(tokenizer, tmp_path / "unique.npy")
    for name in ("plain", "unique"):
        decode_file(tokenizer, tmp_path / f"{name}.npy", tmp_path / f"{name}_decoded.npy", levels=levels)
    assert (tmp_path / "plain_decoded.npy").read_bytes() == (tmp_path / "unique_decoded.npy").read_bytes()


def test_one_codebook_has_unique_ids_too(tmp_path: Path) -> None:
    array = normal(40, 6)
    tokenizer = load(make_run(tmp_path, array, {**MLP, "num_tokens": 1}, dim=4))
    encode_file(tokenizer, tmp_path / "plain.npy")
    manifest = encode_unique_file(tokenizer, tmp_path / "unique.npy")
    assert (manifest.shape, manifest.codebook_sizes[0]) == ([40, 1, 2], 16)
    assert np.array_equal(np.load(tmp_path / "unique.npy")[..., 0], np.load(tmp_path / "plain.npy"))
    assert len(set(ids(tmp_path / "unique.npy"))) == 40
    decode_file(tokenizer, tmp_path / "unique.npy", tmp_path / "decoded.npy")
    assert np.array_equal(np.load(tmp_path / "decoded.npy"), tokenizer.decode(tokenizer.encode(array)))


def test_samples_of_several_positions_have_no_unique_ids(trained: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--unique: requires one token .*16 \(grid \(4, 4\)\); .*num_tokens: 1"):
        encode_unique_file(load(trained.folder), tmp_path / "tokens.npy")
    assert not list(tmp_path.iterdir())


def test_an_output_of_unique_ids_that_is_there_is_kept(catalogue: TrainedRun, tmp_path: Path) -> None:
    tokenizer, out = load(catalogue.folder), tmp_path / "tokens.npy"
    encode_unique_file(tokenizer, out)
    before = files(out)
    with pytest.raises(DataError, match="already exists"):
        encode_unique_file(tokenizer, out)
    assert files(out) == before
    encode_unique_file(tokenizer, out, overwrite=True)
    assert files(out) == before


# Catalogues that grow


@dataclass
class Grown:
    """A tokenizer, the published ids of its first rows, and data with more rows after them."""

    tokenizer: Tokenizer
    old: Path
    array: NDArray[np.float32]

    def extend(self, array: NDArray[np.float32], name: str = "new") -> NDArray[Any]:
        """The ids (N, 3) of an array, in a file of that name."""
        out, data = self.old.with_name(f"{name}.npy"), save(self.old.parent, array)
        encode_unique_file(self.tokenizer, out, str(data), extend=self.old)
        found: NDArray[Any] = np.load(out)[:, 0]
        return found


@pytest.fixture
def grown(catalogue: TrainedRun, tmp_path: Path) -> Grown:
    tokenizer = load(catalogue.folder)
    encode_unique_file(tokenizer, tmp_path / "old.npy")
    return Grown(tokenizer, tmp_path / "old.npy", np.concatenate([catalogue.array, normal(30, 6, seed=5)]))


def test_ids_that_are_published_stay(grown: Grown) -> None:
    found = grown.extend(grown.array)
    assert np.array_equal(found[:60], np.load(grown.old)[:, 0])
    assert len(set(map(tuple, found.tolist()))) == 90
    encode_unique_file(grown.tokenizer, grown.old.with_name("afresh.npy"), str(grown.old.with_name("data.npy")))
    assert files(grown.old.with_name("afresh.npy")) == files(grown.old.with_name("new.npy"))


def test_they_stay_in_whatever_order_and_with_whatever_gaps(grown: Grown) -> None:
    tokens, manifest = read_indices(grown.old)
    changed = np.array(tokens)
    changed[:, 0, -1] = 59 - np.arange(60) + 40 * (np.arange(60) < 30)
    wider = replace(manifest, codebook_sizes=[4, 4, 100])
    with writing_indices(grown.old, wider.shape, wider.dtype, lambda: wider) as array:
        array[:] = changed
    found = grown.extend(grown.array)
    assert np.array_equal(found[:60], changed[:, 0])
    assert len(set(map(tuple, found.tolist()))) == 90
    for row in range(60, 90):
        like = (found[:row, :-1] == found[row, :-1]).all(axis=1)
        assert found[row, -1] == max(found[:row][like, -1].tolist(), default=-1) + 1
    assert read_indices(grown.old.with_name("new.npy"))[1].codebook_sizes == [4, 4, int(found[:, -1].max()) + 1]


def test_a_catalogue_grows_again_and_again(grown: Grown) -> None:
    once = grown.extend(grown.array[:75], "once")
    grown.old = grown.old.with_name("once.npy")
    assert np.array_equal(grown.extend(grown.array, "twice")[:75], once)


def test_without_new_rows_nothing_changes(grown: Grown) -> None:
    before = np.load(grown.old)[:, 0]
    assert np.array_equal(grown.extend(grown.array[:60]), before)


def test_the_type_widens_where_numbers_need_it(grown: Grown) -> None:
    before = np.load(grown.old)[:, 0]
    found = grown.extend(np.concatenate([grown.array[:60], np.repeat(grown.array[:1], 256, axis=0)]))
    assert (before.dtype, found.dtype) == (np.uint8, np.uint16)
    assert np.array_equal(found[:60], before)


def test_a_file_can_be_extended_in_its_place(grown: Grown) -> None:
    expected = grown.extend(grown.array)
    encode_unique_file(
        grown.tokenizer, grown.old, str(grown.old.with_name("data.npy")), overwrite=True, extend=grown.old
    )
    assert np.array_equal(np.load(grown.old)[:, 0], expected)
    assert files(grown.old) == files(grown.old.with_name("new.npy"))


def unlike(codes: NDArray[Any], row: int) -> int:
    """A row of other codes."""
    return int((codes != codes[row]).any(axis=1).nonzero()[0][0])


def test_a_row_that_has_changed_is_named(grown: Grown) -> None:
    codes = np.load(grown.old)[:, 0, :-1]
    other = unlike(codes, 17)
    grown.array[17] = grown.array[other]
    with pytest.raises(DataError) as error:
        grown.extend(grown.array)
    told = f"row 17, codes {codes[17].tolist()} in the file, {codes[other].tolist()} in the data"
    assert f"old.npy: 1 of its rows do not match the data (first: {told})" in str(error.value)
    assert not grown.old.with_name("new.npy").exists()


def test_a_row_that_has_moved_is_named(grown: Grown) -> None:
    codes = np.load(grown.old)[:, 0, :-1]
    other = unlike(codes, 17)
    grown.array[[17, other]] = grown.array[[other, 17]]
    with pytest.raises(DataError, match=rf"old\.npy: 2 of its rows do not match .*row {min(17, other)}, codes "):
        grown.extend(grown.array)


def test_fewer_rows_than_are_published_are_refused(grown: Grown) -> None:
    with pytest.raises(DataError, match=r"old\.npy: has 60 rows, but the data have only 59"):
        grown.extend(grown.array[:59])


def test_ids_that_are_not_unique_cannot_be_extended(grown: Grown) -> None:
    encode_file(grown.tokenizer, grown.old, overwrite=True)
    with pytest.raises(DataError, match=r"old\.npy: not written with --unique"):
        grown.extend(grown.array)


def test_ids_that_were_made_alike_since_cannot_be_extended(grown: Grown) -> None:
    tokens, manifest = read_indices(grown.old)
    changed = np.array(tokens)
    changed[[17, 23]] = changed[3]
    with writing_indices(grown.old, manifest.shape, manifest.dtype, lambda: manifest) as array:
        array[:] = changed
    with pytest.raises(DataError, match=r"old\.npy: damaged: 2 rows .*row 17, id "):
        grown.extend(grown.array)
    assert not grown.old.with_name("new.npy").exists()


def test_ids_of_another_model_cannot_be_extended(grown: Grown, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    run = make_run(tmp_path / "other", grown.array, {**MLP, "num_tokens": 1}, dim=4)
    grown.tokenizer = load(run)
    with pytest.raises(DataError, match=r"old\.npy: written by another model \([0-9a-f]{12}\.\.\.\), .*extend it with"):
        grown.extend(grown.array)


def test_ids_that_are_not_there_cannot_be_extended(grown: Grown) -> None:
    grown.old = grown.old.with_name("gone.npy")
    with pytest.raises(DataError, match=r"gone\.npy: does not exist"):
        grown.extend(grown.array)


# Manifests that say what is not so


@pytest.mark.parametrize("kind", ["vector", "residual"])
def test_a_plain_file_that_is_said_to_be_unique_is_refused(
    kind: str, trained: TrainedRun, catalogue: TrainedRun, tmp_path: Path
) -> None:
    tokenizer = load({"vector": trained, "residual": catalogue}[kind].folder)
    encode_file(tokenizer, tmp_path / "tokens.npy")
    manifest = json.loads((tmp_path / "tokens.json").read_text())
    (tmp_path / "tokens.json").write_text(json.dumps({**manifest, "unique": True}))
    with pytest.raises(DataError):
        decode_file(tokenizer, tmp_path / "tokens.npy", tmp_path / "decoded.npy")
