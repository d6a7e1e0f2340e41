"""K-means against scikit-learn, a reference loop, and mixtures with known centres."""

import itertools

import numpy as np
import pytest
import torch

from vqtool.data.synthetic import MixtureSettings
from vqtool.quantizers import kmeans
from vqtool.quantizers.kmeans import KMeansSpeed, centroids, kmeans_plus_plus, skip_kmeans_fit


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def vectors(s, d, seed=0, dtype=torch.float32):
    return torch.randn(s, d, generator=seeded(seed), dtype=torch.float64).to(dtype)


def error(z, codes):
    """Return the sum of squared distances to the nearest code, in float64."""
    return float((z.double()[:, None] - codes.double()).square().sum(dim=2).min(dim=1).values.sum())


def mixture(seed, samples=2500, components=64, dim=16):
    """Vectors of a mixture of Gaussians at least 8 standard deviations apart, and its centres."""
    source = MixtureSettings(components=components, dim=dim)
    z = source.generate(samples, np.random.default_rng(seed))
    return torch.from_numpy(z), torch.from_numpy(source.centres(np.random.default_rng(seed)))


def centres_found(codes, centres):
    """Return the number of centres with a code within 2.5, farther than the mean of 20 vectors in 16 dimensions."""
    distances = torch.cdist(centres.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return int((distances.min(dim=1).values < 2.5).sum())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("d", "k"), [(1, 8), (2, 16), (8, 64), (32, 10), (3, 300)])
def test_error_is_at_most_1_percent_above_scikit_learn(d, k, seed):
    cluster = pytest.importorskip("sklearn.cluster")
    z = vectors(1500, d, seed)
    sklearn_centres = cluster.KMeans(k, n_init=1, random_state=seed).fit(z.numpy()).cluster_centers_
    assert error(z, kmeans(z, k, seeded(seed))) <= 1.01 * error(z, torch.from_numpy(sklearn_centres))


@pytest.mark.parametrize("seed", range(6))
def test_all_centres_of_a_mixture_are_found(seed):
    z, centres = mixture(seed)
    codes = kmeans(z, 64, seeded(seed))
    assert codes.shape == (64, 16)
    assert centres_found(codes, centres) == 64


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_exchanges_some_centres_are_missed(seed):
    # If this fails, exchanges have become unnecessary.
    z, centres = mixture(seed)
    assert centres_found(kmeans(z, 64, seeded(seed), exchanges=0), centres) < 64


def test_exchanges_do_not_raise_the_error():
    for seed in range(3):
        z = vectors(400, 3, seed)
        assert error(z, kmeans(z, 20, seeded(seed))) <= error(z, kmeans(z, 20, seeded(seed), exchanges=0))


def test_result_depends_only_on_vectors_and_generator_state():
    z = vectors(400, 3)
    first = kmeans(z, 20, seeded(7))
    generator = seeded(7)
    torch.manual_seed(123)  # the global generator is not used
    assert torch.equal(kmeans(z, 20, generator), first)
    assert not torch.equal(kmeans(z, 20, generator), first)


def test_vectors_are_not_modified():
    z = vectors(100, 3)
    before = z.clone()
    kmeans(z, 10, seeded())
    assert torch.equal(z, before)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_lloyd_iterations_match_the_reference_loop(iterations):
    z = vectors(120, 3, dtype=torch.float64)
    codes = kmeans_plus_plus(z, 9, seeded(3)).numpy().copy()
    for _ in range(iterations):
        labels = [int(((vector - codes) ** 2).sum(axis=1).argmin()) for vector in z.numpy()]
        for k in range(9):
            members = [vector for vector, label in zip(z.numpy(), labels, strict=True) if label == k]
            if members:
                codes[k] = sum(members) / len(members)
    actual = kmeans(z, 9, seeded(3), iterations=iterations, exchanges=0)
    assert actual.dtype == torch.float64
    np.testing.assert_allclose(actual.numpy(), codes, rtol=1e-12, atol=1e-14)


def test_converged_codes_are_the_means_of_their_vectors():
    z = vectors(300, 2, dtype=torch.float64)
    codes = kmeans(z, 12, seeded(), iterations=200)
    labels = (z[:, None] - codes).square().sum(dim=2).argmin(dim=1)
    for k in range(12):
        torch.testing.assert_close(codes[k], z[labels == k].mean(dim=0))


def test_centroids_are_means_and_codes_without_vectors_are_kept():
    z = torch.tensor([[1.0, 2.0], [3.0, 4.0], [-5.0, 0.0]])
    codes = torch.tensor([[9.0, 9.0], [7.0, 7.0], [8.0, 8.0]])
    expected = torch.tensor([[2.0, 3.0], [7.0, 7.0], [-5.0, 0.0]])
    assert torch.equal(centroids(z, torch.tensor([0, 0, 2]), codes), expected)


def test_one_code_is_the_mean():
    z = vectors(50, 4, dtype=torch.float64)
    torch.testing.assert_close(kmeans(z, 1, seeded()), z.mean(dim=0, keepdim=True))


@pytest.mark.parametrize(("s", "k"), [(1, 1), (1, 5), (7, 20), (20, 20), (3, 300)])
def test_every_vector_is_a_code_if_there_are_enough_codes(s, k):
    z = vectors(s, 3)
    codes = kmeans(z, k, seeded())
    assert codes.shape == (k, 3)
    assert error(z, codes) == 0
    assert error(codes, z) == 0


@pytest.mark.parametrize("k", [1, 6, 40])
def test_equal_vectors_give_equal_codes(k):
    z = torch.tensor([[0.1, -2.3, 5.7]]).expand(30, 3)
    torch.testing.assert_close(kmeans(z, k, seeded()), z[:1].expand(k, 3))


@pytest.mark.parametrize("k", [10, 15])
@pytest.mark.parametrize("seed", range(3))
def test_duplicate_vectors_do_not_displace_other_codes(k, seed):
    distinct = vectors(10, 3)
    rows = torch.cat([torch.arange(10), torch.zeros(500, dtype=torch.int64)])
    codes = kmeans(distinct[rows], k, seeded(seed))
    assert codes.shape == (k, 3)
    assert error(distinct, codes) < 1e-9


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_centres_are_found_far_from_the_origin(offset):
    z, centres = mixture(0)
    assert centres_found(kmeans(z + offset, 64, seeded()) - offset, centres) == 64


@pytest.mark.parametrize("power", [-40, -20, 20, 40])
def test_codes_scale_with_the_vectors(power):
    z, _ = mixture(1, samples=600, components=16, dim=4)
    expected = kmeans(z, 16, seeded())
    torch.testing.assert_close(kmeans(z * 2.0**power, 16, seeded()) * 2.0**-power, expected)


def test_float32_and_float64_give_the_same_codes():
    z, _ = mixture(2, samples=600, components=16, dim=4)
    torch.testing.assert_close(kmeans(z, 16, seeded()).double(), kmeans(z.double(), 16, seeded()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [40, 130])
def test_above_max_flops_codes_are_drawn_from_the_vectors(k):
    z = vectors(100, 3)
    flops = 2 * z.numel() * k
    one_iteration = kmeans(z, k, seeded(), iterations=1, exchanges=0, max_flops=flops)
    assert torch.equal(kmeans(z, k, seeded(), iterations=10, exchanges=0, max_flops=flops), one_iteration)
    rows = [z.tolist().index(code) for code in kmeans(z, k, seeded(), max_flops=flops - 1).tolist()]
    assert len(set(rows)) == min(k, 100)


def test_drawn_codes_are_uniform_over_the_vectors():
    z, generator = torch.tensor([[0.0], [1.0], [1000.0], [2.0]]), seeded()
    drawn = torch.cat([kmeans(z, 2, generator, max_flops=0)[:, 0] for _ in range(1000)])
    for value in z[:, 0]:
        assert int((drawn == value).sum()) == pytest.approx(500, abs=60)


def test_seeds_are_drawn_by_squared_distance():
    z = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    generator, runs = seeded(), 3000
    counts = np.zeros((4, 4))
    for _ in range(runs):
        first, second = kmeans_plus_plus(z, 2, generator)[:, 0].tolist()
        counts[[0.0, 1.0, 3.0, 7.0].index(first), [0.0, 1.0, 3.0, 7.0].index(second)] += 1
    squared = (z - z.T).square().double().numpy()
    expected = runs / 4 * squared / squared.sum(axis=1, keepdims=True)
    assert counts[expected == 0].sum() == 0
    # Pearson's chi-squared over the 12 possible pairs: with 11 degrees of freedom, p = 0.001 at 31.3.
    assert ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum() < 31.3


def test_seed_distances_are_to_the_nearest_earlier_seed():
    z = torch.tensor([[0.0], [10.0], [10.5], [4.0]])
    generator = seeded()
    drawn = [kmeans_plus_plus(z, 3, generator)[:, 0].tolist() for _ in range(1500)]
    thirds = [third for first, second, third in drawn if {first, second} == {0.0, 10.0}]
    # Squared distances of the other two vectors to the nearer seed: 0.25 (10.5) and 16 (4).
    assert thirds.count(10.5) / len(thirds) == pytest.approx(0.25 / 16.25, abs=0.02)
    assert set(thirds) == {10.5, 4.0}


@pytest.mark.parametrize("k", [5, 256, 257, 700])
def test_seeds_are_different_vectors(k):
    z = vectors(700, 3)
    rows = [z.tolist().index(seed) for seed in kmeans_plus_plus(z, k, seeded()).tolist()]
    assert len(rows) == len(set(rows)) == k


def test_many_more_codes_than_vectors():
    vectors = torch.randn(5, 2)
    codes = kmeans(vectors, 1 << 20, torch.Generator().manual_seed(0))
    assert codes.shape == (1 << 20, 2)
    assert torch.equal(codes.unique(dim=0), vectors.unique(dim=0))


# Speed and progress


def test_speed_is_seconds_per_timed_vector():
    ticks = itertools.count()
    codes = vectors(1 << 12, 64)
    speed = KMeansSpeed.measure(1 << 20, codes, lambda: float(next(ticks)))
    assert speed == (1 / (1 << 12), 1 / (1 << 16))


@pytest.mark.parametrize(
    ("s", "k", "d", "passes", "rounds"),
    [
        (100, 200, 4, 0, 0),  # drawn: more codes than vectors
        (1 << 22, 1 << 18, 64, 0, 0),  # drawn: above max_flops
        (1 << 18, 1 << 16, 64, 2, 256),  # few iterations
        (1 << 16, 1 << 10, 256, 10, 256),  # no exchanges
        (1000, 10, 4, 10 + 1 + 50 * 23, 10),
        (1000, 1, 4, 10, 1),
    ],
)
def test_estimated_seconds_count_passes_and_seeding_rounds(s, k, d, passes, rounds):
    assert KMeansSpeed(1.0, 0.0).seconds(s, k, d) == s * passes
    assert KMeansSpeed(0.0, 1.0).seconds(s, k, d) == s * rounds


def test_passes_do_not_exceed_the_progress_total(monkeypatch):
    z, compared = vectors(600, 4), []
    nearest = kmeans.__globals__["nearest_codes"]

    def counted(block, codes):
        compared.append(len(block))
        return nearest(block, codes)

    monkeypatch.setitem(kmeans.__globals__, "nearest_codes", counted)
    kmeans(z, 40, seeded(), iterations=3, exchanges=2)
    assert sum(compared) <= 600 * (3 + 1 + 2 * (1 + 2 * 3))


def test_skip_kmeans_fit_gives_different_codes_near_the_vectors():
    z = vectors(10, 3) + 100
    with skip_kmeans_fit():
        codes = kmeans(z, 40, seeded())
    assert len(codes.unique(dim=0)) == 40
    assert error(codes, z) / 40 < 4 * 3
    assert error(z, kmeans(z, 40, seeded())) == 0
