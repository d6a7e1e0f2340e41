"""Full float32 within, and the user's own settings of precision afterwards."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.quantizers import brute_force, half_smallest_normal, random_normal
from vqtool import search
from vqtool.quantizers import nearest_codes
from vqtool.runtime.precision import flush_denormals, full_precision

CPU = torch.device("cpu")
BACKENDS = [torch.backends.mkldnn.matmul, torch.backends.cuda.matmul]


def check() -> None:
    vectors, codes = random_normal(0, 300, 32), random_normal(1, 200, 32)
    assert torch.equal(nearest_codes(vectors, codes), brute_force(vectors, codes))


@pytest.mark.parametrize("precision", ["medium", "high", "highest"])
def test_products_are_taken_in_full_precision_and_the_setting_comes_back(monkeypatch, matmul_precision, precision):
    during = []

    def spy(*arguments):
        during.extend(backend.fp32_precision for backend in BACKENDS)
        return nearest(*arguments)

    nearest = search._nearest
    monkeypatch.setattr(search, "_nearest", spy)
    matmul_precision(precision)
    check()
    assert not {"bf16", "tf32"} & set(during)
    assert len(during) == 2
    assert torch.get_float32_matmul_precision() == precision


def test_the_setting_comes_back_after_an_error(monkeypatch, matmul_precision):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(search, "_nearest", fail)
    matmul_precision("medium")
    with pytest.raises(MemoryError):
        nearest_codes(random_normal(0, 3, 2), random_normal(1, 3, 2))
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("backend", BACKENDS, ids=["mkldnn", "cuda"])
def test_a_precision_set_per_backend_changes_nothing_and_stays(backend):
    before = backend.fp32_precision
    backend.fp32_precision = "tf32"
    try:
        check()
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before


# Each backend of products, and what its precision comes from where it has none of its own.
INHERITED = [(BACKENDS[0], torch.backends), (BACKENDS[0], torch.backends.mkldnn), (BACKENDS[1], torch.backends.cudnn)]


@pytest.mark.parametrize(("backend", "parent"), INHERITED, ids=["all", "mkldnn", "cuda"])
def test_a_precision_that_is_inherited_follows_where_it_comes_from_afterwards(backend, parent):
    before, backend.fp32_precision = backend.fp32_precision, "none"
    parent.fp32_precision = "tf32"
    try:
        with full_precision(CPU):
            assert backend.fp32_precision == "ieee"
        assert backend.fp32_precision == "tf32"
        parent.fp32_precision = "none"
        assert backend.fp32_precision == "none"
    finally:
        parent.fp32_precision, backend.fp32_precision = "none", before


def test_a_precision_set_by_another_thread_meanwhile_stays(matmul_precision):
    with full_precision(CPU):
        torch.set_float32_matmul_precision("medium")
    assert torch.get_float32_matmul_precision() == "medium"


# From Python 3.12 on a fork beside threads warns: its child has none of them.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_process_forked_meanwhile_has_the_users_precision(matmul_precision):
    matmul_precision("medium")
    with full_precision(CPU):
        child = os.fork()
        if not child:
            with full_precision(CPU):
                within = BACKENDS[0].fp32_precision
            os._exit(within != "ieee" or torch.get_float32_matmul_precision() != "medium")
    assert os.waitpid(child, 0)[1] == 0


def test_the_users_precision_comes_back_where_threads_search_at_once(matmul_precision):
    matmul_precision("medium")
    before = [backend.fp32_precision for backend in BACKENDS]
    vectors, codes = random_normal(0, 64, 8), random_normal(1, 200, 8)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: nearest_codes(vectors, codes), range(100)))
    assert [backend.fp32_precision for backend in BACKENDS] == before


@pytest.fixture
def flushing():
    """Sets whether this thread takes denormal numbers for 0, and puts back that it does not."""
    yield torch.set_flush_denormal
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("within", [False, True])
def test_denormals_are_nothing_within_and_the_setting_comes_back(flushing, before, within):
    flushing(before)
    with flush_denormals(within):
        assert (half_smallest_normal() == 0.0) is within
    assert (half_smallest_normal() == 0.0) is before


def test_denormals_are_the_users_again_after_an_error(flushing):
    def fail():
        with flush_denormals(True):
            assert half_smallest_normal() == 0.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert half_smallest_normal() > 0.0
