"""Unique semantic ids: numbering of duplicates, encoding with --unique, and extension of published ids."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests import IDENTITY, MLP, files, make_run, normal, save
from tests.cli import mentions
from tests.conftest import TrainedRun
from vqtool import load
from vqtool.errors import DataError
from vqtool.inference.decode import decode_file
from vqtool.inference.encode import encode_file
from vqtool.inference.semantic_ids import duplicate_numbers, encode_unique_file
from vqtool.inference.tokenizer import Tokenizer
from vqtool.runs.index_file import atomic_write_indices, read_indices

# Numbering


DTYPES = [np.uint8, np.uint16, np.uint32, np.int64]


@st.composite
def id_rows(draw: st.DrawFn) -> NDArray[Any]:
    """Return ids (N, Q) of few codes, so that some are equal, with the smallest and largest codes of their dtype."""
    dtype = draw(st.sampled_from(DTYPES))
    rows, levels = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = [0, 1, 255, int(np.iinfo(dtype).max) - 1, int(np.iinfo(dtype).max)][: draw(st.integers(1, 5))]
    return random.choice(np.array(codes, dtype=dtype), (rows, levels))


def number_with_a_loop(rows: NDArray[Any], published: Sequence[int] | NDArray[Any] = ()) -> list[int]:
    """Number rows as `duplicate_numbers` does: after the largest number of their id so far."""
    next_number: dict[tuple[int, ...], int] = defaultdict(int)
    numbers: list[int] = []
    for position, row in enumerate(map(tuple, rows.tolist())):
        number = int(published[position]) if position < len(published) else next_number[row]
        numbers.append(number)
        next_number[row] = max(next_number[row], number + 1)
    return numbers


def test_rows_of_a_strided_view_are_numbered() -> None:
    rows = np.random.default_rng(0).integers(0, 3, (3, 100), dtype=np.uint16).T[::-1]
    assert duplicate_numbers(rows).tolist() == number_with_a_loop(rows)


@settings(deadline=None, max_examples=100)
@given(id_rows())
def test_duplicate_numbers_equal_a_loop_and_make_rows_unique(rows: NDArray[Any]) -> None:
    numbers = duplicate_numbers(rows)
    assert numbers.dtype == np.int64
    assert numbers.tolist() == number_with_a_loop(rows)
    assert len(set(zip(map(tuple, rows.tolist()), numbers.tolist(), strict=True))) == len(rows)


@settings(deadline=None, max_examples=100)
@given(id_rows(), st.integers(0, 40))
def test_numbering_in_two_steps_equals_numbering_at_once(rows: NDArray[Any], old: int) -> None:
    published = duplicate_numbers(rows[: min(old, len(rows))]) if old else np.zeros(0, dtype=np.uint8)
    assert duplicate_numbers(rows, published).tolist() == duplicate_numbers(rows).tolist()


@settings(deadline=None, max_examples=100)
@given(id_rows(), st.data())
def test_published_numbers_are_kept(rows: NDArray[Any], data: st.DataObject) -> None:
    """Also with gaps and in any order; new rows get other numbers."""
    old = data.draw(st.integers(0, len(rows)))
    published = np.array(data.draw(st.permutations(range(0, 7 * old, 7))), dtype=np.uint16)
    numbers = duplicate_numbers(rows, published)
    assert numbers[:old].tolist() == published.tolist()
    assert numbers.tolist() == number_with_a_loop(rows, published)
    assert len(set(zip(map(tuple, rows.tolist()), numbers.tolist(), strict=True))) == len(rows)


def test_new_rows_continue_after_the_largest_published_number() -> None:
    rows = np.array([[1], [1], [2], [1], [2], [3], [1]], dtype=np.uint8)
    assert duplicate_numbers(rows, np.array([5, 0, 3], dtype=np.uint8)).tolist() == [5, 0, 3, 6, 4, 0, 7]


def test_largest_number_of_the_dtype_does_not_overflow() -> None:
    rows = np.zeros((3, 1), dtype=np.uint8)
    assert duplicate_numbers(rows, np.array([255], dtype=np.uint8)).tolist() == [255, 256, 257]


def test_many_rows_with_one_id_are_numbered_in_row_order() -> None:
    rows = np.repeat(np.array([[7, 7]], dtype=np.uint8), 70_000, axis=0)
    assert np.array_equal(duplicate_numbers(rows), np.arange(70_000))


# Files with unique ids


def ids(path: Path) -> list[tuple[int, ...]]:
    return [tuple(row) for row in np.load(path).reshape(len(np.load(path)), -1).tolist()]


def test_appended_level_makes_every_id_unique(catalogue: TrainedRun, tmp_path: Path) -> None:
    tokenizer = load(catalogue.folder)
    plain = encode_file(tokenizer, tmp_path / "plain.npy")
    manifest = encode_unique_file(tokenizer, tmp_path / "unique.npy")
    tokens = np.load(tmp_path / "unique.npy")
    assert np.array_equal(tokens[..., :-1], np.load(tmp_path / "plain.npy"))
    counts: Counter[tuple[int, ...]] = Counter()
    for row, number in zip(ids(tmp_path / "plain.npy"), tokens[:, 0, -1].tolist(), strict=True):
        assert number == counts[row]
        counts[row] += 1
    assert len(counts) < 60 == len(set(ids(tmp_path / "unique.npy")))
    sizes = [4, 4, max(counts.values())]
    assert manifest == replace(plain, shape=[60, 1, 3], codebook_sizes=sizes, unique=True)
    assert read_indices(tmp_path / "unique.npy")[1] == manifest


def test_without_collisions_the_appended_level_has_size_1(tmp_path: Path) -> None:
    array = 100 * np.eye(4, dtype=np.float32)
    quantizer = {"kind": "vector", "codebook_size": 4}
    tokenizer = load(make_run(tmp_path, np.repeat(array, 8, axis=0), IDENTITY, quantizer=quantizer))
    manifest = encode_unique_file(tokenizer, tmp_path / "tokens.npy", str(save(tmp_path, array, "four")))
    assert (manifest.shape, manifest.codebook_sizes) == ([4, 1, 2], [4, 1])
    assert sorted(ids(tmp_path / "tokens.npy")) == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_dtype_holds_the_largest_duplicate_number(catalogue: TrainedRun, tmp_path: Path) -> None:
    path = save(tmp_path, np.repeat(catalogue.array[:1], 257, axis=0), "same")
    tokenizer = load(catalogue.folder)
    for rows, dtype in ((256, np.uint8), (257, np.uint16)):
        np.save(path, np.repeat(catalogue.array[:1], rows, axis=0))
        manifest = encode_unique_file(tokenizer, tmp_path / "tokens.npy", str(path), overwrite=True)
        tokens = np.load(tmp_path / "tokens.npy")
        assert (tokens.dtype, manifest.dtype, manifest.codebook_sizes[-1]) == (dtype, np.dtype(dtype).name, rows)
        assert tokens[:, 0, -1].tolist() == list(range(rows))


def test_unique_ids_do_not_depend_on_batch_size(catalogue: TrainedRun, tmp_path: Path) -> None:
    tokenizer = load(catalogue.folder)
    for size in (1, 4096):
        encode_unique_file(tokenizer, tmp_path / f"{size}.npy", batch_size=size)
    assert files(tmp_path / "1.npy") == files(tmp_path / "4096.npy")


@pytest.mark.parametrize("levels", [None, 1, 2])
def test_appended_level_is_not_decoded(catalogue: TrainedRun, tmp_path: Path, levels: int | None) -> None:
    tokenizer = load(catalogue.folder)
    encode_file(tokenizer, tmp_path / "plain.npy")
    encode_unique_file(tokenizer, tmp_path / "unique.npy")
    for name in ("plain", "unique"):
        decode_file(tokenizer, tmp_path / f"{name}.npy", tmp_path / f"{name}_decoded.npy", levels=levels)
    assert (tmp_path / "plain_decoded.npy").read_bytes() == (tmp_path / "unique_decoded.npy").read_bytes()


def test_unique_ids_with_one_codebook(tmp_path: Path) -> None:
    array = normal(40, 6)
    tokenizer = load(make_run(tmp_path, array, {**MLP, "num_tokens": 1}, dim=4))
    encode_file(tokenizer, tmp_path / "plain.npy")
    manifest = encode_unique_file(tokenizer, tmp_path / "unique.npy")
    assert (manifest.shape, manifest.codebook_sizes[0]) == ([40, 1, 2], 16)
    assert np.array_equal(np.load(tmp_path / "unique.npy")[..., 0], np.load(tmp_path / "plain.npy"))
    assert len(set(ids(tmp_path / "unique.npy"))) == 40
    decode_file(tokenizer, tmp_path / "unique.npy", tmp_path / "decoded.npy")
    assert np.array_equal(np.load(tmp_path / "decoded.npy"), tokenizer.decode(tokenizer.encode(array)))


def test_unique_requires_one_token_per_sample(trained: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--unique: .*16 .*\(4, 4\).*num_tokens: 1"):
        encode_unique_file(load(trained.folder), tmp_path / "tokens.npy")
    assert not list(tmp_path.iterdir())


def test_existing_unique_ids_are_kept_without_overwrite(catalogue: TrainedRun, tmp_path: Path) -> None:
    tokenizer, out = load(catalogue.folder), tmp_path / "tokens.npy"
    encode_unique_file(tokenizer, out)
    before = files(out)
    with pytest.raises(DataError, match=r"tokens\.npy: .*exists"):
        encode_unique_file(tokenizer, out)
    assert files(out) == before
    encode_unique_file(tokenizer, out, overwrite=True)
    assert files(out) == before


# Extension of published ids


@dataclass
class GrowingCatalogue:
    """A tokenizer, an index file with unique ids of the first 60 rows, and an array with 30 rows more."""

    tokenizer: Tokenizer
    old: Path
    array: NDArray[np.float32]

    def extend(self, array: NDArray[np.float32], name: str = "new") -> NDArray[Any]:
        """Write the ids of an array that extend the published ids to NAME.npy, and return them, (N, 3)."""
        out, data = self.old.with_name(f"{name}.npy"), save(self.old.parent, array)
        encode_unique_file(self.tokenizer, out, str(data), extend=self.old)
        ids: NDArray[Any] = np.load(out)[:, 0]
        return ids


@pytest.fixture
def growing(catalogue: TrainedRun, tmp_path: Path) -> GrowingCatalogue:
    tokenizer = load(catalogue.folder)
    encode_unique_file(tokenizer, tmp_path / "old.npy")
    return GrowingCatalogue(tokenizer, tmp_path / "old.npy", np.concatenate([catalogue.array, normal(30, 6, seed=5)]))


def test_extend_keeps_published_ids(growing: GrowingCatalogue) -> None:
    new = growing.extend(growing.array)
    assert np.array_equal(new[:60], np.load(growing.old)[:, 0])
    assert len(set(map(tuple, new.tolist()))) == 90
    encode_unique_file(
        growing.tokenizer, growing.old.with_name("from_scratch.npy"), str(growing.old.with_name("data.npy"))
    )
    assert files(growing.old.with_name("from_scratch.npy")) == files(growing.old.with_name("new.npy"))


def test_extend_keeps_published_numbers_in_any_order_and_with_gaps(growing: GrowingCatalogue) -> None:
    tokens, manifest = read_indices(growing.old)
    changed = np.array(tokens)
    changed[:, 0, -1] = 59 - np.arange(60) + 40 * (np.arange(60) < 30)
    wider = replace(manifest, codebook_sizes=[4, 4, 100])
    with atomic_write_indices(growing.old, wider.shape, wider.dtype, lambda: wider) as array:
        array[:] = changed
    new = growing.extend(growing.array)
    assert np.array_equal(new[:60], changed[:, 0])
    assert len(set(map(tuple, new.tolist()))) == 90
    for row in range(60, 90):
        same_codes = (new[:row, :-1] == new[row, :-1]).all(axis=1)
        assert new[row, -1] == max(new[:row][same_codes, -1].tolist(), default=-1) + 1
    assert read_indices(growing.old.with_name("new.npy"))[1].codebook_sizes == [4, 4, int(new[:, -1].max()) + 1]


def test_extend_can_be_repeated(growing: GrowingCatalogue) -> None:
    once = growing.extend(growing.array[:75], "once")
    growing.old = growing.old.with_name("once.npy")
    assert np.array_equal(growing.extend(growing.array, "twice")[:75], once)


def test_extend_without_new_rows_changes_nothing(growing: GrowingCatalogue) -> None:
    before = np.load(growing.old)[:, 0]
    assert np.array_equal(growing.extend(growing.array[:60]), before)


def test_extend_widens_the_dtype_if_needed(growing: GrowingCatalogue) -> None:
    before = np.load(growing.old)[:, 0]
    new = growing.extend(np.concatenate([growing.array[:60], np.repeat(growing.array[:1], 256, axis=0)]))
    assert (before.dtype, new.dtype) == (np.uint8, np.uint16)
    assert np.array_equal(new[:60], before)


def test_extend_in_place(growing: GrowingCatalogue) -> None:
    expected = growing.extend(growing.array)
    encode_unique_file(
        growing.tokenizer, growing.old, str(growing.old.with_name("data.npy")), overwrite=True, extend=growing.old
    )
    assert np.array_equal(np.load(growing.old)[:, 0], expected)
    assert files(growing.old) == files(growing.old.with_name("new.npy"))


def row_with_other_codes(codes: NDArray[Any], row: int) -> int:
    """Return the number of the first row whose codes differ from those of `row`."""
    return int((codes != codes[row]).any(axis=1).nonzero()[0][0])


def test_extend_names_a_changed_row(growing: GrowingCatalogue) -> None:
    codes = np.load(growing.old)[:, 0, :-1]
    other = row_with_other_codes(codes, 17)
    growing.array[17] = growing.array[other]
    with pytest.raises(DataError) as error:
        growing.extend(growing.array)
    expected = f"old.npy: 1 ... row 17, ... {codes[17].tolist()} ... {codes[other].tolist()}"
    assert mentions(str(error.value), expected)
    assert not growing.old.with_name("new.npy").exists()


def test_extend_names_a_moved_row(growing: GrowingCatalogue) -> None:
    codes = np.load(growing.old)[:, 0, :-1]
    other = row_with_other_codes(codes, 17)
    growing.array[[17, other]] = growing.array[[other, 17]]
    with pytest.raises(DataError, match=rf"old\.npy: 2 .*row {min(17, other)}, "):
        growing.extend(growing.array)


def test_extend_refuses_fewer_rows_than_published(growing: GrowingCatalogue) -> None:
    with pytest.raises(DataError, match=r"old\.npy: .*60 .*59"):
        growing.extend(growing.array[:59])


def test_extend_refuses_a_file_without_unique_ids(growing: GrowingCatalogue) -> None:
    encode_file(growing.tokenizer, growing.old, overwrite=True)
    with pytest.raises(DataError, match=r"old\.npy: .*--unique"):
        growing.extend(growing.array)


def test_extend_refuses_published_ids_with_duplicates(growing: GrowingCatalogue) -> None:
    tokens, manifest = read_indices(growing.old)
    changed = np.array(tokens)
    changed[[17, 23]] = changed[3]
    with atomic_write_indices(growing.old, manifest.shape, manifest.dtype, lambda: manifest) as array:
        array[:] = changed
    with pytest.raises(DataError, match=r"old\.npy: damaged: 2 .*row 17, "):
        growing.extend(growing.array)
    assert not growing.old.with_name("new.npy").exists()


def test_extend_refuses_ids_of_another_model(growing: GrowingCatalogue, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    run = make_run(tmp_path / "other", growing.array, {**MLP, "num_tokens": 1}, dim=4)
    published_by, growing.tokenizer = growing.tokenizer.model_sha256, load(run)
    with pytest.raises(DataError, match=rf"old\.npy: .*{published_by[:12]}.*{growing.tokenizer.model_sha256[:12]}"):
        growing.extend(growing.array)


def test_extend_refuses_a_missing_file(growing: GrowingCatalogue) -> None:
    growing.old = growing.old.with_name("gone.npy")
    with pytest.raises(DataError, match=r"gone\.npy: .*exist"):
        growing.extend(growing.array)
