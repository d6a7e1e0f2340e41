"""Scores of codes: whatever the rounding, the nearest in float64 is found, or a row is left to finer scores."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.quantizers import Sizes, brute_force, random_normal
from vqtool.search import scores
from vqtool.search.bfloat16 import BfloatScores, multiplies_bfloat16
from vqtool.search.kernels import MAX_CANDIDATES, MAX_SMALL_DIM
from vqtool.search.rerank import rerank_exact
from vqtool.search.scores import FullScores
from vqtool.search.small_dim import SmallDimSearch


class ElsewhereScores(FullScores):
    """As on a device that is no CPU."""

    def _settle(self, scores, slack, vectors, nearest):
        nearest.copy_(rerank_exact(scores, slack, vectors, self._codebook))


FEW = settings(deadline=None, max_examples=80)
KINDS = {
    "bfloat16": (BfloatScores, torch.float32),
    "float32": (FullScores, torch.float32),
    "float64": (FullScores, torch.float64),
    "short": (SmallDimSearch, torch.float32),
    "elsewhere": (ElsewhereScores, torch.float32),
}
PRODUCTS = ("bfloat16", "float32", "float64", "elsewhere")
each_kind = pytest.mark.parametrize(("kind", "dtype"), KINDS.values(), ids=KINDS)
each_product = pytest.mark.parametrize(
    ("kind", "dtype"),
    [KINDS[name] for name in PRODUCTS],
    ids=PRODUCTS,
)
each_float32_kind = pytest.mark.parametrize("kind", [BfloatScores, FullScores, SmallDimSearch, ElsewhereScores])


def cut(kind, *tables):
    """As many dimensions as a kind takes."""
    return tuple(table[:, :MAX_SMALL_DIM] for table in tables) if kind is SmallDimSearch else tables


def found(kind, vectors, codes):
    vectors, codes = cut(kind, vectors, codes)
    nearest = kind(codes).nearest(vectors.contiguous())
    assert nearest.dtype == torch.int64
    assert nearest.shape == (len(vectors),)
    return nearest


def truth(kind, vectors, codes):
    """What `found` is to be; PyTorch sums in another order than NumPy, which tells where two distances all but tie."""
    if kind is not ElsewhereScores:
        return brute_force(vectors, codes)
    return (vectors.double()[:, None] - codes.double()).square().sum(dim=2).argmin(dim=1)


def check_but_for(kind, vectors, codes, most):
    """The nearest of every row that is not left: for a crowd, or for norms that could overflow, over `most`."""
    nearest = found(kind, vectors, codes)
    known = nearest >= 0
    vectors, codes = cut(kind, vectors, codes)
    assert torch.equal(nearest[known], truth(kind, vectors, codes)[known])
    if len(codes) <= MAX_CANDIDATES:  # else a crowd may be left
        centre = codes.double().mean(dim=0)
        furthest = (vectors.double() - centre).norm(dim=1) + (codes.double() - centre).norm(dim=1).max()
        assert known[furthest < most].all()


def check(kind, vectors, codes):
    check_but_for(kind, vectors, codes, torch.inf)


@each_kind
@FEW
@given(seed=st.integers(0, 1 << 30), n=st.integers(1, 30), k=st.integers(1, 200), d=st.integers(1, 70))
@example(seed=0, n=1, k=1, d=1)
@example(seed=0, n=3, k=64, d=64)
@example(seed=0, n=3, k=65, d=5)
def test_any_shape(kind, dtype, seed, n, k, d):
    check(kind, random_normal(seed, n, d, dtype=dtype), random_normal(seed + 1, k, d, dtype=dtype))


@each_kind
@FEW
@given(
    seed=st.integers(0, 1 << 30),
    d=st.integers(1, 20),
    exponents=st.tuples(*2 * [st.floats(-30, 30)]),
    offset=st.sampled_from([0.0, 1.0, -1e2, 1e4]),
)
@example(seed=0, d=5, exponents=(30.0, 30.0), offset=0.0)
@example(seed=0, d=5, exponents=(19.0, 19.0), offset=1.0)
@example(seed=0, d=5, exponents=(-30.0, -30.0), offset=0.0)
@example(seed=0, d=5, exponents=(-19.0, -19.0), offset=0.0)
@example(seed=0, d=5, exponents=(-12.0, -20.0), offset=0.0)
@example(seed=0, d=1, exponents=(-10.0, -23.0), offset=0.0)
@example(seed=0, d=1, exponents=(-23.0, -10.0), offset=0.0)
@example(seed=0, d=5, exponents=(30.0, -30.0), offset=1e4)
@example(seed=0, d=5, exponents=(-30.0, 30.0), offset=1e4)
def test_any_scale_and_offset(kind, dtype, seed, d, exponents, offset):
    vectors = (random_normal(seed, 19, d) + offset).to(dtype) * 10 ** exponents[0]
    codes = (random_normal(seed + 1, 60, d) + offset).to(dtype) * 10 ** exponents[1]
    check_but_for(kind, vectors, codes, 1e18)


@each_kind
@FEW
@given(seed=st.integers(0, 1 << 30), d=st.integers(1, 12), exponent=st.floats(-30, 30), step=st.floats(0.25, 4))
def test_the_first_of_equal_codes(kind, dtype, seed, d, exponent, step):
    some = (random_normal(seed, 30, d, dtype=dtype) * step).round() * 10**exponent
    codes = some[torch.randint(30, (MAX_CANDIDATES,), generator=torch.Generator().manual_seed(seed))]
    check_but_for(kind, torch.cat([some, random_normal(seed + 1, 10, d, dtype=dtype) * 10**exponent]), codes, 1e18)


@each_kind
@pytest.mark.parametrize("spread", [1.0, 1e-3])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_vectors_half_way_between_two_codes(kind, dtype, spread, offset):
    codes = random_normal(0, 200, 16, dtype=dtype) * spread + offset
    middle = (codes[:-1] + codes[1:]) / 2
    hair = 4 * torch.finfo(dtype).eps * middle.abs() * random_normal(1, *middle.shape, dtype=dtype)
    for first in range(0, 199, 40):
        pair = codes[first : first + 2]
        rows = torch.stack([middle[first], middle[first] + hair[first], middle[first] - hair[first]])
        check(kind, rows, pair)
    check(kind, torch.cat([middle, middle + hair, middle - hair]), codes)


# Steps of bfloat16 are 1/128 at 1: codes between them are told apart by the bound alone.
@each_kind
def test_codes_closer_together_than_bfloat16_can_tell(kind, dtype):
    codes = 1 + random_normal(0, 300, 8, dtype=dtype) / 1e4
    codes[0] = -1
    check(kind, codes[1:] + random_normal(1, 299, 8, dtype=dtype) / 1e5, codes)


# Every code is exact in bfloat16. Half way between two, all but one coordinate round towards the one that is further.
@pytest.mark.parametrize("d", [16, 64])
def test_vectors_that_bfloat16_brings_nearer_to_another_code(d):
    first, second = torch.ones(d), torch.full((d,), 1 + 17 / 128)
    codes, vector = torch.stack([first, second, -first, -second]), (first + second) / 2
    vector[0] += 1 / 64
    rounded = vector.bfloat16().float()
    assert brute_force(vector[None], codes).tolist() == [1]
    assert brute_force(rounded[None], codes).tolist() == [0]
    check(BfloatScores, vector[None], codes)


# Near the origin scores of a cube's corners differ by far less than a step of bfloat16, and some lie about its edge.
@each_float32_kind
@pytest.mark.parametrize("d", [4, 16])
def test_ties_all_but_broken_on_either_side_of_a_rounding(kind, d):
    generator = torch.Generator().manual_seed(0)
    half = 2.0 * torch.randint(2, (20, d), generator=generator) - 1
    codes = torch.cat([half, -half])
    first, second = codes[torch.randint(40, (2, 3000), generator=generator)]
    between = (first - second) / (first - second).norm(dim=1, keepdim=True).clamp_min(1)
    vectors = (random_normal(1, 3000, d) + (first + second) / 2) / 20
    along = (vectors * between).sum(dim=1, keepdim=True)
    check(kind, vectors - (1 - 1e-4) * along * between, codes)


@each_kind
def test_one_code_far_from_all_others(kind, dtype):
    codes = random_normal(1, 100, 16, dtype=dtype)
    codes[7] = 1e6
    check(kind, random_normal(0, 50, 16, dtype=dtype), codes)


@each_float32_kind
@pytest.mark.parametrize("size", [1e18, 1.8e19, 1e25, 3e37, 3.3e38])
@pytest.mark.parametrize("side", ["vectors", "codes", "both"])
def test_squares_and_products_that_overflow(kind, size, side):
    vectors, codes = random_normal(0, 30, 6).clamp(-1, 1), random_normal(1, 60, 6).clamp(-1, 1)
    of_vectors, of_codes = (1 if side == "codes" else size), (1 if side == "vectors" else size)
    check_but_for(kind, vectors * of_vectors, codes * of_codes, 1e18)


@each_float32_kind
def test_large_and_small_vectors_side_by_side(kind):
    scales = 10.0 ** torch.arange(-38, 39, 4)[:, None]
    check_but_for(kind, random_normal(0, len(scales), 6) * scales, random_normal(1, 60, 6), 1e18)
    check_but_for(kind, random_normal(0, 30, 6), random_normal(1, len(scales), 6) * scales, 1e18)


@each_float32_kind
@pytest.mark.parametrize("exponents", [(-38, -38), (-40, -40), (-44, -44), (0, -40), (-40, 0), (-40, 18), (18, -40)])
def test_numbers_too_small_for_a_full_significand(kind, exponents):
    vectors, codes = (random_normal(seed, 60, 6).double() * 10.0 ** exponents[seed] for seed in (0, 1))
    check(kind, vectors.float(), codes.float())


@each_kind
def test_zeros(kind, dtype):
    zeros, some = torch.zeros(20, 6, dtype=dtype), random_normal(0, 20, 6, dtype=dtype)
    check(kind, zeros, zeros)
    check(kind, zeros, some)
    check(kind, some, zeros)
    check(kind, -zeros, torch.cat([some, -zeros, zeros]))


@each_kind
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_a_vector_that_is_not_finite_is_left_and_disturbs_no_other(kind, dtype, odd):
    vectors, codes = random_normal(0, 9, 5, dtype=dtype), random_normal(1, 70, 5, dtype=dtype)
    expected = brute_force(vectors, codes)
    vectors[4, 2], expected[4] = odd, -1
    assert torch.equal(found(kind, vectors, codes), expected)


@each_kind
@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_with_a_codebook_that_is_not_finite_every_row_is_left(kind, dtype, odd):
    vectors, codes = random_normal(0, 9, 5, dtype=dtype), random_normal(1, 70, 5, dtype=dtype)
    codes[3, 1] = odd
    assert (found(kind, vectors, codes) == -1).all()


@each_product
@pytest.mark.parametrize("block", [1, 200, 1000])
def test_blocks_of_any_size(monkeypatch, kind, dtype, block):
    monkeypatch.setattr(scores, "_BLOCK", block)
    monkeypatch.setattr(scores, "_ROWS", 1)
    check(kind, random_normal(0, 37, 6, dtype=dtype), random_normal(1, MAX_CANDIDATES, 6, dtype=dtype))


@each_kind
def test_no_vectors(kind, dtype):
    assert found(kind, torch.empty(0, 5, dtype=dtype), random_normal(1, 70, 5, dtype=dtype)).shape == (0,)


@each_product
@pytest.mark.parametrize("offset", [0, 1e3])
@pytest.mark.parametrize("size", [256, 512, 1024, 2048])
def test_few_codes_may_be_the_nearest_wherever_the_data_lie(kind, dtype, offset, size):
    vectors, codes = (random_normal(seed, rows, 64, dtype=dtype) + offset for seed, rows in enumerate((2000, size)))
    check(kind, vectors, codes)
    made = kind(codes)
    rows, slack = made._make_rows(vectors)
    product = (rows @ made._columns).double()
    best = product.amin(dim=1) * (1.01 if kind is BfloatScores else 1)
    within = (product <= (best + slack)[:, None]).sum(dim=1)
    assert within.double().mean() < (3 if kind is BfloatScores else 1.01)
    assert within.max() < MAX_CANDIDATES


@each_product
def test_no_tensor_is_larger_than_a_block_of_scores(monkeypatch, kind, dtype):
    vectors, made = random_normal(0, 500, 4, dtype=dtype), kind(random_normal(1, 512, 4, dtype=dtype))
    monkeypatch.setattr(scores, "_BLOCK", 8 * 512 * made._columns.itemsize)
    monkeypatch.setattr(scores, "_ROWS", 1)
    with Sizes() as sizes:
        made.nearest(vectors)
    assert 8 * 512 in sizes.made
    assert max(sizes.made) <= 8 * 512


@pytest.mark.parametrize(
    ("capabilities", "able"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, False),
        ({"architecture": "arm64", "neon": True}, False),
    ],
)
def test_a_processor_says_whether_it_multiplies_bfloat16(monkeypatch, capabilities, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert multiplies_bfloat16.__wrapped__() is able


@each_kind
@pytest.mark.parametrize("case", ["equal codes", "nan", "too large", "too small"])
def test_a_row_with_a_crowd_of_candidates_is_left_and_disturbs_no_other(kind, dtype, case):
    vectors, codes = random_normal(0, 50, 8, dtype=dtype), random_normal(1, 2048, 8, dtype=dtype)
    crowded = torch.arange(50) % 3 == 0
    expected = brute_force(vectors, codes)
    if case == "equal codes":
        codes[:] = codes[0]
        crowded[:] = True
    elif case == "too small":
        small = 1e-300 if dtype == torch.float64 else 1e-30
        vectors, codes = vectors * small, codes * small
        crowded[:] = True
    else:
        vectors[crowded] = torch.nan if case == "nan" else torch.finfo(dtype).max / 4
    assert torch.equal(found(kind, vectors, codes), expected.where(~crowded, -1))


# As of a codebook half of which is dead, or started from data that are repeated.
@each_kind
@pytest.mark.parametrize("size", [512, 2048, 8192])
def test_rows_near_very_many_equal_codes_are_left_alone(kind, dtype, size):
    vectors, codes = random_normal(0, 300, 8, dtype=dtype) / 4, random_normal(1, size, 8, dtype=dtype)
    codes[: size // 2] = 0
    expected = brute_force(vectors, codes)
    nearest = found(kind, vectors, codes)
    assert (nearest[expected == 0] == -1).all()
    assert torch.equal(nearest[nearest >= 0], expected[nearest >= 0])
    assert (nearest[expected > 0] >= 0).double().mean() > (0.5 if kind is BfloatScores else 0.99)


def test_elsewhere_the_distances_of_equal_codes_are_equal_in_any_blocks(monkeypatch):
    codes = random_normal(0, 1, 401).expand(3, -1).contiguous()
    for block in (1, 401, 802, 1 << 19):
        monkeypatch.setattr("vqtool.search.rerank._BLOCK", block)
        assert not found(ElsewhereScores, random_normal(1, 9, 401), codes).any()
