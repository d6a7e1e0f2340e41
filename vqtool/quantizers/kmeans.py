"""K-means: k-means++ seeding, Lloyd's iteration, and exchanges that leave its local minima.

Shapes: S vectors, K codes, D dimensions.
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

# Elements of one block of distances.
_BLOCK = 1 << 22
# Codes are seeded in this many rounds at most.
_SEED_ROUNDS = 256
# Multiplications and additions beyond which Lloyd iterations, or exchanges, take too long for an initialisation.
_ITERATION_LIMIT = 1 << 42
_EXCHANGE_LIMIT = 1 << 34
# Multiplications and additions between two updates of the progress: less than a second of them.
_UPDATE_EVERY = 1 << 34
# Multiplications and additions, and numbers of vectors, by which the speed is measured.
_TIMED_WORK = 1 << 31
_TIMED_NUMBERS = 1 << 22
# A gain, relative to the error, that does not count as one.
_LITTLE = 1e-4
# Exchanges in vain, one after the other, after which there is nothing more to be had.
_PATIENCE = 6
# At most, unless a caller asks for others.
ITERATIONS, EXCHANGES = 10, 50
# Called with how many vectors more have been compared with all codes.
Advance = Callable[[int], None]

_drawing: ContextVar[bool] = ContextVar("drawing", default=False)


def kmeans(
    vectors: Tensor, clusters: int, generator: Generator, iterations: int = ITERATIONS, exchanges: int = EXCHANGES
) -> Tensor:
    """Return K codes that are a local minimum of the mean squared distance of `vectors` to their nearest code.

    Runs Lloyd's iterations (Lloyd 1982, "Least Squares Quantization in PCM") from k-means++ seeds. It then repeatedly
    adds codes where the error is large and removes as many where they reduce it least (Fritzke 2020, "The breathing
    k-means algorithm"), which avoids two codes in one cluster while another cluster has none.

    Args:
        vectors: (S, D), at least one; if S < K, some codes are equal.
        clusters: K.
        generator: a generator on the CPU; the result depends only on the vectors and its state.
        iterations: maximum number of Lloyd's iterations per run; fewer for sizes that would take minutes.
        exchanges: maximum number of rounds of adding and removing codes.

    Returns:
        (K, D) codes.

    Raises:
        Stopped: a signal was received.
    """
    if _drawing.get():
        return _drawn_nearby(vectors, clusters, generator)
    limits = _limits(len(vectors), clusters, vectors.shape[1], iterations, exchanges)
    if limits is None:
        return vectors[_draw(torch.ones(len(vectors)), clusters, generator).to(vectors.device)]
    iterations, exchanges = limits
    codes = seeds(vectors, clusters, generator)
    with pass_bar(f"k-means, {clusters:,} codes", len(vectors) * _passes(*limits), "assignments") as bar:
        codes = _lloyd(vectors, codes, iterations, bar.update)
        return _exchanged(vectors, codes, exchanges, iterations, generator, bar.update) if exchanges else codes


def _limits(vectors: int, clusters: int, dim: int, iterations: int, exchanges: int) -> tuple[int, int] | None:
    """How many Lloyd iterations and exchanges k-means makes at most; None if it only draws codes evenly."""
    work = 2 * vectors * dim * clusters
    # Above the limit even seeding takes too long, and training has to do the rest. With a code for each vector nothing
    # is left to do.
    if work > _ITERATION_LIMIT or clusters >= vectors:
        return None
    iterations = max(1, min(iterations, _ITERATION_LIMIT // max(1, work)))
    return iterations, min(exchanges, _EXCHANGE_LIMIT // max(1, work * (iterations + 1))) if clusters > 1 else 0


def _passes(iterations: int, exchanges: int) -> int:
    """How often k-means compares all vectors with all codes after seeding, at most."""
    # For exchanges the error, then three passes and two of Lloyd's iterations for each.
    return iterations + (1 + exchanges * (3 + 2 * iterations) if exchanges else 0)


class KMeansSpeed(NamedTuple):
    """How fast k-means is with codes (K, D), in seconds for each vector."""

    assignment: float
    """Of finding its nearest code."""
    round: float
    """Of a round of seeding."""

    @classmethod
    def measure(cls, vectors: int, codes: Tensor, clock: Callable[[], float] = time.perf_counter) -> "KMeansSpeed":
        """Time the work on at most `vectors` vectors, made from the `codes` (K, D)."""
        assigned = max(1, min(vectors, _TIMED_WORK // (2 * codes.numel())))
        seeded = max(1, min(vectors, _TIMED_NUMBERS // codes.shape[1]))
        noise = torch.randn(max(assigned, seeded), codes.shape[1], generator=Generator().manual_seed(0)).to(codes)
        some = codes[torch.arange(len(noise), device=codes.device) % len(codes)] + codes.std(correction=0) * noise
        nearest_codes(some[:1], codes).cpu()  # the first call loads kernels
        began = clock()
        nearest_codes(some[:assigned], codes).cpu()
        between = clock()
        _seeded(some[:seeded], noise[:seeded, 0].square(), _round(len(codes)), Generator().manual_seed(0))[1].cpu()
        return cls((between - began) / assigned, (clock() - between) / seeded)

    def seconds(self, vectors: int, clusters: int, dim: int) -> float:
        """Estimate how long `kmeans` takes at most."""
        limits = _limits(vectors, clusters, dim, ITERATIONS, EXCHANGES)
        if limits is None:
            return 0.0
        return vectors * (_passes(*limits) * self.assignment + clusters / _round(clusters) * self.round)


def hold_memory(vectors: Tensor, clusters: int) -> None:
    """Hold, for a moment, the memory that `kmeans` takes for vectors (S, D): by the same steps with two codes."""
    limits = _limits(len(vectors), clusters, vectors.shape[1], ITERATIONS, EXCHANGES)
    if limits:
        kmeans(vectors, 2, Generator().manual_seed(0), iterations=1, exchanges=min(1, limits[1]))


@contextmanager
def codes_drawn() -> Iterator[None]:
    """Within, `kmeans` does not fit codes but draws them near its vectors, in no time: enough for a rehearsal."""
    before = _drawing.set(True)
    try:
        yield
    finally:
        _drawing.reset(before)


def assigned(nearest: Callable[[Tensor], Tensor], vectors: Tensor, clusters: int) -> Tensor:
    """`nearest` of vectors (S, D), which compares each with K codes, with its progress shown."""
    with pass_bar(f"assign, {clusters:,} codes", len(vectors), "vectors") as bar:
        return _in_blocks(nearest, vectors, clusters, bar.update)


def seeds(vectors: Tensor, clusters: int, generator: Generator) -> Tensor:
    """Codes (K, D) among the vectors, each drawn with a chance in proportion to its squared distance to those before.

    k-means++ (Arthur & Vassilvitskii 2007); for many codes in rounds that each draw several at once, as the rounds of
    k-means|| do (Bahmani et al. 2012, "Scalable K-Means++"), here no more than are wanted.
    """
    drawn = torch.randint(len(vectors), (1,), generator=generator).to(vectors.device)
    codes = vectors[drawn]
    distances = (vectors - codes).square().sum(dim=1)
    with pass_bar("k-means, seeding", clusters, "codes") as bar:
        while len(codes) < clusters:
            fresh, distances = _seeded(vectors, distances, min(_round(clusters), clusters - len(codes)), generator)
            codes = torch.cat([codes, fresh])
            bar.update(len(fresh))
    return codes


def _seeded(vectors: Tensor, distances: Tensor, number: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """A round of seeding: `number` more codes, and the squared distances (S,) to the nearest code of all so far."""
    fresh = vectors[_draw(distances, number, generator)]
    return fresh, torch.minimum(distances, _nearest_two(vectors, fresh)[0][:, 0])


def _round(clusters: int) -> int:
    """How many codes are seeded together."""
    return -(-clusters // _SEED_ROUNDS)


def _draw(weights: Tensor, number: int, generator: Generator) -> Tensor:
    """Row numbers with chances in proportion to `weights` (S,), without repetition as far as there are enough."""
    # Drawn on the CPU, so that every device draws the same.
    weights = weights.double().cpu()
    known = min(number, int((weights > 0).sum()))
    drawn = torch.randint(len(weights), (number - known,), generator=generator)
    if known:
        # The largest of log w + Gumbel noise are a weighted draw without repetition, for any number of rows.
        uniform = torch.rand(len(weights), generator=generator, dtype=torch.float64).clamp_min(1e-300)
        drawn = torch.cat([(weights.log() - (-uniform.log()).log()).topk(known).indices, drawn])
    return drawn


def _drawn_nearby(vectors: Tensor, clusters: int, generator: Generator) -> Tensor:
    """Codes (K, D), each at some distance from a vector, so that no two are equal."""
    drawn = vectors[_draw(torch.ones(len(vectors)), clusters, generator).to(vectors.device)]
    noise = torch.randn(drawn.shape, generator=generator).to(drawn)
    return drawn + 0.5 * vectors.std(dim=0, correction=0) * noise


def _lloyd(vectors: Tensor, codes: Tensor, iterations: int, advance: Advance) -> Tensor:
    """Codes moved to the mean of their vectors, again and again; one without vectors stays."""
    before = None
    for _ in range(iterations):
        owners = _owners(vectors, codes, advance)
        if before is not None and torch.equal(owners, before):
            break
        before = owners
        codes = centroids(vectors, owners, codes)
    return codes


def _owners(vectors: Tensor, codes: Tensor, advance: Advance) -> Tensor:
    """The index (S,) of each vector's nearest code."""
    return _in_blocks(lambda block: nearest_codes(block, codes), vectors, len(codes), advance)


def _in_blocks(nearest: Callable[[Tensor], Tensor], vectors: Tensor, clusters: int, advance: Advance) -> Tensor:
    """`nearest` of vectors (S, D), in blocks that are small enough to show progress."""
    found = []
    for block in vectors.split(max(1, _UPDATE_EVERY // (2 * clusters * vectors.shape[1]))):
        found.append(nearest(block))
        advance(len(block))
    return torch.cat(found)


def centroids(vectors: Tensor, owners: Tensor, codes: Tensor) -> Tensor:
    """The mean (K, D) of each code's vectors, `owners` (S,) being their indices; where it has none, the code."""
    counts = torch.bincount(owners, minlength=len(codes)).to(codes.dtype)[:, None]
    sums = torch.zeros_like(codes).index_add_(0, owners, vectors)
    return torch.where(counts > 0, sums / counts.clamp_min(1), codes)


def _exchanged(
    vectors: Tensor, codes: Tensor, exchanges: int, iterations: int, generator: Generator, advance: Advance
) -> Tensor:
    """Codes after as many exchanges as pay, at most `exchanges`."""
    error, moved, failures = _error(vectors, codes, advance), max(1, len(codes) // 8), 0
    for _ in range(exchanges):
        # Where those of the largest errors were tried in vain, others are drawn.
        pick = _draw if failures else _largest
        candidate = _exchange(vectors, codes, min(moved, len(codes) - 1), pick, iterations, generator, advance)
        after = _error(vectors, candidate, advance)
        gained = error - after > _LITTLE * error
        failures = 0 if gained else failures + 1
        if after < error:
            codes, error = candidate, after
        else:
            moved = max(1, moved // 2)
        if failures == _PATIENCE:
            break
    return codes


def _largest(weights: Tensor, number: int, generator: Generator) -> Tensor:
    return weights.topk(number).indices


def _exchange(
    vectors: Tensor,
    codes: Tensor,
    number: int,
    pick: Callable[[Tensor, int, Generator], Tensor],
    iterations: int,
    generator: Generator,
    advance: Advance,
) -> Tensor:
    """Codes of which `number` have moved from where they are needed least to where the error is largest."""
    size = len(codes)
    distances, owners = _nearest_two(vectors, codes)
    errors = torch.zeros_like(codes[:, 0]).index_add_(0, owners[:, 0], distances[:, 0])
    worst = pick(errors, number, generator).to(vectors.device)
    spread = (errors[worst] / torch.bincount(owners[:, 0], minlength=size)[worst].clamp_min(1) / codes.shape[1]).sqrt()
    noise = torch.randn(number, codes.shape[1], generator=generator).to(codes)
    advance(len(vectors))
    grown = _lloyd(vectors, torch.cat([codes, codes[worst] + 0.5 * spread[:, None] * noise]), iterations, advance)
    kept = _needed(vectors, grown, size)
    advance(len(vectors))
    return _lloyd(vectors, grown[kept], iterations, advance)


def _needed(vectors: Tensor, codes: Tensor, number: int) -> Tensor:
    """The codes to keep: those whose removal would raise the error least go, but no two that are neighbours."""
    distances, owners = _nearest_two(vectors, codes)
    utility = torch.zeros_like(codes[:, 0]).index_add_(0, owners[:, 0], distances[:, 1] - distances[:, 0])
    first, second = _nearest_two(codes, codes)[1].unbind(dim=1)
    neighbours = torch.where(first == torch.arange(len(codes), device=codes.device), second, first)
    kept = torch.ones(len(codes), dtype=torch.bool)
    frozen = torch.zeros(len(codes), dtype=torch.bool)
    spare = len(codes) - number
    order, beside = utility.argsort(stable=True).tolist(), neighbours.tolist()
    for code in order:
        if spare and not frozen[code]:
            kept[code] = False
            frozen[beside[code]] = True
            spare -= 1
    # Where too few are left that are no neighbours, these go after all.
    for code in order:
        if spare and kept[code]:
            kept[code] = False
            spare -= 1
    return kept.nonzero()[:, 0].to(codes.device)


def _error(vectors: Tensor, codes: Tensor, advance: Advance) -> float:
    return float((vectors - codes[_owners(vectors, codes, advance)]).double().square().sum())


def _nearest_two(vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances (S, 2) to the nearest two codes, and which they are; to the nearest one, if there is one."""
    centre = codes.mean(dim=0)
    vectors, codes = vectors - centre, codes - centre
    norms = codes.square().sum(dim=1)
    found = [
        torch.addmm(norms, block, codes.T, alpha=-2).topk(min(2, len(codes)), dim=1, largest=False)
        for block in vectors.split(max(1, _BLOCK // len(codes)))
    ]
    distances = torch.cat([block.values for block in found]) + vectors.square().sum(dim=1, keepdim=True)
    return distances.clamp_min(0), torch.cat([block.indices for block in found])
