"""Beam search against all tuples of codes, and against the greedy choice."""

import itertools

import pytest
import torch

from vqtool.quantizers import VectorQuantizerSettings, nearest_codes
from vqtool.quantizers import beam_search as beam
from vqtool.quantizers.beam_search import beam_search
from vqtool.quantizers.residual import ResidualQuantizerSettings


def some(n, sizes, d, dtype=torch.float64, seed=0):
    """Vectors and codebooks, each as wide as a level of a residual quantizer might be."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
    books = [torch.randn(k, d, generator=generator, dtype=torch.float64) * 0.7**q for q, k in enumerate(sizes)]
    return z, [book.to(dtype) for book in books]


def total(books, indices):
    return sum(book.double()[indices[:, q]] for q, book in enumerate(books))


def errors(z, books, indices):
    return (z.double() - total(books, indices)).square().sum(dim=1)


def best_of_all(z, books):
    """The tuple of indices with the smallest error, of all there are."""
    tuples = torch.tensor(list(itertools.product(*(range(len(book)) for book in books))))
    distances = (z.double()[:, None] - total(books, tuples)).square().sum(dim=2)
    return tuples[distances.argmin(dim=1)]


def greedy(z, books):
    """Level by level the nearest code, by hand."""
    found = []
    for vector in z.double():
        row = []
        for book in books:
            row.append(int((vector - book.double()).square().sum(dim=1).argmin()))
            vector = vector - book.double()[row[-1]]
        found.append(row)
    return torch.tensor(found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sizes", [[5], [4, 4, 4], [3, 5, 2], [2, 6]])
def test_with_all_beams_it_is_the_best_of_all_tuples(sizes, dtype):
    z, books = some(60, sizes, 3, dtype)
    width = torch.tensor(sizes[:-1]).prod()
    indices = beam_search(z, books, max(1, int(width)))
    assert indices.dtype == torch.int64
    assert torch.equal(indices, best_of_all(z, books))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_beam_is_the_greedy_choice(dtype):
    z, books = some(200, [8, 8, 8, 8], 4, dtype)
    assert torch.equal(beam_search(z, books, 1), greedy(z, books))


def test_two_beams_by_hand():
    # Greedy takes 6, and 0.9 of it is left over; the worse start 4 ends nearer.
    books = [torch.tensor([[6.0], [4.0], [-9.0]]), torch.tensor([[0.0], [1.0]])]
    z = torch.tensor([[5.1]])
    assert beam_search(z, books, 1).tolist() == [[0, 0]]
    assert beam_search(z, books, 2).tolist() == [[1, 1]]


def test_more_beams_never_raise_the_mean_error():
    z, books = some(500, [8, 8, 8, 8], 6)
    found = [float(errors(z, books, beam_search(z, books, width)).mean()) for width in (1, 2, 4, 8, 16, 64)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.9 * found[0]


def test_no_tuple_beats_all_beams():
    z, books = some(60, [4, 4, 4], 3)
    best = errors(z, books, best_of_all(z, books))
    for width in (1, 2, 5):
        assert (errors(z, books, beam_search(z, books, width)) >= best - 1e-12).all()


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_float32_vectors_far_from_the_origin_are_chosen_for_as_well(offset):
    z, books = some(300, [8, 8, 8], 4, torch.float32)
    near = errors(z, books, greedy(z, books)).mean()
    z, books = z + offset, [books[0] + offset, *books[1:]]
    for width in (1, 4):
        assert errors(z, books, beam_search(z, books, width)).mean() <= 1.01 * near


def test_blocks_change_nothing(monkeypatch):
    z, books = some(100, [8, 8, 8], 4)
    expected = beam_search(z, books, 4)
    monkeypatch.setattr(beam, "_BLOCK", 4 * 8 * 7)
    assert torch.equal(beam_search(z, books, 4), expected)


def test_vectors_and_codes_get_no_gradient():
    z, books = some(10, [4, 4], 3)
    indices = beam_search(z.requires_grad_(), [book.requires_grad_() for book in books], 2)
    assert not indices.requires_grad


@pytest.mark.parametrize("learning", ["ema", "codebook_loss"])
def test_a_residual_quantizer_chooses_by_beam_in_training_and_encoding_alike(learning):
    torch.manual_seed(0)
    inner = VectorQuantizerSettings.model_validate(
        {"codebook_size": 8, "codebook_dim": 4, "init": {"kind": "random"}, "update": {"kind": learning}}
    )
    model = ResidualQuantizerSettings(levels=3, quantizer=inner, beam_size=4).build()
    z, books = some(50, [8, 8, 8], 4, torch.float32)
    with torch.no_grad():
        for level, book in zip(model.levels, books, strict=True):
            level.codebook.weight.copy_(book)
    expected = beam_search(z, books, 4)
    assert not torch.equal(expected, greedy(z, books))
    grid = z.reshape(5, 10, 4)
    assert torch.equal(model.encode(grid), expected.reshape(5, 10, 3))
    for output in (model.train()(grid), model.eval()(grid)):
        assert torch.equal(output.indices, expected.reshape(5, 10, 3))
        torch.testing.assert_close(output.quantized.detach().double(), total(books, expected).reshape(5, 10, 4))


def test_the_last_choice_is_settled_in_float64():
    # 0.25 less 2^25 is 2^25 in float32: two codes that add up to 0 would seem to leave nothing over.
    books = [torch.tensor([[2.0**25], [0.0]]), torch.tensor([[-(2.0**25)], [0.125]])]
    assert beam_search(torch.tensor([[0.25]]), books, 4).tolist() == [[1, 1]]


def test_nearest_codes_are_the_beam_of_one_level():
    z, (book,) = some(100, [16], 4)
    for width in (1, 3, 16, 100):
        assert torch.equal(beam_search(z, [book], width)[:, 0], nearest_codes(z, book))
