"""K-means: k-means++ seeding, Lloyd's iteration, and exchanges that leave its local minima.

Shapes: S vectors, K codes, D dimensions.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from vqtool.progress import Bar, pass_bar
from vqtool.quantizers.search import nearest_codes
from vqtool.signals import heed

# Elements of one block of distances.
_BLOCK = 1 << 22
# Codes are seeded in this many rounds at most.
_SEED_ROUNDS = 256
# Multiplications and additions beyond which iterations, or exchanges, cost more time than a start should take.
_ITERATION_LIMIT = 1 << 42
_EXCHANGE_LIMIT = 1 << 34
# A gain, relative to the error, that does not count as one.
_LITTLE = 1e-4
# Exchanges in vain, one after the other, after which there is nothing more to be had.
_PATIENCE = 6


def kmeans(vectors: Tensor, clusters: int, generator: Generator, iterations: int = 10, exchanges: int = 50) -> Tensor:
    """Codes (K, D) that fit `vectors` (S, D): a local minimum of the mean squared distance to the nearest code.

    Lloyd's iteration (Lloyd 1982, "Least Squares Quantization in PCM") from k-means++ seeds. Then, in turn, codes are
    added where the error is large and as many are removed where they are needed least (Fritzke 2020, "The breathing
    k-means algorithm"): so no two codes are left on one cluster while another cluster has none.

    Args:
        vectors: S of at least one; where S < K, some codes are the same.
        clusters: K.
        generator: on the CPU; the result is a function of vectors and its state.
        iterations: of Lloyd's, each time; fewer where so many would take minutes.
        exchanges: at most.
    """
    work = 2 * vectors.numel() * clusters
    # Beyond the limit even seeding, and what is learned afterwards must do the rest. With a code for each vector there
    # is no rest.
    if work > _ITERATION_LIMIT or clusters >= len(vectors):
        return vectors[_draw(torch.ones(len(vectors)), clusters, generator).to(vectors.device)]
    iterations = max(1, min(iterations, _ITERATION_LIMIT // max(1, work)))
    exchanges = min(exchanges, _EXCHANGE_LIMIT // max(1, work * (iterations + 1))) if clusters > 1 else 0
    with pass_bar("k-means", 1 + exchanges, "rounds") as bar:
        codes = _lloyd(vectors, seeds(vectors, clusters, generator), iterations)
        bar.update()
        return _exchanged(vectors, codes, exchanges, iterations, generator, bar)


def seeds(vectors: Tensor, clusters: int, generator: Generator) -> Tensor:
    """Codes (K, D) among the vectors, each drawn with a chance in proportion to its squared distance to those before.

    k-means++ (Arthur & Vassilvitskii 2007); for many codes in rounds that each draw several at once, as the rounds of
    k-means|| do (Bahmani et al. 2012, "Scalable K-Means++"), here no more than are wanted.
    """
    drawn = torch.randint(len(vectors), (1,), generator=generator).to(vectors.device)
    codes = vectors[drawn]
    distances = (vectors - codes).square().sum(dim=1)
    each = -(-clusters // _SEED_ROUNDS)
    while len(codes) < clusters:
        fresh = vectors[_draw(distances, min(each, clusters - len(codes)), generator)]
        codes = torch.cat([codes, fresh])
        distances = torch.minimum(distances, _nearest_two(vectors, fresh)[0][:, 0])
    return codes


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


def _lloyd(vectors: Tensor, codes: Tensor, iterations: int) -> Tensor:
    """Codes moved to the mean of their vectors, again and again; one without vectors stays."""
    before = None
    for _ in range(iterations):
        heed()
        owners = nearest_codes(vectors, codes)
        if before is not None and torch.equal(owners, before):
            break
        before = owners
        codes = centroids(vectors, owners, codes)
    return codes


def centroids(vectors: Tensor, owners: Tensor, codes: Tensor) -> Tensor:
    """The mean (K, D) of each code's vectors, `owners` (S,) being their indices; where it has none, the code."""
    counts = torch.bincount(owners, minlength=len(codes)).to(codes.dtype)[:, None]
    sums = torch.zeros_like(codes).index_add_(0, owners, vectors)
    return torch.where(counts > 0, sums / counts.clamp_min(1), codes)


def _exchanged(
    vectors: Tensor, codes: Tensor, exchanges: int, iterations: int, generator: Generator, bar: Bar
) -> Tensor:
    """Codes after as many exchanges as pay, at most `exchanges`."""
    error, moved, failures = _error(vectors, codes), max(1, len(codes) // 8), 0
    for _ in range(exchanges):
        # Where those of the largest errors were tried in vain, others are drawn.
        pick = _draw if failures else _largest
        candidate = _exchange(vectors, codes, min(moved, len(codes) - 1), pick, iterations, generator)
        after = _error(vectors, candidate)
        gained = error - after > _LITTLE * error
        failures = 0 if gained else failures + 1
        if after < error:
            codes, error = candidate, after
        else:
            moved = max(1, moved // 2)
        if failures == _PATIENCE:
            break
        bar.update()
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
) -> Tensor:
    """Codes of which `number` have moved from where they are needed least to where the error is largest."""
    size = len(codes)
    distances, owners = _nearest_two(vectors, codes)
    errors = torch.zeros_like(codes[:, 0]).index_add_(0, owners[:, 0], distances[:, 0])
    worst = pick(errors, number, generator).to(vectors.device)
    spread = (errors[worst] / torch.bincount(owners[:, 0], minlength=size)[worst].clamp_min(1) / codes.shape[1]).sqrt()
    noise = torch.randn(number, codes.shape[1], generator=generator).to(codes)
    grown = _lloyd(vectors, torch.cat([codes, codes[worst] + 0.5 * spread[:, None] * noise]), iterations)
    return _lloyd(vectors, grown[_needed(vectors, grown, size)], iterations)


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


def _error(vectors: Tensor, codes: Tensor) -> float:
    return float((vectors - codes[nearest_codes(vectors, codes)]).double().square().sum())


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
