"""Each backend returns the nearest code of the float64 definition, or -1 (unresolved)."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.quantizers import TensorSizes, brute_force, random_normal
from vqtool.search.backends import Bfloat16Search, SameDtypeSearch, SmallDimSearch, has_bfloat16_matmul
from vqtool.search.kernels import MAX_CANDIDATES, MAX_SMALL_DIM
from vqtool.search.rerank import rerank_exact


class DeviceSearch(SameDtypeSearch):
    """The search as on a device other than the CPU."""

    def rerank(self, scores, tolerance, vectors, nearest):
        nearest.copy_(rerank_exact(scores, tolerance, vectors, self.codebook))


FEW = settings(deadline=None, max_examples=80)
BACKENDS = {
    "bfloat16": (Bfloat16Search, torch.float32),
    "float32": (SameDtypeSearch, torch.float32),
    "float64": (SameDtypeSearch, torch.float64),
    "small_dim": (SmallDimSearch, torch.float32),
    "device": (DeviceSearch, torch.float32),
}
MATMUL_BACKENDS = ("bfloat16", "float32", "float64", "device")
each_backend = pytest.mark.parametrize(("backend", "dtype"), BACKENDS.values(), ids=BACKENDS)
each_matmul_backend = pytest.mark.parametrize(
    ("backend", "dtype"),
    [BACKENDS[name] for name in MATMUL_BACKENDS],
    ids=MATMUL_BACKENDS,
)
each_float32_backend = pytest.mark.parametrize(
    "backend", [Bfloat16Search, SameDtypeSearch, SmallDimSearch, DeviceSearch]
)


def truncate(backend, *tables):
    """Cut (n, D) tensors to the dimensions that a backend supports."""
    return tuple(table[:, :MAX_SMALL_DIM] for table in tables) if backend is SmallDimSearch else tables


def search(backend, vectors, codes, **options):
    vectors, codes = truncate(backend, vectors, codes)
    nearest = backend(codes, **options).nearest(vectors.contiguous())
    assert nearest.dtype == torch.int64
    assert nearest.shape == (len(vectors),)
    return nearest


def reference(backend, vectors, codes):
    """Return the expected codes; the order of summation, NumPy's or PyTorch's, decides between almost equal sums."""
    if backend is not DeviceSearch:
        return brute_force(vectors, codes)
    return (vectors.double()[:, None] - codes.double()).square().sum(dim=2).argmin(dim=1)


def check_resolved(backend, vectors, codes, max_norm, **options):
    """Check all resolved rows, and that rows with norms below `max_norm` are resolved if candidates cannot be many."""
    nearest = search(backend, vectors, codes, **options)
    resolved = nearest >= 0
    vectors, codes = truncate(backend, vectors, codes)
    assert torch.equal(nearest[resolved], reference(backend, vectors, codes)[resolved])
    if len(codes) <= MAX_CANDIDATES:  # otherwise there may be too many candidates
        centre = codes.double().mean(dim=0)
        furthest = (vectors.double() - centre).norm(dim=1) + (codes.double() - centre).norm(dim=1).max()
        assert resolved[furthest < max_norm].all()


def check(backend, vectors, codes, **options):
    check_resolved(backend, vectors, codes, torch.inf, **options)


@each_backend
@FEW
@given(seed=st.integers(0, 1 << 30), n=st.integers(1, 30), k=st.integers(1, 200), d=st.integers(1, 70))
@example(seed=0, n=1, k=1, d=1)
@example(seed=0, n=3, k=64, d=64)
@example(seed=0, n=3, k=65, d=5)
def test_random_shapes(backend, dtype, seed, n, k, d):
    check(backend, random_normal(seed, n, d, dtype=dtype), random_normal(seed + 1, k, d, dtype=dtype))


@each_backend
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
def test_random_scales_and_offsets(backend, dtype, seed, d, exponents, offset):
    vectors = (random_normal(seed, 19, d) + offset).to(dtype) * 10 ** exponents[0]
    codes = (random_normal(seed + 1, 60, d) + offset).to(dtype) * 10 ** exponents[1]
    check_resolved(backend, vectors, codes, 1e18)


@each_backend
@FEW
@given(seed=st.integers(0, 1 << 30), d=st.integers(1, 12), exponent=st.floats(-30, 30), step=st.floats(0.25, 4))
def test_equal_codes_are_a_tie_for_the_lowest_index(backend, dtype, seed, d, exponent, step):
    distinct = (random_normal(seed, 30, d, dtype=dtype) * step).round() * 10**exponent
    codes = distinct[torch.randint(30, (MAX_CANDIDATES,), generator=torch.Generator().manual_seed(seed))]
    check_resolved(
        backend, torch.cat([distinct, random_normal(seed + 1, 10, d, dtype=dtype) * 10**exponent]), codes, 1e18
    )


@each_backend
@pytest.mark.parametrize("spread", [1.0, 1e-3])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_vectors_half_way_between_two_codes(backend, dtype, spread, offset):
    codes = random_normal(0, 200, 16, dtype=dtype) * spread + offset
    midpoints = (codes[:-1] + codes[1:]) / 2
    epsilons = 4 * torch.finfo(dtype).eps * midpoints.abs() * random_normal(1, *midpoints.shape, dtype=dtype)
    for first in range(0, 199, 40):
        pair = codes[first : first + 2]
        rows = torch.stack([midpoints[first], midpoints[first] + epsilons[first], midpoints[first] - epsilons[first]])
        check(backend, rows, pair)
    check(backend, torch.cat([midpoints, midpoints + epsilons, midpoints - epsilons]), codes)


# The spacing of bfloat16 numbers near 1 is 1/128, so these codes all round to the same number.
@each_backend
def test_codes_that_are_equal_in_bfloat16(backend, dtype):
    codes = 1 + random_normal(0, 300, 8, dtype=dtype) / 1e4
    codes[0] = -1
    check(backend, codes[1:] + random_normal(1, 299, 8, dtype=dtype) / 1e5, codes)


# The codes are exact in bfloat16. The vector is half way between two of them, except for one coordinate; all other
# coordinates round towards the code that is further away.
@pytest.mark.parametrize("d", [16, 64])
def test_vectors_whose_bfloat16_rounding_is_nearer_to_another_code(d):
    first, second = torch.ones(d), torch.full((d,), 1 + 17 / 128)
    codes, vector = torch.stack([first, second, -first, -second]), (first + second) / 2
    vector[0] += 1 / 64
    rounded = vector.bfloat16().float()
    assert brute_force(vector[None], codes).tolist() == [1]
    assert brute_force(rounded[None], codes).tolist() == [0]
    check(Bfloat16Search, vector[None], codes)


# Vectors near the origin and codes at the corners of a cube: scores differ by far less than the spacing of bfloat16,
# and some lie next to a rounding boundary.
@each_float32_backend
@pytest.mark.parametrize("d", [4, 16])
def test_near_ties_at_bfloat16_rounding_boundaries(backend, d):
    generator = torch.Generator().manual_seed(0)
    half = 2.0 * torch.randint(2, (20, d), generator=generator) - 1
    codes = torch.cat([half, -half])
    first, second = codes[torch.randint(40, (2, 3000), generator=generator)]
    between = (first - second) / (first - second).norm(dim=1, keepdim=True).clamp_min(1)
    vectors = (random_normal(1, 3000, d) + (first + second) / 2) / 20
    along = (vectors * between).sum(dim=1, keepdim=True)
    check(backend, vectors - (1 - 1e-4) * along * between, codes)


@each_backend
def test_one_code_far_from_all_others(backend, dtype):
    codes = random_normal(1, 100, 16, dtype=dtype)
    codes[7] = 1e6
    check(backend, random_normal(0, 50, 16, dtype=dtype), codes)


@each_float32_backend
@pytest.mark.parametrize("size", [1e18, 1.8e19, 1e25, 3e37, 3.3e38])
@pytest.mark.parametrize("side", ["vectors", "codes", "both"])
def test_overflowing_squares_and_products(backend, size, side):
    vectors, codes = random_normal(0, 30, 6).clamp(-1, 1), random_normal(1, 60, 6).clamp(-1, 1)
    vector_scale, code_scale = (1 if side == "codes" else size), (1 if side == "vectors" else size)
    check_resolved(backend, vectors * vector_scale, codes * code_scale, 1e18)


@each_float32_backend
def test_large_and_small_vectors_in_one_batch(backend):
    scales = 10.0 ** torch.arange(-38, 39, 4)[:, None]
    check_resolved(backend, random_normal(0, len(scales), 6) * scales, random_normal(1, 60, 6), 1e18)
    check_resolved(backend, random_normal(0, 30, 6), random_normal(1, len(scales), 6) * scales, 1e18)


@each_float32_backend
@pytest.mark.parametrize("exponents", [(-38, -38), (-40, -40), (-44, -44), (0, -40), (-40, 0), (-40, 18), (18, -40)])
def test_denormal_numbers(backend, exponents):
    vectors, codes = (random_normal(seed, 60, 6).double() * 10.0 ** exponents[seed] for seed in (0, 1))
    check(backend, vectors.float(), codes.float())


@each_backend
def test_zero_vectors_and_zero_codes(backend, dtype):
    zeros, nonzero = torch.zeros(20, 6, dtype=dtype), random_normal(0, 20, 6, dtype=dtype)
    check(backend, zeros, zeros)
    check(backend, zeros, nonzero)
    check(backend, nonzero, zeros)
    check(backend, -zeros, torch.cat([nonzero, -zeros, zeros]))


@each_backend
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_vector_is_unresolved_and_does_not_affect_others(backend, dtype, value):
    vectors, codes = random_normal(0, 9, 5, dtype=dtype), random_normal(1, 70, 5, dtype=dtype)
    expected = brute_force(vectors, codes)
    vectors[4, 2], expected[4] = value, -1
    assert torch.equal(search(backend, vectors, codes), expected)


@each_backend
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_codebook_leaves_every_row_unresolved(backend, dtype, value):
    vectors, codes = random_normal(0, 9, 5, dtype=dtype), random_normal(1, 70, 5, dtype=dtype)
    codes[3, 1] = value
    assert (search(backend, vectors, codes) == -1).all()


@each_matmul_backend
@pytest.mark.parametrize("block", [1, 200, 1000])
def test_block_size_does_not_change_the_result(backend, dtype, block):
    vectors, codes = random_normal(0, 37, 6, dtype=dtype), random_normal(1, MAX_CANDIDATES, 6, dtype=dtype)
    check(backend, vectors, codes, bytes_per_block=block, min_rows_per_block=1)


@each_backend
def test_no_vectors(backend, dtype):
    assert search(backend, torch.empty(0, 5, dtype=dtype), random_normal(1, 70, 5, dtype=dtype)).shape == (0,)


@each_matmul_backend
@pytest.mark.parametrize("offset", [0, 1e3])
@pytest.mark.parametrize("size", [256, 512, 1024, 2048])
def test_candidates_per_vector_are_few(backend, dtype, offset, size):
    vectors, codes = (random_normal(seed, rows, 64, dtype=dtype) + offset for seed, rows in enumerate((2000, size)))
    check(backend, vectors, codes)
    built = backend(codes)
    rows, tolerance = built.make_rows(vectors)
    scores = (rows @ built.columns).double()
    best = scores.amin(dim=1) * (1.01 if backend is Bfloat16Search else 1)
    candidates = (scores <= (best + tolerance)[:, None]).sum(dim=1)
    assert candidates.double().mean() < (3 if backend is Bfloat16Search else 1.01)
    assert candidates.max() < MAX_CANDIDATES


@each_matmul_backend
def test_no_tensor_is_larger_than_a_block_of_scores(backend, dtype):
    vectors, codes = random_normal(0, 500, 4, dtype=dtype), random_normal(1, 512, 4, dtype=dtype)
    itemsize = 2 if backend is Bfloat16Search else dtype.itemsize
    built = backend(codes, bytes_per_block=8 * 512 * itemsize, min_rows_per_block=1)
    with TensorSizes() as sizes:
        built.nearest(vectors)
    assert 8 * 512 in sizes.numels
    assert max(sizes.numels) <= 8 * 512


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, False),
        ({"architecture": "arm64", "neon": True}, False),
    ],
)
def test_has_bfloat16_matmul_follows_the_processor_capabilities(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_bfloat16_matmul.__wrapped__() is expected


@each_backend
@pytest.mark.parametrize("case", ["equal codes", "nan", "too large", "too small"])
def test_row_with_too_many_candidates_is_unresolved_and_does_not_affect_others(backend, dtype, case):
    vectors, codes = random_normal(0, 50, 8, dtype=dtype), random_normal(1, 2048, 8, dtype=dtype)
    unresolved = torch.arange(50) % 3 == 0
    expected = brute_force(vectors, codes)
    if case == "equal codes":
        codes[:] = codes[0]
        unresolved[:] = True
    elif case == "too small":
        small = 1e-300 if dtype == torch.float64 else 1e-30
        vectors, codes = vectors * small, codes * small
        unresolved[:] = True
    else:
        vectors[unresolved] = torch.nan if case == "nan" else torch.finfo(dtype).max / 4
    assert torch.equal(search(backend, vectors, codes), expected.where(~unresolved, -1))


# Many equal codes occur if half of the codes are dead, or if k-means ran on repeated data.
@each_backend
@pytest.mark.parametrize("size", [512, 2048, 8192])
def test_rows_near_many_equal_codes_are_unresolved(backend, dtype, size):
    vectors, codes = random_normal(0, 300, 8, dtype=dtype) / 4, random_normal(1, size, 8, dtype=dtype)
    codes[: size // 2] = 0
    expected = brute_force(vectors, codes)
    nearest = search(backend, vectors, codes)
    assert (nearest[expected == 0] == -1).all()
    assert torch.equal(nearest[nearest >= 0], expected[nearest >= 0])
    assert (nearest[expected > 0] >= 0).double().mean() > (0.5 if backend is Bfloat16Search else 0.99)


def test_rerank_exact_gives_equal_codes_equal_distances_for_any_block_size():
    codes, scores = random_normal(0, 1, 401).expand(3, -1).contiguous(), torch.zeros(9, 3)
    for block in (1, 401, 802, 1 << 19):
        nearest = rerank_exact(scores, torch.ones(9), random_normal(1, 9, 401), codes, elements_per_block=block)
        assert not nearest.any()


# The left factor of the bfloat16 product


@FEW
@given(seed=st.integers(0, 1 << 30), d=st.integers(1, 70), exponent=st.floats(-18, 17))
def test_rows_are_rounded_like_pytorch_followed_by_two_ones(seed, d, exponent):
    vectors, codes = random_normal(seed, 20, d) * 10**exponent, random_normal(seed + 1, 30, d) * 10**exponent
    rows, tolerance = Bfloat16Search(codes).make_rows(vectors)
    assert torch.equal(rows[:, :d], (codes.mean(dim=0) - vectors).bfloat16())
    assert (rows[:, d : d + 2] == 1).all()
    assert tolerance.isfinite().all()


def test_ties_are_rounded_to_even():
    # Half way between two bfloat16 numbers: between 1 and 2 their spacing is 1/128.
    vectors = -torch.tensor([[1 + 1 / 256], [1 + 3 / 256], [1 + 5 / 256]])
    rows, _ = Bfloat16Search(torch.zeros(4, 1)).make_rows(vectors)
    assert rows[:, 0].tolist() == [1, 1 + 2 / 128, 1 + 2 / 128]


@FEW
@given(seed=st.integers(0, 1 << 30), d=st.integers(1, 40), exponents=st.tuples(*2 * [st.floats(-12, 12)]))
def test_scores_are_not_negative_and_the_nearest_code_is_within_the_tolerance(seed, d, exponents):
    vectors, codes = (
        random_normal(seed, 20, d) * 10 ** exponents[0],
        random_normal(seed + 1, 70, d) * 10 ** exponents[1],
    )
    search = Bfloat16Search(codes)
    rows, tolerance = search.make_rows(vectors)
    scores = rows.double() @ search.columns.double()
    assert (scores >= 0).all()
    exact = torch.cdist(vectors.double(), codes.double()).square()
    nearest_scores = scores[torch.arange(20), exact.argmin(dim=1)]
    assert (nearest_scores <= scores.amin(dim=1) + tolerance).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38, 2e19])
def test_row_with_possibly_non_finite_scores_is_all_zeros(value):
    vectors = random_normal(0, 5, 6)
    vectors[3, 2] = value
    rows, tolerance = Bfloat16Search(random_normal(1, 9, 6)).make_rows(vectors)
    assert tolerance.isinf().tolist() == [False, False, False, True, False]
    assert not rows[3].any()
    assert rows.isfinite().all()
