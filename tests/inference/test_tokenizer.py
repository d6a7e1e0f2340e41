import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, mean_squared_error, r2_score

from tests import CONV1D, CONV2D, IDENTITY, MLP, QUERIES, TRANSFORMER, Block, files, make_run, normal, save
from tests.cli import mentions
from tests.conftest import TrainedRun
from vqtool import load
from vqtool.errors import CheckpointError, DataError
from vqtool.inference.decode import decode_file
from vqtool.inference.encode import encode_file
from vqtool.inference.tokenizer import EvaluationReport, Tokenizer, to_tensor
from vqtool.metrics.collisions import IdCounts
from vqtool.models.chunks import chunk_rows
from vqtool.quantizers import sinkhorn, vector
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory

PRODUCT = {"kind": "product", "groups": 2, "quantizer": {"kind": "vector", "codebook_size": 4}}

# Batch size and chunks


def on_near_ties(tokenizer: Tokenizer, data: NDArray[np.float32]) -> Tokenizer:
    """Set pairs of codes at equal distances from latents of the data, so that those latents are near ties."""
    latents = tokenizer.model.latents(torch.from_numpy(data[: chunk_rows(tokenizer.model, tokenizer.spec.size)]))
    points = latents.flatten(0, 1)[:: max(1, latents.numel() // (8 * latents.shape[2]))][:8]
    offset = torch.randn(points.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    tokenizer.codebook.copy_(torch.stack([points + offset, points - offset], dim=1).flatten(0, 1))
    return tokenizer


def save_codebook(tokenizer: Tokenizer, run: Path) -> Tokenizer:
    """Write the codes of a tokenizer to the model of its run, and load the run again."""
    tensors = load_file(run / "model.safetensors") | {"quantizer.codebook.weight": tokenizer.codebook.clone()}
    save_file(tensors, run / "model.safetensors")
    return load(run)


@pytest.mark.parametrize(
    ("encoder", "shape"),
    [(CONV2D, (1, 8, 8)), (MLP, (12,)), (CONV1D, (2, 37)), (QUERIES, (1, 8, 8)), (IDENTITY, (3, 20))],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_indices_of_near_ties_do_not_depend_on_batch_size(
    tmp_path: Path, encoder: Block, shape: tuple[int, ...]
) -> None:
    # Few distinct rows, each at many positions of a chunk: rounding that depends on the position would be detected.
    array = np.tile(normal(20, *shape), (40, *[1] * len(shape)))[np.random.default_rng(1).permutation(800)]
    run = make_run(tmp_path, array, encoder)
    tokenizer = save_codebook(on_near_ties(load(run), array), run)
    assert len(array) > 2 * chunk_rows(tokenizer.model, tokenizer.spec.size)
    for batch_size in (1, 300, 999, 1 << 20):
        encode_file(tokenizer, tmp_path / f"{batch_size}.npy", batch_size=batch_size)
    reference = files(tmp_path / "1.npy")
    assert all(files(tmp_path / f"{size}.npy") == reference for size in (300, 999, 1 << 20))
    assert torch.equal(tokenizer.encode(array), torch.from_numpy(np.load(tmp_path / "1.npy")).long())


def test_float32_midpoints_get_the_nearest_code_in_float64(tmp_path: Path) -> None:
    array = normal(64, 5)
    run = make_run(tmp_path, array, IDENTITY, normalize="none")
    tokenizer = load(run)
    codes = tokenizer.codebook.numpy()
    codes[:] = normal(16, 5, seed=3)
    rows = np.stack([(codes[a] + codes[b]) / 2 for a in range(16) for b in range(16)])
    exact = ((rows[:, None].astype(np.float64) - codes[None].astype(np.float64)) ** 2).sum(axis=2)
    assert tokenizer.encode(rows).flatten().tolist() == exact.argmin(axis=1).tolist()


@pytest.mark.parametrize("encoder", [CONV2D, TRANSFORMER, IDENTITY], ids=lambda encoder: encoder["kind"])
def test_every_encoder_input_is_one_aligned_chunk(tmp_path: Path, encoder: Block) -> None:
    array = normal(2100, 1, 6, 6)
    tokenizer = load(make_run(tmp_path, array, encoder, normalize="none"))
    rows = chunk_rows(tokenizer.model, (6, 6))
    assert rows == {"conv2d": 256, "transformer": 1024, "identity": 64}[encoder["kind"]]
    padded = np.zeros((-(-2100 // rows) * rows, 1, 6, 6), dtype=np.float32)
    padded[:2100] = array
    encoder_inputs: list[torch.Tensor] = []
    tokenizer.model.encoder.register_forward_pre_hook(lambda module, args: encoder_inputs.append(args[0].clone()))
    uses: dict[str, Callable[[], object]] = {
        "one": lambda: encode_file(tokenizer, tmp_path / "one.npy", batch_size=1),
        "some": lambda: encode_file(tokenizer, tmp_path / "some.npy", batch_size=rows + 1),
        "all": lambda: encode_file(tokenizer, tmp_path / "all.npy", batch_size=9999),
        "in Python": lambda: tokenizer.encode(array),
        "eval": lambda: tokenizer.evaluate(str(tmp_path / "data.npy")),
        "inspect": lambda: tokenizer.count_codes(str(tmp_path / "data.npy")),
    }
    for use in uses.values():
        encoder_inputs.clear()
        use()
        assert {tuple(x.shape) for x in encoder_inputs} == {(rows, 1, 6, 6)}
        inputs = sorted(x.numpy().tobytes() for x in encoder_inputs)  # in any order, because several threads encode
        assert inputs == sorted(chunk.tobytes() for chunk in np.split(padded, len(padded) // rows))


@pytest.mark.parametrize("num_tokens", [1, 3, 64, 5000])
def test_chunk_rows_of_mlp_tokenizers(tmp_path: Path, num_tokens: int) -> None:
    tokenizer = load(make_run(tmp_path, normal(16, 4), {**MLP, "width": 2, "num_tokens": num_tokens}, dim=1))
    rows = chunk_rows(tokenizer.model, ())
    assert rows == {1: 4096, 3: 1024, 64: 64, 5000: 1}[num_tokens]


def test_indices_do_not_depend_on_the_position_in_a_chunk(trained: TrainedRun) -> None:
    tokenizer = load(trained.folder)
    indices = tokenizer.encode(trained.array)
    assert torch.equal(tokenizer.encode(trained.array[::-1].copy()), indices.flip(0))
    assert torch.equal(torch.cat([tokenizer.encode(row[None]) for row in trained.array[:5]]), indices[:5])


def test_training_and_encoding_share_one_search(trained: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    searched_sizes: list[int] = []
    search = vector.nearest_codes

    def recording_search(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
        searched_sizes.append(len(vectors))
        return search(vectors, codebook)

    monkeypatch.setattr(vector, "nearest_codes", recording_search)
    monkeypatch.setattr(sinkhorn, "nearest_codes", recording_search)
    tokenizer = load(trained.folder)
    rows = chunk_rows(tokenizer.model, (8, 8))
    array = np.resize(trained.array, (rows, 1, 8, 8))
    tokenizer.model.train()
    in_training = tokenizer.model(torch.from_numpy(array)).quantizer.indices
    tokenizer.model.quantizer.discard()
    assert torch.equal(tokenizer.encode(array), in_training)
    assert searched_sizes == [rows * 16, rows * 16]


# Round trips


@dataclass
class Case:
    """An array, the run trained on it, and its tokens, decoded rows and evaluation."""

    array: NDArray[Any] | torch.Tensor
    run: Path
    tokens: Path
    decoded: NDArray[Any]
    report: EvaluationReport


def integers(high: int, *shape: int, dtype: Any) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


CASES: dict[str, tuple[NDArray[Any] | torch.Tensor, Block, Block]] = {
    "vectors": (5 + 3 * normal(40, 6), {**MLP, "num_tokens": 2}, {}),
    "float64 TC": (100 * normal(40, 37, 2).astype(np.float64), CONV1D, {}),
    "float16 CT": (normal(40, 2, 18).astype(np.float16), IDENTITY, {}),
    "CHW": (normal(40, 3, 9, 8), CONV2D, {}),
    "uint8 CHW": (integers(256, 40, 1, 8, 8, dtype=np.uint8), CONV2D, {}),
    "uint8 HWC": (integers(256, 40, 8, 9, 3, dtype=np.uint8), TRANSFORMER, {"normalize": "feature"}),
    "int16 CT": (integers(60000, 40, 1, 16, dtype=np.int64).astype(np.int16), CONV1D, {"layout": "CT"}),
    "float HW": (normal(40, 7, 6), CONV2D, {"layout": "HW"}),
    "bool CHW": (integers(2, 40, 1, 8, 8, dtype=bool), CONV2D, {}),
    "bool HW": (integers(2, 40, 6, 6, dtype=bool), CONV2D, {}),
    "int64 HW": (integers(5, 40, 7, 6, dtype=np.int64), CONV2D, {}),
    "uint8 T": (integers(5, 40, 12, dtype=np.uint8), TRANSFORMER, {}),
    "bfloat16 C": (torch.from_numpy(normal(40, 6)).to(torch.bfloat16), IDENTITY, {}),
    "constant": (np.full((40, 3), 7.25, dtype=np.float32), IDENTITY, {}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    array, encoder, data = CASES[request.param]
    folder = tmp_path_factory.mktemp("case")
    run = make_run(folder, array, encoder, **data)
    tokenizer, tokens = load(run), folder / "tokens.npy"
    encode_file(tokenizer, tokens)
    shape, dtype = decode_file(tokenizer, tokens, folder / "decoded.npy")
    decoded = np.load(folder / "decoded.npy", allow_pickle=False)
    assert (decoded.shape, decoded.dtype.name) == (shape, dtype)
    report = tokenizer.evaluate(str(next(folder.glob("data.*"))))
    return Case(array, run, tokens, decoded, report)


def as_numpy(array: NDArray[Any] | torch.Tensor) -> NDArray[Any]:
    return array.float().numpy() if isinstance(array, torch.Tensor) else array


def test_decoded_rows_have_the_shape_and_dtype_of_the_data(case: Case) -> None:
    array = as_numpy(case.array)
    assert (case.decoded.shape, case.decoded.dtype) == (array.shape, array.dtype)


def test_encode_and_decode_equal_the_files(case: Case) -> None:
    tokenizer = load(case.run)
    indices = tokenizer.encode(case.array)
    stored = np.load(case.tokens)
    assert indices.dtype == torch.int64
    assert stored.dtype == np.uint8
    assert np.array_equal(indices.numpy(), stored)
    for tokens in (indices, stored, indices.to(torch.int32), np.load(case.tokens, mmap_mode="r")):
        decoded = tokenizer.decode(tokens)
        assert decoded.dtype == to_tensor(case.array).dtype
        assert np.array_equal(as_numpy(decoded), case.decoded)


def test_eval_measures_what_decode_writes(case: Case) -> None:
    true, metrics = as_numpy(case.array), case.report.reconstruction
    if load(case.run).spec.classes:
        assert metrics.accuracy == accuracy_score(true.flatten(), case.decoded.flatten())
        assert (metrics.mse, metrics.nmse) == (None, None)
        return
    flat, decoded = (x.reshape(len(x), -1).astype(np.float64) for x in (true, case.decoded))
    assert metrics.accuracy is None
    assert metrics.mse == pytest.approx(mean_squared_error(flat, decoded), rel=1e-9)
    if (flat == flat[0]).all():
        assert metrics.nmse is None
    else:
        assert metrics.nmse == pytest.approx(1 - r2_score(flat, decoded, multioutput="variance_weighted"), rel=1e-9)


def test_eval_counts_samples_bits_and_codes(case: Case) -> None:
    stored = np.load(case.tokens)
    assert case.report.evaluation.samples == 40
    assert case.report.bits_per_sample == 4 * stored.shape[1]
    assert case.report.evaluation.levels[0].counts == np.bincount(stored.flatten(), minlength=16).tolist()


def test_manifest_describes_the_index_file(case: Case) -> None:
    data = next(case.run.parent.glob("data.*"))
    manifest = json.loads(case.tokens.with_suffix(".json").read_text())
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    assert manifest == {
        "shape": list(np.load(case.tokens).shape),
        "dtype": "uint8",
        "grid": manifest["grid"],
        "codebook_sizes": [16],
        "unique": False,
        "row_shape": list(case.array.shape[1:]),
        "layout": load(case.run).spec.layout,
        "model_sha256": hashlib.sha256((case.run / "model.safetensors").read_bytes()).hexdigest(),
        "data_sha256": digest,
        "shards": [{"name": data.name, "rows": 40, "sha256": digest}],
        "format_version": 1,
    }
    assert np.prod(manifest["grid"]) == manifest["shape"][1]


def test_codes_equal_to_the_data_reconstruct_the_data(tmp_path: Path) -> None:
    points = (1000 + 50 * normal(16, 3)).astype(np.float32)
    array = np.tile(points, (4, 1))
    run = make_run(tmp_path, array, IDENTITY, normalize="feature")
    tokenizer = load(run)
    tokenizer.codebook.copy_(tokenizer.model.latents(torch.from_numpy(points)).squeeze(1))
    tokenizer = save_codebook(tokenizer, run)
    np.testing.assert_allclose(tokenizer.decode(tokenizer.encode(array)).numpy(), array, rtol=1e-6)
    report = tokenizer.evaluate(str(tmp_path / "data.npy"))
    assert report.reconstruction.nmse is not None
    assert report.reconstruction.nmse < 1e-9


# The run's own data


def test_evaluate_uses_the_validation_split_by_default(trained: TrainedRun) -> None:
    report = load(trained.folder).evaluate()
    summary = json.loads((trained.folder / "summary.json").read_text())
    assert report.evaluation.samples == 6
    for name in ("total", "reconstruction", "commitment", "entropy"):
        assert report.evaluation.losses[name] == summary["best"][f"validation/loss/{name}"]


def test_counts_of_the_best_validation_pass_are_saved(trained: TrainedRun) -> None:
    counts = [level.counts for level in load(trained.folder).evaluate().evaluation.levels]
    assert [hits.tolist() for hits in read_model(RunDirectory(trained.folder).model)[0].counts] == counts
    assert sum(counts[0]) == 6 * 16


@pytest.mark.parametrize("rows", [60, 600], ids=["one chunk", "three chunks"])
def test_count_codes_counts_the_indices_of_encode(trained: TrainedRun, tmp_path: Path, rows: int) -> None:
    tokenizer, array = load(trained.folder), np.resize(trained.array, (rows, 1, 8, 8))
    expected = torch.bincount(tokenizer.encode(array).flatten(), minlength=16)
    counter = tokenizer.count_codes(str(save(tmp_path, array)))
    assert [level.counts for level in counter.levels] == [expected.tolist()]
    assert counter.distinct is None


# Other data than the run's


@pytest.mark.parametrize(
    ("encoder", "shape", "other", "grid"),
    [
        (CONV2D, (1, 8, 8), (1, 5, 12), [3, 6]),
        (CONV2D, (8, 8, 3), (1, 1, 3), [1, 1]),
        (CONV1D, (2, 20), (2, 33), [17]),
        (IDENTITY, (3, 4, 5), (3, 2, 6), [2, 6]),
    ],
)
def test_other_sizes_are_encoded_if_the_networks_support_them(
    tmp_path: Path, encoder: Block, shape: tuple[int, ...], other: tuple[int, ...], grid: list[int]
) -> None:
    tokenizer = load(make_run(tmp_path, normal(24, *shape), encoder))
    array = normal(11, *other)
    manifest = encode_file(tokenizer, tmp_path / "tokens.npy", str(save(tmp_path, array, "other")))
    assert (manifest.grid, manifest.shape) == (grid, [11, int(np.prod(grid))])
    assert decode_file(tokenizer, tmp_path / "tokens.npy", tmp_path / "decoded.npy") == (array.shape, "float32")
    indices = tokenizer.encode(array)
    decoded = tokenizer.decode(indices, other).numpy()
    assert np.array_equal(decoded, np.load(tmp_path / "decoded.npy"))
    report = tokenizer.evaluate(str(tmp_path / "other.npy"))
    assert report.reconstruction.mse == pytest.approx(mean_squared_error(array.ravel(), decoded.ravel()), rel=1e-6)


@pytest.mark.parametrize(
    ("encoder", "shape", "other"),
    [
        (TRANSFORMER, (1, 8, 8), (1, 8, 9)),
        (TRANSFORMER, (2, 20), (2, 21)),
        (MLP, (6,), (7,)),
        (CONV2D, (3, 8, 8), (1, 8, 8)),
        (CONV2D, (8, 8, 3), (8, 8, 1)),
        (CONV2D, (1, 8, 8), (8, 8)),
        (IDENTITY, (6,), (7,)),
        (IDENTITY, (3, 20), (20, 3)),
    ],
)
def test_unsupported_rows_are_refused_with_both_shapes(
    tmp_path: Path, encoder: Block, shape: tuple[int, ...], other: tuple[int, ...]
) -> None:
    tokenizer = load(make_run(tmp_path, normal(24, *shape), encoder))
    path, out = save(tmp_path, normal(5, *other), "other"), tmp_path / "tokens.npy"
    for what, use in (
        ("encode", lambda: tokenizer.encode(normal(5, *other))),
        (str(path), lambda: encode_file(tokenizer, out, str(path))),
        (str(path), lambda: tokenizer.evaluate(str(path))),
        (str(path), lambda: tokenizer.count_codes(str(path))),
    ):
        with pytest.raises(DataError) as error:
            use()
        assert mentions(str(error.value), f"{what}: ... {other} ... {shape}")
    assert not out.exists()


def test_sizes_with_different_encoder_and_decoder_grids_are_refused(tmp_path: Path) -> None:
    decoder = {**CONV1D, "downsamples": 2}
    tokenizer = load(make_run(tmp_path, normal(24, 3, 2), CONV1D, decoder=decoder, layout="CT"))
    with pytest.raises(DataError, match=r"rows .*\(3, 8\)"):
        tokenizer.decode(tokenizer.encode(normal(5, 3, 8)), (3, 8))


def test_empty_rows_are_refused(tmp_path: Path) -> None:
    tokenizer = load(make_run(tmp_path, normal(24, 3, 20), IDENTITY))
    with pytest.raises(DataError, match="shape"):
        tokenizer.encode(np.zeros((5, 3, 0), dtype=np.float32))


def test_encode_and_decode_zero_rows(trained: TrainedRun) -> None:
    tokenizer = load(trained.folder)
    indices = tokenizer.encode(trained.array[:0])
    assert indices.shape == (0, 16)
    assert tokenizer.decode(indices).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(("bad", "kind"), [(np.nan, "NaN"), (np.inf, "infinit"), (-np.inf, "infinit")])
def test_nan_and_infinity_are_refused(trained: TrainedRun, tmp_path: Path, bad: float, kind: str) -> None:
    array = trained.array.copy()
    array[17, 0, 3, 3] = bad
    tokenizer = load(trained.folder)
    with pytest.raises(DataError, match=f"row 17 .*{kind}"):
        tokenizer.encode(array)
    path = save(tmp_path, array, "bad")
    with pytest.raises(DataError, match=f"bad.npy: row 17 .*{kind}"):
        encode_file(tokenizer, tmp_path / "tokens.npy", str(path))
    assert not list(tmp_path.glob("*tokens*"))


def test_values_beyond_float32_are_refused(trained: TrainedRun) -> None:
    array = trained.array.astype(np.float64)
    array[3, 0, 0, 0] = 1e300
    with pytest.raises(DataError, match=r"encode: row 3 .*float32"):
        load(trained.folder).encode(array)


@pytest.mark.parametrize("bad", [5, -1])
def test_classes_out_of_range_are_refused(tmp_path: Path, bad: int) -> None:
    array = integers(5, 24, 4, 4, dtype=np.int64)
    array[0, 0, 0] = 4
    tokenizer = load(make_run(tmp_path, array, CONV2D))
    array[7, 2, 2] = bad
    with pytest.raises(DataError, match=rf"encode: class {bad} in row 7 .*0 to 4"):
        tokenizer.encode(array)
    path = save(tmp_path, array, "bad")
    with pytest.raises(DataError, match="row 7"):
        encode_file(tokenizer, tmp_path / "tokens.npy", str(path))


def test_values_and_classes_are_not_interchangeable(tmp_path: Path) -> None:
    (tmp_path / "classes").mkdir()
    (tmp_path / "values").mkdir()
    classes = load(make_run(tmp_path / "classes", integers(5, 24, 4, 4, dtype=np.int64), CONV2D))
    with pytest.raises(DataError, match=r"encode: .*float32.*int64"):
        classes.encode(normal(5, 4, 4))
    values = load(make_run(tmp_path / "values", normal(24, 4, 4), CONV2D, layout="HW"))
    with pytest.raises(DataError, match=r"encode: .*int64.*float32"):
        values.encode(integers(5, 24, 4, 4, dtype=np.int64))


def test_indices_do_not_depend_on_dtype_or_byte_order(trained: TrainedRun) -> None:
    tokenizer = load(trained.folder)
    expected = tokenizer.encode(trained.array)
    swapped = trained.array.astype(">f4")
    for array in (trained.array.astype(np.float64), swapped, torch.from_numpy(trained.array)):
        assert torch.equal(tokenizer.encode(array), expected)


# Invalid indices


@pytest.mark.parametrize("shape", [(3, 15), (3, 16, 1), (16,)])
def test_indices_of_another_shape_are_refused_with_both_shapes(trained: TrainedRun, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as error:
        load(trained.folder).decode(np.zeros(shape, dtype=np.int64))
    assert mentions(str(error.value), f"decode: ... (N, 16) ... {shape}")


@pytest.mark.parametrize("row_shape", [(3, 8, 8), (1, 8, 9), (8, 8), (1, 8, 8, 1)])
def test_unsupported_row_shapes_are_refused(tmp_path: Path, row_shape: tuple[int, ...]) -> None:
    tokenizer = load(make_run(tmp_path, normal(24, 1, 8, 8), TRANSFORMER))
    with pytest.raises(DataError, match="decode: "):
        tokenizer.decode(np.zeros((3, 4), dtype=np.int64), row_shape)


@pytest.mark.parametrize("bad", [16, -1, 255])
def test_indices_out_of_range_are_refused(trained: TrainedRun, bad: int) -> None:
    indices = np.zeros((3, 16), dtype=np.int64)
    indices[1, 5] = bad
    with pytest.raises(DataError, match=rf"decode: index {bad} in row 1 .*0 to 15$"):
        load(trained.folder).decode(indices)


def test_float_indices_are_refused(trained: TrainedRun) -> None:
    with pytest.raises(DataError, match="decode"):
        load(trained.folder).decode(np.full((3, 16), 1.5))


# Embeddings


def test_embed_with_one_codebook(trained: TrainedRun) -> None:
    tokenizer = load(trained.folder)
    indices = tokenizer.encode(trained.array)
    embedded = tokenizer.embed(indices)
    assert (embedded.shape, embedded.dtype) == ((60, 16, 4), torch.float32)
    assert torch.equal(embedded, tokenizer.codebook[indices])
    assert torch.equal(tokenizer.embed(indices.numpy().astype(np.uint8)), embedded)
    assert torch.equal(tokenizer.embed(indices, levels=1), embedded)


@pytest.mark.parametrize("levels", [None, 1, 2])
def test_embed_sums_levels(catalogue: TrainedRun, levels: int | None) -> None:
    tokenizer = load(catalogue.folder)
    indices = tokenizer.encode(catalogue.array)
    expected = sum(tokenizer.codebook[level][indices[..., level]] for level in range(levels or 2))
    embedded = tokenizer.embed(indices, levels)
    assert embedded.shape == (60, 1, 6)
    torch.testing.assert_close(embedded, expected)


def test_embed_concatenates_groups(tmp_path: Path) -> None:
    tokenizer = load(make_run(tmp_path, normal(40, 6), IDENTITY, quantizer=PRODUCT))
    indices = tokenizer.encode(normal(40, 6))
    expected = torch.cat([tokenizer.codebook[group][indices[..., group]] for group in range(2)], dim=-1)
    assert torch.equal(tokenizer.embed(indices), expected)


def test_embed_does_not_apply_the_output_projection(tmp_path: Path) -> None:
    tokenizer = load(make_run(tmp_path, normal(40, 6), IDENTITY, dim=3))
    indices = tokenizer.encode(normal(40, 6))
    assert torch.equal(tokenizer.embed(indices), tokenizer.codebook[indices])
    assert tokenizer.embed(indices).shape == (40, 1, 3)


@pytest.mark.parametrize("levels", [-1, 0, 3])
def test_levels_out_of_range_are_refused(catalogue: TrainedRun, levels: int) -> None:
    tokenizer = load(catalogue.folder)
    indices = tokenizer.encode(catalogue.array)
    for what, use in (("decode", tokenizer.decode), ("embed", tokenizer.embed)):
        with pytest.raises(DataError, match=rf"^{what}: levels: {levels} .*1 to 2$"):
            use(indices, levels=levels)


def test_product_quantizer_needs_all_groups(tmp_path: Path) -> None:
    tokenizer = load(make_run(tmp_path, normal(40, 6), IDENTITY, quantizer=PRODUCT))
    indices = tokenizer.encode(normal(40, 6))
    assert torch.equal(tokenizer.decode(indices, levels=2), tokenizer.decode(indices))
    for use in (tokenizer.decode, tokenizer.embed):
        with pytest.raises(DataError, match=r": levels: .*residual .*2.*1"):
            use(indices, levels=1)


@pytest.mark.parametrize("shape", [(3, 1), (3, 1, 3), (3, 2), (2,)])
def test_embed_requires_indices_of_all_levels(catalogue: TrainedRun, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as error:
        load(catalogue.folder).embed(np.zeros(shape, dtype=np.int64), levels=1)
    assert mentions(str(error.value), f"embed: ... (N, 1, 2) ... {shape}")


@pytest.mark.parametrize("bad", [4, -1])
def test_embed_refuses_indices_out_of_range(catalogue: TrainedRun, bad: int) -> None:
    indices = np.zeros((3, 1, 2), dtype=np.int64)
    indices[2, 0, 1] = bad
    with pytest.raises(DataError, match=rf"embed: index {bad} in row 2 .*0 to 3$"):
        load(catalogue.folder).embed(indices)


# Distinct ids


def test_distinct_ids_of_vectors_are_counted(catalogue: TrainedRun, tmp_path: Path) -> None:
    tokenizer, array = load(catalogue.folder), catalogue.array[:50]
    distinct = IdCounts(50, len({row.tobytes() for row in tokenizer.encode(array).numpy()}))
    assert distinct.ids < 50
    path = str(save(tmp_path, array, "fifty"))
    assert tokenizer.count_codes(path).distinct == distinct
    assert tokenizer.evaluate(path).evaluation.distinct == distinct


def test_distinct_ids_of_vectors_with_several_tokens(tmp_path: Path) -> None:
    array = normal(40, 6)
    tokenizer = load(make_run(tmp_path, array, {**MLP, "num_tokens": 2}))
    distinct = IdCounts(40, len({row.tobytes() for row in tokenizer.encode(array).numpy()}))
    assert tokenizer.count_codes(str(tmp_path / "data.npy")).distinct == distinct


def test_distinct_ids_of_the_best_validation_pass_are_saved(catalogue: TrainedRun) -> None:
    distinct = load(catalogue.folder).evaluate().evaluation.distinct
    assert distinct is not None
    assert read_model(RunDirectory(catalogue.folder).model)[0].distinct == distinct


# Loading


def test_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing: not a run"):
        load(tmp_path / "nothing")


def copy_run(trained: TrainedRun, folder: Path) -> Path:
    for name in ("config.yaml", "model.safetensors"):
        (folder / name).write_bytes((trained.folder / name).read_bytes())
    return folder


def test_encode_needs_config_and_model_only(trained: TrainedRun, tmp_path: Path) -> None:
    expected = load(trained.folder).encode(trained.array)
    assert torch.equal(load(str(copy_run(trained, tmp_path))).encode(trained.array), expected)


def test_run_without_a_model_is_refused(trained: TrainedRun, tmp_path: Path) -> None:
    (copy_run(trained, tmp_path) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*training\.validate_every"):
        load(tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda b: b"", lambda b: b"\xff" * len(b), lambda b: b[:-1]])
def test_damaged_model_is_refused(trained: TrainedRun, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    model = copy_run(trained, tmp_path) / "model.safetensors"
    model.write_bytes(damage(model.read_bytes()))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load(tmp_path)


def test_model_of_another_config_is_refused(trained: TrainedRun, tmp_path: Path) -> None:
    config = copy_run(trained, tmp_path) / "config.yaml"
    config.write_text(config.read_text().replace("codebook_size: 16", "codebook_size: 8"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*config\.yaml"):
        load(tmp_path)


def test_load_with_a_device(trained: TrainedRun) -> None:
    assert load(trained.folder, "cpu").device == torch.device("cpu")


def test_attributes_of_a_loaded_tokenizer(trained: TrainedRun) -> None:
    tokenizer = load(trained.folder)
    assert tokenizer.codebook.shape == (16, 4)
    assert tokenizer.grid == (4, 4)
    assert tokenizer.settings.training.steps == 12
    assert not tokenizer.model.training
    assert not any(p.requires_grad for p in tokenizer.model.parameters())
