"""Beam search against exhaustive search over all tuples of codes, and against greedy search."""

import itertools

import pytest
import torch

from vqtool.quantizers import VectorQuantizerSettings, nearest_codes
from vqtool.quantizers.beam_search import beam_search
from vqtool.quantizers.residual import ResidualQuantizerSettings


def random_inputs(n, sizes, d, dtype=torch.float64, seed=0):
    """Vectors and codebooks whose scale falls by 0.7 per level, like residuals."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
    books = [torch.randn(k, d, generator=generator, dtype=torch.float64) * 0.7**q for q, k in enumerate(sizes)]
    return z, [book.to(dtype) for book in books]


def sum_of_codes(books, indices):
    return sum(book.double()[indices[:, q]] for q, book in enumerate(books))


def errors(z, books, indices):
    return (z.double() - sum_of_codes(books, indices)).square().sum(dim=1)


def best_tuples(z, books):
    """Return the tuple of indices (N, Q) with the smallest error, by exhaustive search."""
    tuples = torch.tensor(list(itertools.product(*(range(len(book)) for book in books))))
    distances = (z.double()[:, None] - sum_of_codes(books, tuples)).square().sum(dim=2)
    return tuples[distances.argmin(dim=1)]


def greedy(z, books):
    """Return the nearest code of each level in turn (N, Q)."""
    indices = []
    for vector in z.double():
        row = []
        for book in books:
            row.append(int((vector - book.double()).square().sum(dim=1).argmin()))
            vector = vector - book.double()[row[-1]]
        indices.append(row)
    return torch.tensor(indices)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sizes", [[5], [4, 4, 4], [3, 5, 2], [2, 6]])
def test_beam_as_large_as_the_search_space_finds_the_best_tuple(sizes, dtype):
    z, books = random_inputs(60, sizes, 3, dtype)
    beam_size = torch.tensor(sizes[:-1]).prod()
    indices = beam_search(z, books, max(1, int(beam_size)))
    assert indices.dtype == torch.int64
    assert torch.equal(indices, best_tuples(z, books))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_beam_size_1_is_greedy_search(dtype):
    z, books = random_inputs(200, [8, 8, 8, 8], 4, dtype)
    assert torch.equal(beam_search(z, books, 1), greedy(z, books))


def test_beam_size_2_finds_a_better_tuple_than_greedy():
    # Greedy: 6 + 0, error 0.9. Better: 4 + 1, error 0.1.
    books = [torch.tensor([[6.0], [4.0], [-9.0]]), torch.tensor([[0.0], [1.0]])]
    z = torch.tensor([[5.1]])
    assert beam_search(z, books, 1).tolist() == [[0, 0]]
    assert beam_search(z, books, 2).tolist() == [[1, 1]]


def test_larger_beams_do_not_raise_the_mean_error():
    z, books = random_inputs(500, [8, 8, 8, 8], 6)
    means = [float(errors(z, books, beam_search(z, books, beam_size)).mean()) for beam_size in (1, 2, 4, 8, 16, 64)]
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.9 * means[0]


def test_error_is_at_least_that_of_the_best_tuple():
    z, books = random_inputs(60, [4, 4, 4], 3)
    best = errors(z, books, best_tuples(z, books))
    for beam_size in (1, 2, 5):
        assert (errors(z, books, beam_search(z, books, beam_size)) >= best - 1e-12).all()


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_float32_vectors_far_from_the_origin_have_the_same_error(offset):
    z, books = random_inputs(300, [8, 8, 8], 4, torch.float32)
    near = errors(z, books, greedy(z, books)).mean()
    z, books = z + offset, [books[0] + offset, *books[1:]]
    for beam_size in (1, 4):
        assert errors(z, books, beam_search(z, books, beam_size)).mean() <= 1.01 * near


def test_block_size_does_not_change_the_result():
    z, books = random_inputs(100, [8, 8, 8], 4)
    expected = beam_search(z, books, 4)
    assert torch.equal(beam_search(z, books, 4, scores_per_block=4 * 8 * 7), expected)


def test_beam_search_records_no_gradient():
    z, books = random_inputs(10, [4, 4], 3)
    indices = beam_search(z.requires_grad_(), [book.requires_grad_() for book in books], 2)
    assert not indices.requires_grad


@pytest.mark.parametrize("update", ["ema", "codebook_loss"])
def test_residual_quantizer_uses_beam_search_in_training_and_encoding(update):
    torch.manual_seed(0)
    inner = VectorQuantizerSettings.model_validate(
        {"codebook_size": 8, "codebook_dim": 4, "init": {"kind": "random"}, "update": {"kind": update}}
    )
    model = ResidualQuantizerSettings(levels=3, quantizer=inner, beam_size=4).build()
    z, books = random_inputs(50, [8, 8, 8], 4, torch.float32)
    with torch.no_grad():
        for level, book in zip(model.levels, books, strict=True):
            level.codebook.weight.copy_(book)
    expected = beam_search(z, books, 4)
    assert not torch.equal(expected, greedy(z, books))
    grid = z.reshape(5, 10, 4)
    assert torch.equal(model.encode(grid), expected.reshape(5, 10, 3))
    for output in (model.train()(grid), model.eval()(grid)):
        assert torch.equal(output.indices, expected.reshape(5, 10, 3))
        torch.testing.assert_close(output.quantized.detach().double(), sum_of_codes(books, expected).reshape(5, 10, 4))


def test_final_beams_are_compared_in_float64():
    # In float32, 0.25 - 2^25 + 2^25 = 0, so the first codes of both levels would seem to have no error.
    books = [torch.tensor([[2.0**25], [0.0]]), torch.tensor([[-(2.0**25)], [0.125]])]
    assert beam_search(torch.tensor([[0.25]]), books, 4).tolist() == [[1, 1]]


def test_one_level_gives_the_nearest_codes():
    z, (book,) = random_inputs(100, [16], 4)
    for beam_size in (1, 3, 16, 100):
        assert torch.equal(beam_search(z, [book], beam_size)[:, 0], nearest_codes(z, book))
