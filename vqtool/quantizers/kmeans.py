"""K-means: k-means++ seeding, Lloyd's iterations, and exchanges of codes that escape local minima.

    minimise   error = sum over n of min over k of |z_n - e_k|²

Shapes: N vectors, K codes, D dimensions. Work is counted in FLOPs: 2 N K D for the distances of all pairs.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from vqtool.runtime.progress import pass_bar
from vqtool.search import nearest_codes

# Maximum number of distances computed at a time, which bounds the memory.
_DISTANCES_PER_BLOCK = 1 << 22
# Maximum number of rounds in which codes are seeded.
_MAX_SEEDING_ROUNDS = 256
# Limits on the work of one run of Lloyd's iterations, and of all exchanges, so that neither takes minutes.
_MAX_LLOYD_FLOPS = 1 << 42
_MAX_EXCHANGE_FLOPS = 1 << 34
# Work between two updates of the progress bar: less than a second.
_FLOPS_PER_PROGRESS_UPDATE = 1 << 34
# Limits on the work of the assignment and on the elements of the seeding round that `KMeansSpeed.measure` times.
_TIMED_FLOPS = 1 << 31
_TIMED_ELEMENTS = 1 << 22
# An exchange fails if it lowers the error by at most this fraction; this many failures in succession stop the search.
_MIN_RELATIVE_GAIN = 1e-4
_MAX_FAILURES = 6
# Defaults of `kmeans`.
ITERATIONS, EXCHANGES = 10, 50
# Called with the number of vectors that were compared with all codes since the last call.
Advance = Callable[[int], None]

_skip_fit: ContextVar[bool] = ContextVar("skip_fit", default=False)


def kmeans(
    vectors: Tensor,
    codebook_size: int,
    generator: Generator,
    iterations: int = ITERATIONS,
    exchanges: int = EXCHANGES,
    max_flops: int = _MAX_LLOYD_FLOPS,
) -> Tensor:
    """Return K codes with a small mean squared distance of `vectors` to their nearest code, near a local minimum.

    Runs Lloyd's iterations (Lloyd 1982, "Least Squares Quantization in PCM") from k-means++ seeds. It then repeatedly
    adds codes where the error is large and removes as many where they reduce it least (Fritzke 2020, "The breathing
    k-means algorithm"), which avoids two codes in one cluster while another cluster has none.

    Args:
        vectors: z (N, D), at least one; if N <= K, they are the codes, and some are repeated if N < K.
        codebook_size: K.
        generator: a generator on the CPU; the result depends only on the vectors and its state.
        iterations: maximum number of Lloyd's iterations per run; fewer if they would exceed `max_flops`.
        exchanges: maximum number of rounds of adding and removing codes; fewer if they would exceed 2^34 FLOPs.
        max_flops: if one iteration exceeds this, codes are vectors drawn uniformly.

    Returns:
        (K, D) codes, in the dtype of the vectors.

    Raises:
        Stopped: a signal was received.
    """
    if _skip_fit.get():
        return _random_codes(vectors, codebook_size, generator)
    limits = _iteration_limits(len(vectors), codebook_size, vectors.shape[1], iterations, exchanges, max_flops)
    if limits is None:
        return vectors[_weighted_sample(torch.ones(len(vectors)), codebook_size, generator).to(vectors.device)]
    iterations, exchanges = limits
    codes = kmeans_plus_plus(vectors, codebook_size, generator)
    total = len(vectors) * _max_passes(iterations, exchanges)
    with pass_bar(f"k-means, {codebook_size:,} codes", total, "assignments") as bar:
        codes = _lloyd(vectors, codes, iterations, bar.update)
        return _exchange_codes(vectors, codes, exchanges, iterations, generator, bar.update) if exchanges else codes


def _iteration_limits(
    num_vectors: int, codebook_size: int, dim: int, iterations: int, exchanges: int, max_flops: int = _MAX_LLOYD_FLOPS
) -> tuple[int, int] | None:
    """Return `iterations` and `exchanges`, reduced to the work limits of `kmeans`; None if it only draws vectors."""
    flops = 2 * num_vectors * dim * codebook_size
    # Above the limit even seeding takes too long. With at least as many codes as vectors, each vector is a code.
    if flops > max_flops or codebook_size >= num_vectors:
        return None
    iterations = max(1, min(iterations, max_flops // max(1, flops)))
    if codebook_size == 1:
        return iterations, 0
    return iterations, min(exchanges, _MAX_EXCHANGE_FLOPS // max(1, flops * (iterations + 1)))


def _max_passes(iterations: int, exchanges: int) -> int:
    """Return how often all vectors are compared with all codes after seeding, at most."""
    # With exchanges: the error once; per exchange two runs of Lloyd's iterations, and three passes for the codes to
    # add, the codes to remove and the error.
    return iterations + (1 + exchanges * (3 + 2 * iterations) if exchanges else 0)


class KMeansSpeed(NamedTuple):
    """Measured speed of k-means with codes (K, D), in seconds per vector."""

    assignment: float
    """Seconds per vector to find its nearest code."""
    seeding_round: float
    """Seconds per vector of one round of seeding."""

    @classmethod
    def measure(cls, num_vectors: int, codes: Tensor, clock: Callable[[], float] = time.perf_counter) -> "KMeansSpeed":
        """Time both on at most `num_vectors` random vectors near the `codes` (K, D); `clock` returns seconds."""
        num_assigned = max(1, min(num_vectors, _TIMED_FLOPS // (2 * codes.numel())))
        num_seeded = max(1, min(num_vectors, _TIMED_ELEMENTS // codes.shape[1]))
        noise = torch.randn(max(num_assigned, num_seeded), codes.shape[1], generator=Generator().manual_seed(0))
        noise = noise.to(codes)
        inputs = codes[torch.arange(len(noise), device=codes.device) % len(codes)] + codes.std(correction=0) * noise
        nearest_codes(inputs[:1], codes).cpu()  # the first call compiles or loads kernels
        start_time = clock()
        nearest_codes(inputs[:num_assigned], codes).cpu()
        assignment_end = clock()
        distances, number = noise[:num_seeded, 0].square(), _codes_per_round(len(codes))
        _seeding_round(inputs[:num_seeded], distances, number, Generator().manual_seed(0))[1].cpu()
        return cls((assignment_end - start_time) / num_assigned, (clock() - assignment_end) / num_seeded)

    def seconds(self, num_vectors: int, codebook_size: int, dim: int) -> float:
        """Return an upper estimate of the seconds of `kmeans` with its default arguments; 0 if codes are only drawn."""
        limits = _iteration_limits(num_vectors, codebook_size, dim, ITERATIONS, EXCHANGES)
        if limits is None:
            return 0.0
        rounds = codebook_size / _codes_per_round(codebook_size)
        return num_vectors * (_max_passes(*limits) * self.assignment + rounds * self.seeding_round)


def allocate_kmeans_memory(vectors: Tensor, codebook_size: int) -> None:
    """Reach the peak memory of `kmeans` for vectors (N, D) in little time, by the same steps with two codes."""
    limits = _iteration_limits(len(vectors), codebook_size, vectors.shape[1], ITERATIONS, EXCHANGES)
    if limits:
        kmeans(vectors, 2, Generator().manual_seed(0), iterations=1, exchanges=min(1, limits[1]))


@contextmanager
def skip_kmeans_fit() -> Iterator[None]:
    """Context in which `kmeans` only returns randomly drawn vectors plus noise, for a dry run."""
    token = _skip_fit.set(True)
    try:
        yield
    finally:
        _skip_fit.reset(token)


def assign_with_progress(nearest: Callable[[Tensor], Tensor], vectors: Tensor, codebook_size: int) -> Tensor:
    """Return `nearest(vectors)` (N,) int64, computed in blocks with a progress bar. Raises Stopped on a signal.

    Args:
        nearest: maps (n, D) to the indices (n,) of the nearest of K codes.
        vectors: (N, D).
        codebook_size: K, from which the size of the blocks is chosen.
    """
    with pass_bar(f"assign, {codebook_size:,} codes", len(vectors), "vectors") as bar:
        return _in_blocks(nearest, vectors, codebook_size, bar.update)


def kmeans_plus_plus(vectors: Tensor, codebook_size: int, generator: Generator) -> Tensor:
    """Return vectors (K, D), each drawn with probability proportional to min over earlier codes k of |z - e_k|².

    k-means++ (Arthur & Vassilvitskii 2007, "k-means++: The Advantages of Careful Seeding"). With more than 256 codes,
    each round draws several at once from the same probabilities, as in k-means|| (Bahmani et al. 2012, "Scalable
    K-Means++"), but without oversampling.
    """
    rows = torch.randint(len(vectors), (1,), generator=generator).to(vectors.device)
    codes = vectors[rows]
    distances = (vectors - codes).square().sum(dim=1)
    with pass_bar("k-means, seeding", codebook_size, "codes") as bar:
        while len(codes) < codebook_size:
            number = min(_codes_per_round(codebook_size), codebook_size - len(codes))
            new_codes, distances = _seeding_round(vectors, distances, number, generator)
            codes = torch.cat([codes, new_codes])
            bar.update(len(new_codes))
    return codes


def _seeding_round(vectors: Tensor, distances: Tensor, number: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return `number` new codes, and the squared distances (N,) to the nearest of all codes including the new ones."""
    new_codes = vectors[_weighted_sample(distances, number, generator)]
    return new_codes, torch.minimum(distances, _nearest_two(vectors, new_codes)[0][:, 0])


def _codes_per_round(codebook_size: int) -> int:
    return -(-codebook_size // _MAX_SEEDING_ROUNDS)


def _weighted_sample(weights: Tensor, number: int, generator: Generator) -> Tensor:
    """Return `number` row indices, on the CPU, drawn with probability proportional to `weights` (N,).

    Without replacement among the rows of positive weight. If these are fewer than `number`, the rest are drawn
    uniformly from all rows, with replacement.
    """
    # On the CPU, so that all devices draw the same rows.
    weights = weights.double().cpu()
    num_weighted = min(number, int((weights > 0).sum()))
    rows = torch.randint(len(weights), (number - num_weighted,), generator=generator)
    if num_weighted:
        # Gumbel top-k: the largest log w + Gumbel noise are a weighted sample without replacement. Unlike
        # torch.multinomial, it has no limit on the number of rows.
        uniform = torch.rand(len(weights), generator=generator, dtype=torch.float64).clamp_min(1e-300)
        rows = torch.cat([(weights.log() - (-uniform.log()).log()).topk(num_weighted).indices, rows])
    return rows


def _random_codes(vectors: Tensor, codebook_size: int, generator: Generator) -> Tensor:
    """Return vectors (K, D) drawn uniformly, plus noise of half the vectors' standard deviation in each dimension."""
    rows = _weighted_sample(torch.ones(len(vectors)), codebook_size, generator)
    codes = vectors[rows.to(vectors.device)]
    noise = torch.randn(codes.shape, generator=generator).to(codes)
    return codes + 0.5 * vectors.std(dim=0, correction=0) * noise


def _lloyd(vectors: Tensor, codes: Tensor, iterations: int, advance: Advance) -> Tensor:
    """Return codes (K, D) after Lloyd's iterations, at most `iterations`, or fewer if the indices no longer change."""
    previous = None
    for _ in range(iterations):
        indices = _assign(vectors, codes, advance)
        if previous is not None and torch.equal(indices, previous):
            break
        previous = indices
        codes = centroids(vectors, indices, codes)
    return codes


def _assign(vectors: Tensor, codes: Tensor, advance: Advance) -> Tensor:
    """Return the index (N,) of each vector's nearest code."""
    return _in_blocks(lambda block: nearest_codes(block, codes), vectors, len(codes), advance)


def _in_blocks(nearest: Callable[[Tensor], Tensor], vectors: Tensor, codebook_size: int, advance: Advance) -> Tensor:
    """Return `nearest(vectors)` (N,), computed in blocks of less than a second; call `advance` after each block."""
    indices = []
    for block in vectors.split(max(1, _FLOPS_PER_PROGRESS_UPDATE // (2 * codebook_size * vectors.shape[1]))):
        indices.append(nearest(block))
        advance(len(block))
    return torch.cat(indices)


def centroids(vectors: Tensor, indices: Tensor, codes: Tensor) -> Tensor:
    """Return the mean (K, D) of the vectors assigned to each code by `indices` (N,); a code without vectors is kept."""
    counts = torch.bincount(indices, minlength=len(codes)).to(codes.dtype)[:, None]
    sums = torch.zeros_like(codes).index_add_(0, indices, vectors)
    return torch.where(counts > 0, sums / counts.clamp_min(1), codes)


def _exchange_codes(
    vectors: Tensor, codes: Tensor, exchanges: int, iterations: int, generator: Generator, advance: Advance
) -> Tensor:
    """Try up to `exchanges` exchanges of codes; return the codes (K, D) of the smallest error.

    The first exchange replaces K/8 codes; each time the error does not fall, the next one replaces half as many.
    """
    error, number, failures = _error(vectors, codes, advance), max(1, len(codes) // 8), 0
    for _ in range(exchanges):
        # Add codes next to those of the largest error; after a failure, next to codes drawn in proportion to it.
        select = _weighted_sample if failures else lambda errors, number, _: errors.topk(number).indices
        candidate = _exchange(vectors, codes, min(number, len(codes) - 1), select, iterations, generator, advance)
        new_error = _error(vectors, candidate, advance)
        failures = 0 if error - new_error > _MIN_RELATIVE_GAIN * error else failures + 1
        if new_error < error:
            codes, error = candidate, new_error
        else:
            number = max(1, number // 2)
        if failures == _MAX_FAILURES:
            break
    return codes


def _exchange(
    vectors: Tensor,
    codes: Tensor,
    number: int,
    select: Callable[[Tensor, int, Generator], Tensor],
    iterations: int,
    generator: Generator,
    advance: Advance,
) -> Tensor:
    """Return the codes after one exchange: add `number` codes, run Lloyd's iterations, remove as many, run them again.

    `select(errors, number, generator)` chooses codes k by errors[k], the sum of the squared distances of their vectors.
    A new code is e_k plus normal noise of half the root mean squared distance per dimension of the vectors of k.
    """
    distances, nearest = _nearest_two(vectors, codes)
    errors = torch.zeros_like(codes[:, 0]).index_add_(0, nearest[:, 0], distances[:, 0])
    split = select(errors, number, generator).to(vectors.device)
    counts = torch.bincount(nearest[:, 0], minlength=len(codes))[split].clamp_min(1)
    spread = (errors[split] / counts / codes.shape[1]).sqrt()
    noise = torch.randn(number, codes.shape[1], generator=generator).to(codes)
    advance(len(vectors))
    extended = _lloyd(vectors, torch.cat([codes, codes[split] + 0.5 * spread[:, None] * noise]), iterations, advance)
    remaining = _codes_to_keep(vectors, extended, len(codes))
    advance(len(vectors))
    return _lloyd(vectors, extended[remaining], iterations, advance)


def _codes_to_keep(vectors: Tensor, codes: Tensor, number: int) -> Tensor:
    """Return the indices (number,), ascending, of the codes that remain when the least useful ones are removed.

    The utility of code k is the increase of the error without it: the sum over its vectors of the squared distance to
    the second nearest code minus that to the nearest. It holds only while that second code exists, so the nearest
    neighbour of a removed code is kept, unless otherwise too few codes can be removed.
    """
    distances, nearest = _nearest_two(vectors, codes)
    utility = torch.zeros_like(codes[:, 0]).index_add_(0, nearest[:, 0], distances[:, 1] - distances[:, 0])
    first, second = _nearest_two(codes, codes)[1].unbind(dim=1)
    neighbours = torch.where(first == torch.arange(len(codes), device=codes.device), second, first).tolist()
    keep = torch.ones(len(codes), dtype=torch.bool)
    protected = torch.zeros(len(codes), dtype=torch.bool)
    surplus = len(codes) - number
    by_utility = utility.argsort(stable=True).tolist()
    for code in by_utility:
        if surplus and not protected[code]:
            keep[code] = False
            protected[neighbours[code]] = True
            surplus -= 1
    for code in by_utility:  # too few codes are unprotected
        if surplus and keep[code]:
            keep[code] = False
            surplus -= 1
    return keep.nonzero()[:, 0].to(codes.device)


def _error(vectors: Tensor, codes: Tensor, advance: Advance) -> float:
    return float((vectors - codes[_assign(vectors, codes, advance)]).double().square().sum())


def _nearest_two(vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distances (N, 2) to the two nearest codes, ascending, and their indices; (N, 1) for one code.

    |z - e|² = |z|² - 2 z·e + |e|², relative to the mean code to avoid cancellation far from the origin. Approximate,
    unlike `nearest_codes`.
    """
    centre = codes.mean(dim=0)
    vectors, codes = vectors - centre, codes - centre
    sq_norms = codes.square().sum(dim=1)
    blocks = [
        torch.addmm(sq_norms, block, codes.T, alpha=-2).topk(min(2, len(codes)), dim=1, largest=False)
        for block in vectors.split(max(1, _DISTANCES_PER_BLOCK // len(codes)))
    ]
    distances = torch.cat([block.values for block in blocks]) + vectors.square().sum(dim=1, keepdim=True)
    return distances.clamp_min(0), torch.cat([block.indices for block in blocks])
