"""K-means against scikit-learn's, a loop by hand, and mixtures whose centres are known."""

import itertools

import numpy as np
import pytest
import torch

from vqtool.data.synthetic.mixture import MixtureSettings
from vqtool.quantizers import kmeans
from vqtool.quantizers.kmeans import KMeansSpeed, centroids, codes_drawn, seeds


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def vectors(s, d, seed=0, dtype=torch.float32):
    return torch.randn(s, d, generator=random(seed), dtype=torch.float64).to(dtype)


def error(z, codes):
    """Sum of squared distances to the nearest code, in float64 from the differences."""
    return float((z.double()[:, None] - codes.double()).square().sum(dim=2).min(dim=1).values.sum())


def mixture(seed, samples=2500, components=64, dim=16):
    """Vectors of a mixture of Gaussians 8 standard deviations apart or more, and its centres."""
    source = MixtureSettings(components=components, dim=dim)
    z = source.generate(samples, np.random.default_rng(seed))
    return torch.from_numpy(z), torch.from_numpy(source.centres(np.random.default_rng(seed)))


def found(codes, centres):
    """How many centres have a code within 2.5, where the mean of 20 vectors and more in 16 dimensions lies."""
    distances = torch.cdist(centres.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return int((distances.min(dim=1).values < 2.5).sum())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("d", "k"), [(1, 8), (2, 16), (8, 64), (32, 10), (3, 300)])
def test_never_worse_than_scikit_learn_by_more_than_a_hundredth(d, k, seed):
    cluster = pytest.importorskip("sklearn.cluster")
    z = vectors(1500, d, seed)
    theirs = cluster.KMeans(k, n_init=1, random_state=seed).fit(z.numpy()).cluster_centers_
    assert error(z, kmeans(z, k, random(seed))) <= 1.01 * error(z, torch.from_numpy(theirs))


@pytest.mark.parametrize("seed", range(6))
def test_every_centre_of_a_mixture_is_found(seed):
    z, centres = mixture(seed)
    codes = kmeans(z, 64, random(seed))
    assert codes.shape == (64, 16)
    assert found(codes, centres) == 64


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_exchanges_some_centre_is_missed(seed):
    # What the exchanges are for: if this ever fails, they may go.
    z, centres = mixture(seed)
    assert found(kmeans(z, 64, random(seed), exchanges=0), centres) < 64


def test_exchanges_never_make_it_worse():
    for seed in range(3):
        z = vectors(400, 3, seed)
        assert error(z, kmeans(z, 20, random(seed))) <= error(z, kmeans(z, 20, random(seed), exchanges=0))


def test_the_result_is_a_function_of_vectors_and_generator_state():
    z = vectors(400, 3)
    first = kmeans(z, 20, random(7))
    generator = random(7)
    torch.manual_seed(123)  # has no part in it
    assert torch.equal(kmeans(z, 20, generator), first)
    assert not torch.equal(kmeans(z, 20, generator), first)


def test_vectors_are_left_as_they_are():
    z = vectors(100, 3)
    before = z.clone()
    kmeans(z, 10, random())
    assert torch.equal(z, before)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_lloyd_follows_the_loop_by_hand(iterations):
    z = vectors(120, 3, dtype=torch.float64)
    codes = seeds(z, 9, random(3)).numpy().copy()
    for _ in range(iterations):
        owners = [int(((vector - codes) ** 2).sum(axis=1).argmin()) for vector in z.numpy()]
        for k in range(9):
            won = [vector for vector, owner in zip(z.numpy(), owners, strict=True) if owner == k]
            if won:
                codes[k] = sum(won) / len(won)
    mine = kmeans(z, 9, random(3), iterations=iterations, exchanges=0)
    assert mine.dtype == torch.float64
    np.testing.assert_allclose(mine.numpy(), codes, rtol=1e-12, atol=1e-14)


def test_every_code_is_the_mean_of_its_vectors_once_nothing_moves():
    z = vectors(300, 2, dtype=torch.float64)
    codes = kmeans(z, 12, random(), iterations=200)
    owners = (z[:, None] - codes).square().sum(dim=2).argmin(dim=1)
    for k in range(12):
        torch.testing.assert_close(codes[k], z[owners == k].mean(dim=0))


def test_centroids_are_means_and_a_code_without_vectors_stays():
    z = torch.tensor([[1.0, 2.0], [3.0, 4.0], [-5.0, 0.0]])
    codes = torch.tensor([[9.0, 9.0], [7.0, 7.0], [8.0, 8.0]])
    expected = torch.tensor([[2.0, 3.0], [7.0, 7.0], [-5.0, 0.0]])
    assert torch.equal(centroids(z, torch.tensor([0, 0, 2]), codes), expected)


def test_one_code_is_the_mean():
    z = vectors(50, 4, dtype=torch.float64)
    torch.testing.assert_close(kmeans(z, 1, random()), z.mean(dim=0, keepdim=True))


@pytest.mark.parametrize(("s", "k"), [(1, 1), (1, 5), (7, 20), (20, 20), (3, 300)])
def test_with_as_many_codes_as_vectors_every_vector_is_a_code(s, k):
    z = vectors(s, 3)
    codes = kmeans(z, k, random())
    assert codes.shape == (k, 3)
    assert error(z, codes) == 0
    assert error(codes, z) == 0


@pytest.mark.parametrize("k", [1, 6, 40])
def test_vectors_that_are_all_equal(k):
    z = torch.tensor([[0.1, -2.3, 5.7]]).expand(30, 3)
    torch.testing.assert_close(kmeans(z, k, random()), z[:1].expand(k, 3))


@pytest.mark.parametrize("k", [10, 15])
@pytest.mark.parametrize("seed", range(3))
def test_duplicates_count_as_one_where_codes_are_few(k, seed):
    distinct = vectors(10, 3)
    rows = torch.cat([torch.arange(10), torch.zeros(500, dtype=torch.int64)])
    codes = kmeans(distinct[rows], k, random(seed))
    assert codes.shape == (k, 3)
    assert error(distinct, codes) < 1e-9


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_vectors_far_from_the_origin(offset):
    z, centres = mixture(0)
    assert found(kmeans(z + offset, 64, random()) - offset, centres) == 64


@pytest.mark.parametrize("power", [-40, -20, 20, 40])
def test_codes_scale_with_the_vectors(power):
    z, _ = mixture(1, samples=600, components=16, dim=4)
    expected = kmeans(z, 16, random())
    torch.testing.assert_close(kmeans(z * 2.0**power, 16, random()) * 2.0**-power, expected)


def test_float32_and_float64_find_the_same():
    z, _ = mixture(2, samples=600, components=16, dim=4)
    torch.testing.assert_close(kmeans(z, 16, random()).double(), kmeans(z.double(), 16, random()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [40, 130])
def test_beyond_the_limit_codes_are_vectors_drawn_evenly(k, monkeypatch):
    z = vectors(100, 3)
    limit = 2 * z.numel() * k
    monkeypatch.setitem(kmeans.__globals__, "_ITERATION_LIMIT", limit)
    once = kmeans(z, k, random(), iterations=1, exchanges=0)
    assert torch.equal(kmeans(z, k, random(), iterations=10, exchanges=0), once)
    monkeypatch.setitem(kmeans.__globals__, "_ITERATION_LIMIT", limit - 1)
    rows = [z.tolist().index(code) for code in kmeans(z, k, random()).tolist()]
    assert len(set(rows)) == min(k, 100)


def test_drawn_evenly_far_vectors_are_no_likelier(monkeypatch):
    monkeypatch.setitem(kmeans.__globals__, "_ITERATION_LIMIT", 0)
    z, generator = torch.tensor([[0.0], [1.0], [1000.0], [2.0]]), random()
    drawn = torch.cat([kmeans(z, 2, generator)[:, 0] for _ in range(1000)])
    for value in z[:, 0]:
        assert int((drawn == value).sum()) == pytest.approx(500, abs=60)


def test_seeds_are_drawn_in_proportion_to_the_squared_distance():
    z = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    generator, runs = random(), 3000
    counts = np.zeros((4, 4))
    for _ in range(runs):
        first, second = seeds(z, 2, generator)[:, 0].tolist()
        counts[[0.0, 1.0, 3.0, 7.0].index(first), [0.0, 1.0, 3.0, 7.0].index(second)] += 1
    squared = (z - z.T).square().double().numpy()
    expected = runs / 4 * squared / squared.sum(axis=1, keepdims=True)
    assert counts[expected == 0].sum() == 0
    # Pearson's statistic over 12 pairs that can be: with 11 degrees of freedom 31.3 is passed once in a thousand.
    assert ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum() < 31.3


def test_the_third_seed_minds_both_before_it():
    z = torch.tensor([[0.0], [10.0], [10.5], [4.0]])
    generator = random()
    drawn = [seeds(z, 3, generator)[:, 0].tolist() for _ in range(1500)]
    thirds = [third for first, second, third in drawn if {first, second} == {0.0, 10.0}]
    # Of 0.25 and 16, the squared distances of what is left to the nearer of the two.
    assert thirds.count(10.5) / len(thirds) == pytest.approx(0.25 / 16.25, abs=0.02)
    assert set(thirds) == {10.5, 4.0}


@pytest.mark.parametrize("k", [5, 256, 257, 700])
def test_seeds_are_vectors_and_no_two_the_same(k):
    z = vectors(700, 3)
    rows = [z.tolist().index(seed) for seed in seeds(z, k, random()).tolist()]
    assert len(rows) == len(set(rows)) == k


def test_more_codes_than_vectors_by_far_take_no_iterations():
    vectors = torch.randn(5, 2)
    codes = kmeans(vectors, 1 << 20, torch.Generator().manual_seed(0))
    assert codes.shape == (1 << 20, 2)
    assert torch.equal(codes.unique(dim=0), vectors.unique(dim=0))


# What is known of it beforehand


def test_the_speed_is_that_of_the_vectors_timed():
    ticks = itertools.count()
    codes = vectors(1 << 12, 64)
    speed = KMeansSpeed.measure(1 << 20, codes, lambda: float(next(ticks)))
    assert speed == (1 / (1 << 12), 1 / (1 << 16))


@pytest.mark.parametrize(
    ("s", "k", "d", "passes", "rounds"),
    [
        (100, 200, 4, 0, 0),  # drawn
        (1 << 22, 1 << 18, 64, 0, 0),  # drawn, as it is too much
        (1 << 18, 1 << 16, 64, 2, 256),  # few iterations
        (1 << 16, 1 << 10, 256, 10, 256),  # no exchanges
        (1000, 10, 4, 10 + 1 + 50 * 23, 10),
        (1000, 1, 4, 10, 1),
    ],
)
def test_its_time_is_that_of_passes_and_rounds(s, k, d, passes, rounds):
    assert KMeansSpeed(1.0, 0.0).seconds(s, k, d) == s * passes
    assert KMeansSpeed(0.0, 1.0).seconds(s, k, d) == s * rounds


def test_no_more_is_compared_than_was_said(monkeypatch):
    z, compared = vectors(600, 4), []
    nearest = kmeans.__globals__["nearest_codes"]

    def counted(block, codes):
        compared.append(len(block))
        return nearest(block, codes)

    monkeypatch.setitem(kmeans.__globals__, "nearest_codes", counted)
    kmeans(z, 40, random(), iterations=3, exchanges=2)
    assert sum(compared) <= 600 * (3 + 1 + 2 * (1 + 2 * 3))


def test_drawn_codes_lie_among_the_vectors_and_differ():
    z = vectors(10, 3) + 100
    with codes_drawn():
        codes = kmeans(z, 40, random())
    assert len(codes.unique(dim=0)) == 40
    assert error(codes, z) / 40 < 4 * 3
    assert error(z, kmeans(z, 40, random())) == 0
