"""`nearest_codes` against brute force in float64, whatever the backend, block size and number of threads."""

import threading
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.quantizers import TensorSizes, brute_force, random_normal
from vqtool import search
from vqtool.quantizers import nearest_codes
from vqtool.search import high_precision
from vqtool.search.backends import Bfloat16Search, SameDtypeSearch, SmallDimSearch

FEW = settings(deadline=None, max_examples=60)


def check(vectors, codebook):
    indices = nearest_codes(vectors, codebook)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, brute_force(vectors, codebook))


@FEW
@given(
    seed=st.integers(0, 1 << 30),
    n=st.integers(0, 40),
    k=st.integers(1, 40),
    d=st.integers(1, 33),
    dtypes=st.tuples(*2 * [st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])]),
)
def test_random_shapes_and_dtypes(seed, n, k, d, dtypes):
    check(random_normal(seed, n, d, dtype=dtypes[0]), random_normal(seed + 1, k, d, dtype=dtypes[1]))


@FEW
@given(seed=st.integers(0, 1 << 30), exponents=st.tuples(*2 * [st.floats(-30, 30)]))
@example(seed=0, exponents=(30.0, 30.0))
@example(seed=0, exponents=(18.0, 18.0))
@example(seed=0, exponents=(-30.0, -30.0))
@example(seed=0, exponents=(-22.0, -22.0))
@example(seed=0, exponents=(-15.0, -29.0))
@example(seed=0, exponents=(30.0, -30.0))
@example(seed=0, exponents=(-30.0, 30.0))
def test_random_scales(seed, exponents):
    check(random_normal(seed, 19, 5) * 10 ** exponents[0], random_normal(seed + 1, 23, 5) * 10 ** exponents[1])


def test_different_scales_in_one_batch():
    scales = 10.0 ** torch.arange(-30, 31, 4)[:, None]
    check(random_normal(0, len(scales), 6) * scales, random_normal(1, len(scales), 6) * scales.flip(0))


# Sums of few powers of two: all distances are exact in float64, so equal distances are equal after rounding.
@FEW
@given(
    seed=st.integers(0, 1 << 30),
    d=st.integers(1, 6),
    power=st.sampled_from([-120, -60, 0, 40, 60]),
    offset=st.sampled_from([0, 0.5, 64]),
)
def test_ties_go_to_the_lowest_index(seed, d, power, offset):
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randint(-2, 3, (60, d), generator=generator) + offset
    codes = torch.randint(-2, 3, (40, d), generator=generator) + offset
    check(grid.float() * 2.0**power, codes.float() * 2.0**power)


def test_equal_codes_of_many_dimensions_are_a_tie(two_threads):
    for seed in range(10):
        codes = random_normal(seed, 1, 40_001).expand(3, -1)
        assert not nearest_codes(random_normal(seed + 10, 9, 40_001), codes).any()


def test_corners_around_a_centre_are_a_tie():
    corners = torch.tensor([[3.0, 3.0], [1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    centre = torch.tensor([[0.0, 0.0]])
    assert nearest_codes(centre, corners).tolist() == [1]
    assert nearest_codes(centre, corners.flip(0)).tolist() == [0]


def test_codes_too_close_together_for_float64_are_a_tie():
    # 1 - 2e-17 rounds to 1 in float64, so all distances are 1.
    assert nearest_codes(torch.ones(1, 1), torch.tensor([[2e-17], [1e-17], [3e-17]])).tolist() == [0]


def test_duplicate_codes_are_never_chosen():
    codes = random_normal(0, 30, 8)
    vectors = torch.cat([random_normal(1, 50, 8), codes])
    indices = nearest_codes(vectors, torch.cat([codes, codes, codes]))
    assert torch.equal(indices, brute_force(vectors, codes))


@pytest.mark.parametrize("spread", [1.0, 1e-2])
@pytest.mark.parametrize("sign", [1, -1])
def test_vectors_and_codes_far_from_the_origin(spread, sign):
    # The spacing of float32 near 1e4 is 1e-3, and near 1e8 it is 8: |z|² - 2 z·e + |e|² would cancel completely.
    check(sign * 1e4 + spread * random_normal(0, 200, 16), sign * 1e4 + spread * random_normal(1, 64, 16))


@pytest.mark.parametrize("where", ["vectors", "codes"])
def test_vectors_and_codes_far_from_each_other(where):
    vectors, codes = random_normal(0, 100, 16), random_normal(1, 64, 16) / 64
    check(*(vectors + 1e4, codes) if where == "vectors" else (vectors, codes + 1e4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [1e6, 1e7, 1e20, 3e38, float("inf")])
def test_outlier_codes_do_not_cause_an_exhaustive_search(dtype, far, exhaustive_calls):
    codes = random_normal(1, 1000, 16, dtype=dtype)
    codes[7], codes[500] = far, -far
    codes[900, 3] = far
    check(random_normal(0, 100, 16, dtype=dtype), codes)
    assert not exhaustive_calls


@pytest.mark.parametrize("far", [1e6, 1e20])
def test_vectors_near_an_outlier_code_get_it(far):
    codes = random_normal(1, 1000, 16)
    codes[7], codes[500] = far, -far
    steps = torch.linspace(-1.5, 1.5, 200)[:, None]
    check(torch.cat([steps * codes[7], random_normal(0, 20, 16)]), codes)


@pytest.mark.parametrize("tail", [1, 3, 5])
def test_codes_of_very_different_norms(tail):
    norms = [torch.exp(tail * random_normal(2 + side, size, 1)) for side, size in enumerate((1000, 200))]
    check(random_normal(0, 200, 16) * norms[1], random_normal(1, 1000, 16) * norms[0])


def test_nan_code_gives_index_0_for_all_vectors(exhaustive_calls):
    codes = random_normal(1, 1000, 16)
    codes[7, 3] = torch.nan
    assert not nearest_codes(random_normal(0, 100, 16), codes).any()
    assert not exhaustive_calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_next_to_the_midpoint_of_two_codes(dtype):
    codes = random_normal(0, 32, 24, dtype=dtype)
    midpoints = (codes[:-1] + codes[1:]) / 2
    epsilons = 4 * torch.finfo(dtype).eps * random_normal(1, *midpoints.shape, dtype=dtype)
    vectors = torch.cat([midpoints + epsilons, midpoints - epsilons])
    pairs = codes[torch.tensor([[i, i + 1] for i in range(31)] * 2)]
    # With only these two codes, the tiny difference decides.
    for vector, pair in zip(vectors, pairs, strict=True):
        check(vector[None], pair)


def test_one_vector_one_code_or_no_vectors():
    check(random_normal(0, 1, 4), random_normal(1, 9, 4))
    check(random_normal(0, 9, 4), random_normal(1, 1, 4))
    check(1e30 * random_normal(0, 9, 4), 1e30 * random_normal(1, 1, 4))
    empty = nearest_codes(torch.empty(0, 4), random_normal(1, 9, 4))
    assert empty.shape == (0,)
    assert empty.dtype == torch.int64


@pytest.mark.parametrize("block", [1, 5, 64, 161])
@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("d", [3, 12])
def test_block_sizes_do_not_change_the_result(block, k, d):
    cases = [
        (random_normal(0, 23, d), random_normal(1, k, d)),
        (random_normal(0, 23, d).round(), random_normal(1, k, d).round()),
        (1e4 + random_normal(0, 23, d) / 100, 1e4 + random_normal(1, k, d) / 100),
    ]
    for vectors, codes in cases:
        if d == 3:
            backend = SmallDimSearch(codes)
        else:
            backend = SameDtypeSearch(codes, bytes_per_block=block, min_rows_per_block=1)
        indices = search.search_in_blocks(vectors, codes, backend, rows_per_block=block)
        assert torch.equal(indices, brute_force(vectors, codes))


def test_nan_vector_gets_index_0_and_does_not_affect_others():
    vectors, codes = random_normal(0, 12, 4), random_normal(1, 9, 4)
    expected = brute_force(vectors, codes)
    vectors[3], vectors[8, 2] = torch.nan, torch.nan
    expected[[3, 8]] = 0
    assert torch.equal(nearest_codes(vectors, codes), expected)


def test_strided_views_and_tensors_that_require_gradients():
    vectors, codes = random_normal(0, 4, 20).T.requires_grad_(), random_normal(1, 9, 8)[:, ::2].requires_grad_()
    check(vectors, codes)
    assert not nearest_codes(vectors, codes).requires_grad


def test_autocast_does_not_change_the_result():
    vectors, codes = random_normal(0, 300, 32), random_normal(1, 200, 32)
    with torch.autocast("cpu", torch.bfloat16):
        check(vectors, codes)
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("vectors", "codes", "message"),
    [
        ((5, 4), (3, 2), r"vectors.*codebook.*\(5, 4\).*\(3, 2\)"),
        ((2, 5, 4), (3, 4), r"\(2, 5, 4\).*\(3, 4\)"),
        ((4,), (3, 4), r"\(4,\).*\(3, 4\)"),
        ((5, 4), (4,), r"\(5, 4\).*\(4,\)"),
        ((5, 4), (0, 4), r"codebook.*empty.*\(0, 4\)"),
    ],
)
def test_wrong_shapes_raise_value_error(vectors, codes, message):
    with pytest.raises(ValueError, match=message):
        nearest_codes(torch.zeros(vectors), torch.zeros(codes))


# Backends and threads


CASES = {
    "apart": (random_normal(0, 300, 16), random_normal(1, 200, 16)),
    "far from the origin": (1e4 + random_normal(0, 300, 16), 1e4 + random_normal(1, 200, 16)),
    "ties": (random_normal(0, 300, 2).round(), random_normal(1, 200, 2).round()),
    "half way": ((random_normal(1, 200, 16) + random_normal(1, 200, 16).roll(1, 0)) / 2, random_normal(1, 200, 16)),
    "large and small": (random_normal(0, 61, 4) * 10.0 ** torch.arange(-30, 31)[:, None], random_normal(1, 200, 4)),
    "overflow": (1e30 * random_normal(0, 300, 4), 1e20 * random_normal(1, 200, 4)),
    "one vector": (random_normal(0, 1, 16), random_normal(1, 200, 16)),
    "none": (torch.empty(0, 16), random_normal(1, 200, 16)),
}


def use_matmul(patch, bfloat16):
    """Search by matrix products for all sizes, on any processor; in bfloat16 for float32 codes if `bfloat16`."""

    def select(vectors, codes):
        return search.Bfloat16Search if bfloat16 and codes.dtype == torch.float32 else search.SameDtypeSearch

    patch.setattr(search, "select_backend", select)


@pytest.fixture(params=[True, False], ids=["bfloat16", "same dtype"])
def bfloat16(request, monkeypatch):
    """Whether float32 codes are searched in bfloat16 first."""
    use_matmul(monkeypatch, request.param)
    return request.param


@pytest.fixture
def built(monkeypatch):
    """The names of the backends that are built."""
    names = []

    def recording(backend):
        def build(codes):
            names.append(backend.__name__)
            return backend(codes)

        return build

    for backend in (Bfloat16Search, SameDtypeSearch):
        monkeypatch.setattr(search, backend.__name__, recording(backend))
    monkeypatch.setattr(high_precision, "SameDtypeSearch", recording(SameDtypeSearch))
    return names


@pytest.mark.parametrize("case", CASES)
def test_matmul_backends_are_exact(built, bfloat16, case):
    check(*CASES[case])
    assert built[0] == ("Bfloat16Search" if bfloat16 else "SameDtypeSearch")


@pytest.mark.parametrize("case", CASES)
def test_threads_do_not_change_the_result(monkeypatch, two_threads, bfloat16, case):
    monkeypatch.setattr(search, "useful_threads", lambda num_scores, dim: 2)
    check(*CASES[case])


@pytest.fixture
def search_calls(monkeypatch):
    """(number of vectors, thread, number of PyTorch's threads) of each call of `search_in_blocks`."""
    calls = []

    def recording(vectors, *arguments):
        calls.append((len(vectors), threading.get_ident(), torch.get_num_threads()))
        return search_in_blocks(vectors, *arguments)

    search_in_blocks = search.search_in_blocks
    monkeypatch.setattr(search, "search_in_blocks", recording)
    return calls


def test_rows_are_split_over_threads(two_threads, search_calls):
    vectors, codes = CASES["apart"]
    # 19,200 x (200 + 512) scores of 16 dimensions are as much work as 2 x 2^22 scores of 64 dimensions.
    indices = nearest_codes(vectors.repeat(64, 1), codes)
    assert torch.equal(indices, brute_force(vectors, codes).repeat(64))
    assert [(rows, threads) for rows, _, threads in search_calls] == [(9600, 1), (9600, 1)]
    assert threading.get_ident() not in {thread for _, thread, _ in search_calls}


# The threshold is 2^20 scores of 64 dimensions; a vector costs 97 + 512 scores, here of 16 dimensions.
@pytest.mark.parametrize(("rows", "in_pool"), [(2755, True), (2754, False)])
def test_search_above_the_pool_threshold_runs_on_one_pool_thread(two_threads, search_calls, rows, in_pool):
    check(random_normal(0, rows, 16), random_normal(1, 97, 16))
    ((num_vectors, thread, threads),) = search_calls
    assert num_vectors == rows
    assert (thread != threading.get_ident(), threads) == (in_pool, 1 if in_pool else 2)


@FEW
@given(
    seed=st.integers(0, 1 << 30),
    k=st.integers(1, 300),
    d=st.integers(1, 20),
    exponents=st.tuples(*2 * [st.floats(-30, 30)]),
)
def test_bfloat16_search_is_exact_at_random_scales(seed, k, d, exponents):
    with pytest.MonkeyPatch.context() as patch:
        use_matmul(patch, bfloat16=True)
        check(random_normal(seed, 19, d) * 10 ** exponents[0], random_normal(seed + 1, k, d) * 10 ** exponents[1])


def test_rows_unresolved_in_bfloat16_are_searched_in_float32(built):
    square = torch.rand(4696, 2, generator=torch.Generator().manual_seed(0))
    vectors, codes = square[:600], square[600:]
    indices = search.search_in_blocks(vectors, codes, search.Bfloat16Search(codes), rows_per_block=200)
    assert torch.equal(indices, brute_force(vectors, codes))
    assert built == ["Bfloat16Search", "SameDtypeSearch"]


@pytest.mark.parametrize(
    ("dim", "min_products", "dtype", "backend"),
    [
        (16, 30 * 256 * 16, torch.float32, Bfloat16Search),
        (16, 30 * 256 * 16 + 1, torch.float32, SameDtypeSearch),
        (16, 0, torch.float64, SameDtypeSearch),
        (9, 0, torch.float32, Bfloat16Search),
        (8, 0, torch.float32, SmallDimSearch),
        (8, 1 << 60, torch.float32, SmallDimSearch),
        (8, 0, torch.float64, SameDtypeSearch),
        (1, 0, torch.float32, SmallDimSearch),
    ],
)
def test_backend_by_size_and_dtype(monkeypatch, dim, min_products, dtype, backend):
    monkeypatch.setattr(search, "has_bfloat16_matmul", lambda: True)
    vectors, codes = random_normal(0, 30, dim), random_normal(1, 256, dim, dtype=dtype)
    assert search.select_backend(vectors, codes, bfloat16_min_products=min_products) is backend
    check(vectors, codes)


def test_no_bfloat16_without_processor_support(monkeypatch):
    monkeypatch.setattr(search, "has_bfloat16_matmul", lambda: False)
    vectors, codes = random_normal(0, 30, 16), random_normal(1, 256, 16)
    assert search.select_backend(vectors, codes, bfloat16_min_products=0) is SameDtypeSearch


@pytest.mark.parametrize("case", ["constructor's codes", "equal codes", "nan", "1e25", "1e-30"])
def test_indistinguishable_codes_give_exact_results_in_bounded_memory(monkeypatch, bfloat16, case):
    vectors, codes = random_normal(0, 90, 4), random_normal(1, 2048, 4)
    if case == "constructor's codes":
        codes = torch.rand(2048, 4, generator=torch.Generator().manual_seed(0)) * 2 / 2048 - 1 / 2048
    elif case == "equal codes":
        codes = codes[:1].repeat(2048, 1)
    elif case == "nan":
        vectors[1:] = torch.nan
    else:
        vectors, codes = vectors * float(case), codes * (1.0 if case == "1e25" else 1e-30)
    # No argument of nearest_codes reaches the size of a block. TensorSizes sees only its own thread, here the only one.
    assert torch.get_num_threads() == 1
    for module, backend in ((search, Bfloat16Search), (search, SameDtypeSearch), (high_precision, SameDtypeSearch)):
        small_blocks = partial(backend, bytes_per_block=1 << 14, min_rows_per_block=1)
        monkeypatch.setattr(module, backend.__name__, small_blocks)
    with TensorSizes() as sizes:
        indices = nearest_codes(vectors, codes)
    expected = brute_force(vectors, codes)
    expected[vectors.isnan().any(dim=1)] = 0
    assert torch.equal(indices, expected)
    assert max(sizes.numels) <= 1 << 14


@pytest.fixture
def exhaustive_calls(monkeypatch):
    """The number of vectors and of codes in each exhaustive search."""
    calls = []

    def recording(vectors, codes, nearest):
        calls.append((len(vectors), len(codes)))
        exhaustive_search(vectors, codes, nearest)

    exhaustive_search = high_precision.exhaustive_search
    monkeypatch.setattr(high_precision, "exhaustive_search", recording)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [40, 8192])
def test_duplicate_codes_do_not_cause_an_exhaustive_search(bfloat16, exhaustive_calls, dtype, rows):
    data = random_normal(0, 30, 8, dtype=dtype)
    codes = data[torch.randint(30, (20_000,), generator=torch.Generator().manual_seed(1))]
    vectors = torch.cat([data, random_normal(2, 60, 8, dtype=dtype), torch.zeros(60, 8, dtype=dtype)])
    vectors[[3, 95]] = torch.nan
    expected = brute_force(vectors, codes)
    expected[[3, 95]] = 0
    backend = search.select_backend(vectors, codes)(codes)
    indices = search.search_in_blocks(vectors, codes, backend, rows_per_block=rows)
    assert torch.equal(indices, expected)
    assert not exhaustive_calls


def test_codes_too_close_for_float32_are_searched_in_float64(bfloat16, exhaustive_calls):
    codes = 1e3 + 1e-3 * random_normal(1, 3000, 8)
    codes[0] = 0  # so that subtracting the mean code does not help
    check(1e3 + 1e-3 * random_normal(0, 50, 8), codes)
    assert not exhaustive_calls


def test_equal_vectors_are_searched_exhaustively_once(bfloat16, exhaustive_calls):
    codes = torch.cartesian_prod(*[torch.tensor([1.0, -1.0])] * 11)  # all of the same norm
    vectors = torch.cat([random_normal(0, 2, 11) * 1e-30, torch.zeros(500, 11)])
    check(vectors, codes)
    assert exhaustive_calls == [(3, 2048)]


# Dynamo emits warnings about its own imports.
@pytest.mark.filterwarnings("ignore")
def test_compile_calls_the_operator_without_tracing_into_it():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    vectors, codebook = random_normal(0, 40, 8), random_normal(1, 300, 8).requires_grad_()
    try:
        compiled = torch.compile(lambda *inputs: nearest_codes(*inputs) + 1, backend=backend, fullgraph=True)
        assert torch.equal(compiled(vectors, codebook), nearest_codes(vectors, codebook) + 1)
    finally:
        torch.compiler.reset()
    calls = [node.target for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert torch.ops.vqtool.nearest_codes in calls
    assert torch.mm not in calls
