"""Chunks of one fixed shape: splitting, padding, and the number of rows per chunk."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqtool.data import SampleSpec
from vqtool.models.autoencoder import Autoencoder, ModelSettings, resolve_model
from vqtool.models.chunks import batch_rows, chunk_rows, chunks


def stub(tokens, channels):
    """Return an object with the attributes of a model that `chunk_rows` reads."""
    return SimpleNamespace(grid=lambda size: (tokens,), spec=SimpleNamespace(channels=channels))


def model_of(encoder, layout, channels, size):
    spec = SampleSpec(layout, channels, size, None, "float32")
    settings = ModelSettings.model_validate({"encoder": encoder, "quantizer": {"kind": "vector", "codebook_size": 8}})
    return Autoencoder(resolve_model(settings, spec), spec, (0.0,) * channels, (1.0,) * channels)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40),
    rows=st.integers(1, 12),
    shape=st.sampled_from([(), (3,), (2, 1, 4)]),
    dtype=st.sampled_from([torch.float32, torch.int64]),
)
def test_chunks_hold_the_rows_in_order_padded_with_zeros(n, rows, shape, dtype):
    x = torch.arange(1, 1 + n * math.prod(shape)).reshape(n, *shape).to(dtype)
    pieces = list(chunks(x, rows))
    assert [len(chunk) for chunk, _ in pieces] == [rows] * math.ceil(n / rows)
    assert [num_rows for _, num_rows in pieces] == [rows] * (n // rows) + [n % rows] * (n % rows > 0)
    assert torch.equal(torch.cat([chunk[:num_rows] for chunk, num_rows in pieces]), x)
    assert not pieces[-1][0][pieces[-1][1] :].any()
    assert all(chunk.dtype == dtype for chunk, _ in pieces)


def test_padded_chunk_is_a_copy():
    x = torch.arange(5.0)
    ((chunk, _),) = chunks(x, 8)
    chunk += 1
    assert torch.equal(x, torch.arange(5.0))


@pytest.mark.parametrize(
    ("tokens", "channels", "size", "expected"),
    [
        (1, 8, (), 4096),  # 4096 tokens; 2^18 / 8 values would allow 32,768
        (1, 100, (), 2048),  # 2^18 / 100 = 2621 values
        (64, 3, (32, 32), 64),  # 4096 / 64, 2^18 / 3072 = 85
        (16, 3, (64, 64), 16),  # 2^18 / 12,288 = 21
        (5000, 1, (5000,), 1),  # one sample is over the limit
        (256, 3, (512, 512), 1),
    ],
)
def test_chunk_rows_of_known_sizes(tokens, channels, size, expected):
    assert chunk_rows(stub(tokens, channels), size) == expected


@settings(deadline=None, max_examples=100)
@given(
    tokens=st.integers(1, 10_000),
    channels=st.integers(1, 600),
    size=st.lists(st.integers(1, 600), max_size=2),
)
def test_chunk_rows_is_the_largest_power_of_two_within_both_limits(tokens, channels, size):
    rows = chunk_rows(stub(tokens, channels), tuple(size))
    numbers = channels * math.prod(size)
    fits = [r for r in (1 << i for i in range(13)) if r * tokens <= 1 << 12 and r * numbers <= 1 << 18]
    assert rows == max(fits, default=1)


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [(1, 64), (64, 64), (65, 128), (256, 256), (4096, 256)],  # 64 rows make a chunk
)
def test_batch_rows_rounds_up_to_at_most_four_chunks(batch_size, expected):
    assert batch_rows(stub(64, 3), (32, 32), batch_size) == expected


def test_chunk_rows_of_models():
    convolution = {"kind": "conv2d", "width": 8, "downsamples": 2, "res_blocks": 1}
    assert chunk_rows(model_of(convolution, "CHW", 1, (16, 16)), (16, 16)) == 256
    assert chunk_rows(model_of(convolution, "CHW", 1, (16, 16)), (32, 32)) == 64
    assert chunk_rows(model_of({"kind": "identity"}, "C", 4, ()), ()) == 4096


def test_latents_do_not_depend_on_the_number_of_rows():
    torch.manual_seed(0)
    model = model_of({"kind": "conv2d", "width": 8, "downsamples": 1, "res_blocks": 1}, "CHW", 1, (8, 8)).eval()
    x = torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        ((full_chunk, _),) = chunks(x, 16)
        expected = model.latents(full_chunk)
        for n in (1, 3, 15):
            ((chunk, num_rows),) = chunks(x[:n], 16)
            assert torch.equal(model.latents(chunk)[:num_rows], expected[:n])
