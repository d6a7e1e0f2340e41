"""The nearest-code search against brute force in float64."""

import threading

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.quantizers import Sizes, brute_force, random_normal
from vqtool import search
from vqtool.quantizers import nearest_codes
from vqtool.search import high_precision as finer
from vqtool.search import scores
from vqtool.search.bfloat16 import BfloatScores
from vqtool.search.scores import FullScores
from vqtool.search.small_dim import SmallDimSearch

FEW = settings(deadline=None, max_examples=60)


def check(vectors, codebook):
    found = nearest_codes(vectors, codebook)
    assert found.dtype == torch.int64
    assert torch.equal(found, brute_force(vectors, codebook))


@FEW
@given(
    seed=st.integers(0, 1 << 30),
    n=st.integers(0, 40),
    k=st.integers(1, 40),
    d=st.integers(1, 33),
    dtypes=st.tuples(*2 * [st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])]),
)
def test_any_shape_and_type(seed, n, k, d, dtypes):
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
def test_any_scale(seed, exponents):
    check(random_normal(seed, 19, 5) * 10 ** exponents[0], random_normal(seed + 1, 23, 5) * 10 ** exponents[1])


def test_scales_mixed_within_one_batch():
    scales = 10.0 ** torch.arange(-30, 31, 4)[:, None]
    check(random_normal(0, len(scales), 6) * scales, random_normal(1, len(scales), 6) * scales.flip(0))


# Numbers that are sums of few powers of two: every distance is exact in float64, so that equal ones really are equal.
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


def test_equal_codes_are_a_tie_however_long_they_are(two_threads):
    for seed in range(10):
        codes = random_normal(seed, 1, 40_001).expand(3, -1)
        assert not nearest_codes(random_normal(seed + 10, 9, 40_001), codes).any()


def test_four_corners_around_a_centre_are_a_tie():
    corners = torch.tensor([[3.0, 3.0], [1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    centre = torch.tensor([[0.0, 0.0]])
    assert nearest_codes(centre, corners).tolist() == [1]
    assert nearest_codes(centre, corners.flip(0)).tolist() == [0]


def test_codes_too_close_together_for_float64_are_a_tie():
    # Seen from 1, all of these codes are at a distance of exactly 1.
    assert nearest_codes(torch.ones(1, 1), torch.tensor([[2e-17], [1e-17], [3e-17]])).tolist() == [0]


def test_a_duplicate_code_never_wins():
    codes = random_normal(0, 30, 8)
    vectors = torch.cat([random_normal(1, 50, 8), codes])
    found = nearest_codes(vectors, torch.cat([codes, codes, codes]))
    assert torch.equal(found, brute_force(vectors, codes))


@pytest.mark.parametrize("spread", [1.0, 1e-2])
@pytest.mark.parametrize("sign", [1, -1])
def test_data_far_from_the_origin(spread, sign):
    # At 1e4 a float32 step is 1e-3: the naive |z|² - 2 z·e + |e|² would lose the differences altogether.
    check(sign * 1e4 + spread * random_normal(0, 200, 16), sign * 1e4 + spread * random_normal(1, 64, 16))


@pytest.mark.parametrize("where", ["vectors", "codes"])
def test_one_side_far_from_the_other(where):
    vectors, codes = random_normal(0, 100, 16), random_normal(1, 64, 16) / 64
    check(*(vectors + 1e4, codes) if where == "vectors" else (vectors, codes + 1e4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [1e6, 1e7, 1e20, 3e38, float("inf")])
def test_codes_far_from_all_others_cost_no_search_by_all_distances(dtype, far, exhausted):
    codes = random_normal(1, 1000, 16, dtype=dtype)
    codes[7], codes[500] = far, -far
    codes[900, 3] = far
    check(random_normal(0, 100, 16, dtype=dtype), codes)
    assert not exhausted


@pytest.mark.parametrize("far", [1e6, 1e20])
def test_vectors_near_a_code_that_is_far_find_it(far):
    codes = random_normal(1, 1000, 16)
    codes[7], codes[500] = far, -far
    steps = torch.linspace(-1.5, 1.5, 200)[:, None]
    check(torch.cat([steps * codes[7], random_normal(0, 20, 16)]), codes)


@pytest.mark.parametrize("tail", [1, 3, 5])
def test_codes_of_very_different_norms(tail):
    norms = [torch.exp(tail * random_normal(2 + side, size, 1)) for side, size in enumerate((1000, 200))]
    check(random_normal(0, 200, 16) * norms[1], random_normal(1, 1000, 16) * norms[0])


def test_a_code_that_is_no_number_leaves_the_first(exhausted):
    codes = random_normal(1, 1000, 16)
    codes[7, 3] = torch.nan
    assert not nearest_codes(random_normal(0, 100, 16), codes).any()
    assert not exhausted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_a_hair_from_half_way_between_two_codes(dtype):
    codes = random_normal(0, 32, 24, dtype=dtype)
    middle = (codes[:-1] + codes[1:]) / 2
    hair = 4 * torch.finfo(dtype).eps * random_normal(1, *middle.shape, dtype=dtype)
    vectors = torch.cat([middle + hair, middle - hair])
    pairs = codes[torch.tensor([[i, i + 1] for i in range(31)] * 2)]
    # Only the two codes around a vector are in its race, so that all of them are decided by a hair.
    for vector, pair in zip(vectors, pairs, strict=True):
        check(vector[None], pair)


def test_one_vector_or_one_code_or_none():
    check(random_normal(0, 1, 4), random_normal(1, 9, 4))
    check(random_normal(0, 9, 4), random_normal(1, 1, 4))
    check(1e30 * random_normal(0, 9, 4), 1e30 * random_normal(1, 1, 4))
    empty = nearest_codes(torch.empty(0, 4), random_normal(1, 9, 4))
    assert empty.shape == (0,)
    assert empty.dtype == torch.int64


@pytest.mark.parametrize("block", [1, 5, 64, 161])
@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("d", [3, 12])
def test_blocks_change_nothing(monkeypatch, block, k, d):
    cases = [
        (random_normal(0, 23, d), random_normal(1, k, d)),
        (random_normal(0, 23, d).round(), random_normal(1, k, d).round()),
        (1e4 + random_normal(0, 23, d) / 100, 1e4 + random_normal(1, k, d) / 100),
    ]
    monkeypatch.setattr(search, "_ROWS", block)
    monkeypatch.setattr(scores, "_BLOCK", block)
    monkeypatch.setattr(scores, "_ROWS", 1)
    for vectors, codes in cases:
        check(vectors, codes)


def test_a_nan_vector_gets_the_first_code_and_disturbs_no_other():
    vectors, codes = random_normal(0, 12, 4), random_normal(1, 9, 4)
    expected = brute_force(vectors, codes)
    vectors[3], vectors[8, 2] = torch.nan, torch.nan
    expected[[3, 8]] = 0
    assert torch.equal(nearest_codes(vectors, codes), expected)


def test_strided_views_and_gradients_in_either_side():
    vectors, codes = random_normal(0, 4, 20).T.requires_grad_(), random_normal(1, 9, 8)[:, ::2].requires_grad_()
    check(vectors, codes)
    assert not nearest_codes(vectors, codes).requires_grad


def test_autocast_changes_nothing():
    vectors, codes = random_normal(0, 300, 32), random_normal(1, 200, 32)
    with torch.autocast("cpu", torch.bfloat16):
        check(vectors, codes)
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("vectors", "codes", "message"),
    [
        ((5, 4), (3, 2), r"vectors \(N, D\) and codebook \(K, D\), got shapes \(5, 4\) and \(3, 2\)"),
        ((2, 5, 4), (3, 4), r"vectors \(N, D\) .* \(2, 5, 4\) and \(3, 4\)"),
        ((4,), (3, 4), r"\(4,\) and \(3, 4\)"),
        ((5, 4), (4,), r"\(5, 4\) and \(4,\)"),
        ((5, 4), (0, 4), r"codebook is empty: .*\(0, 4\)"),
    ],
)
def test_wrong_shapes_are_named(vectors, codes, message):
    with pytest.raises(ValueError, match=message):
        nearest_codes(torch.zeros(vectors), torch.zeros(codes))


# bfloat16, and threads


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


def however_few(patch):
    """Take the processor to multiply bfloat16, and let it do so for any number of codes, vectors and dimensions."""
    patch.setattr(search, "multiplies_bfloat16", lambda: True)
    patch.setattr(search, "MAX_SMALL_DIM", 0)
    patch.setattr(search, "_PRODUCTS", 0)


@pytest.fixture(params=[True, False], ids=["bfloat16", "none"])
def bfloat16(request, monkeypatch):
    """Whether the processor multiplies bfloat16."""
    however_few(monkeypatch)
    monkeypatch.setattr(search, "multiplies_bfloat16", lambda: request.param)
    return request.param


@pytest.fixture
def made(monkeypatch):
    """The names of the scores that are made."""
    names = []

    def spied(kind):
        def make(codes):
            names.append(kind.__name__)
            return kind(codes)

        return make

    for kind in (BfloatScores, FullScores, SmallDimSearch):
        monkeypatch.setattr(search, kind.__name__, spied(kind))
    monkeypatch.setattr(finer, "FullScores", spied(FullScores))
    return names


@pytest.mark.parametrize("case", CASES)
def test_the_answer_is_exact_whether_or_not_the_processor_multiplies_bfloat16(made, bfloat16, case):
    check(*CASES[case])
    assert made[0] == ("BfloatScores" if bfloat16 else "FullScores")


@pytest.mark.parametrize("case", CASES)
def test_threads_change_nothing(monkeypatch, two_threads, bfloat16, case):
    monkeypatch.setattr("vqtool.runtime.threads._THREAD", 1)
    check(*CASES[case])


def test_rows_are_shared_out_among_threads(monkeypatch, two_threads):
    seen = []

    def spy(*arguments):
        seen.append((len(arguments[0]), threading.get_ident()))
        return nearest(*arguments)

    nearest = search._nearest
    monkeypatch.setattr(search, "_nearest", spy)
    monkeypatch.setattr("vqtool.runtime.threads._THREAD", 1)
    check(*CASES["apart"])
    assert [rows for rows, _ in seen] == [150, 150]
    assert threading.get_ident() not in {thread for _, thread in seen}


@pytest.mark.parametrize(("wake", "own"), [(76125, True), (76126, False)])
def test_a_search_that_takes_some_time_has_a_thread_of_its_own(monkeypatch, two_threads, wake, own):
    seen = []

    def spy(*arguments):
        seen.append((threading.get_ident() != here, torch.get_num_threads()))
        return nearest(*arguments)

    here, nearest = threading.get_ident(), search._nearest
    monkeypatch.setattr(search, "_nearest", spy)
    monkeypatch.setattr("vqtool.runtime.threads._WAKE", wake)
    check(random_normal(0, 200, 16), random_normal(1, 97, 16))
    assert seen == [(own, 1 if own else 2)]


@FEW
@given(
    seed=st.integers(0, 1 << 30),
    k=st.integers(1, 300),
    d=st.integers(1, 20),
    exponents=st.tuples(*2 * [st.floats(-30, 30)]),
)
def test_bfloat16_first_finds_the_nearest_at_any_scale(seed, k, d, exponents):
    with pytest.MonkeyPatch.context() as patch:
        however_few(patch)
        check(random_normal(seed, 19, d) * 10 ** exponents[0], random_normal(seed + 1, k, d) * 10 ** exponents[1])


def test_codes_that_bfloat16_does_not_tell_apart_are_told_apart_in_float32(monkeypatch, made):
    however_few(monkeypatch)
    monkeypatch.setattr(search, "_ROWS", 200)
    square = torch.rand(4696, 2, generator=torch.Generator().manual_seed(0))
    check(square[:600], square[600:])
    assert made == ["BfloatScores", "FullScores"]


@pytest.mark.parametrize(
    ("dim", "products", "dtype", "kind"),
    [
        (16, 30 * 256 * 16, torch.float32, "BfloatScores"),
        (16, 30 * 256 * 16 + 1, torch.float32, "FullScores"),
        (16, 0, torch.float64, "FullScores"),
        (9, 0, torch.float32, "BfloatScores"),
        (8, 0, torch.float32, "SmallDimSearch"),
        (8, 1 << 60, torch.float32, "SmallDimSearch"),
        (8, 0, torch.float64, "FullScores"),
        (1, 0, torch.float32, "SmallDimSearch"),
    ],
)
def test_scores_are_of_the_kind_that_is_soonest_made(monkeypatch, made, dim, products, dtype, kind):
    monkeypatch.setattr(search, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(search, "_PRODUCTS", products)
    check(random_normal(0, 30, dim), random_normal(1, 256, dim, dtype=dtype))
    assert made == [kind]


@pytest.mark.parametrize("kind", ["constructor's codes", "equal codes", "nan", "1e25", "1e-30"])
def test_where_codes_cannot_be_told_apart_the_answer_is_exact_and_little_is_held(monkeypatch, bfloat16, kind):
    vectors, codes = random_normal(0, 90, 4), random_normal(1, 2048, 4)
    if kind == "constructor's codes":
        codes = torch.rand(2048, 4, generator=torch.Generator().manual_seed(0)) * 2 / 2048 - 1 / 2048
    elif kind == "equal codes":
        codes = codes[:1].repeat(2048, 1)
    elif kind == "nan":
        vectors[1:] = torch.nan
    else:
        vectors, codes = vectors * float(kind), codes * (1.0 if kind == "1e25" else 1e-30)
    monkeypatch.setattr("vqtool.runtime.threads._THREAD", 1 << 60)
    monkeypatch.setattr(scores, "_BLOCK", 1 << 14)
    monkeypatch.setattr(scores, "_ROWS", 1)
    with Sizes() as sizes:
        found = nearest_codes(vectors, codes)
    expected = brute_force(vectors, codes)
    expected[vectors.isnan().any(dim=1)] = 0
    assert torch.equal(found, expected)
    assert max(sizes.made) <= 1 << 14


@pytest.fixture
def exhausted(monkeypatch):
    """How many vectors, and among how many codes, are settled by all distances."""
    seen = []

    def spy(vectors, codes):
        seen.append((len(vectors), len(codes)))
        return exhaustive(vectors, codes)

    exhaustive = finer._exhaustive
    monkeypatch.setattr(finer, "_exhaustive", spy)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [40, 8192])
def test_crowds_of_equal_codes_need_few_distances(monkeypatch, bfloat16, exhausted, dtype, rows):
    monkeypatch.setattr(search, "_ROWS", rows)
    data = random_normal(0, 30, 8, dtype=dtype)
    codes = data[torch.randint(30, (20_000,), generator=torch.Generator().manual_seed(1))]
    vectors = torch.cat([data, random_normal(2, 60, 8, dtype=dtype), torch.zeros(60, 8, dtype=dtype)])
    vectors[[3, 95]] = torch.nan
    expected = brute_force(vectors, codes)
    expected[[3, 95]] = 0
    assert torch.equal(nearest_codes(vectors, codes), expected)
    assert not exhausted


def test_codes_too_close_for_float32_are_told_apart_in_float64(bfloat16, exhausted):
    codes = 1e3 + 1e-3 * random_normal(1, 3000, 8)
    codes[0] = 0  # so that the mean code is far from all
    check(1e3 + 1e-3 * random_normal(0, 50, 8), codes)
    assert not exhausted


def test_vectors_of_a_crowd_that_are_equal_are_settled_once(monkeypatch, bfloat16, exhausted):
    codes = torch.cartesian_prod(*[torch.tensor([1.0, -1.0])] * 11)  # all of one norm
    vectors = torch.cat([random_normal(0, 2, 11) * 1e-30, torch.zeros(500, 11)])
    check(vectors, codes)
    assert exhausted == [(3, 2048)]


# Dynamo warns of what it imports, and of more with every version.
@pytest.mark.filterwarnings("ignore")
def test_a_compiler_takes_it_as_it_is():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    vectors, codebook = random_normal(0, 40, 8), random_normal(1, 300, 8).requires_grad_()
    try:
        found = torch.compile(lambda *both: nearest_codes(*both) + 1, backend=backend, fullgraph=True)
        assert torch.equal(found(vectors, codebook), nearest_codes(vectors, codebook) + 1)
    finally:
        torch.compiler.reset()
    called = [node.target for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert torch.ops.vqtool.nearest_codes in called
    assert torch.mm not in called
