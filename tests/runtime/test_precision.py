"""Full float32 precision inside the context, and the user's settings afterwards."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.quantizers import brute_force, half_smallest_normal, random_normal
from vqtool.quantizers import nearest_codes
from vqtool.runtime.precision import flush_denormals, full_precision
from vqtool.search.backends import SameDtypeSearch

CPU = torch.device("cpu")
BACKENDS = [torch.backends.mkldnn.matmul, torch.backends.cuda.matmul]


def check_search() -> None:
    vectors, codes = random_normal(0, 300, 32), random_normal(1, 200, 32)
    assert torch.equal(nearest_codes(vectors, codes), brute_force(vectors, codes))


@pytest.mark.parametrize("precision", ["medium", "high", "highest"])
def test_search_uses_full_precision_and_restores_the_setting(monkeypatch, matmul_precision, precision):
    during = []

    def recording(*arguments):
        during.extend(backend.fp32_precision for backend in BACKENDS)
        return nearest(*arguments)

    nearest = SameDtypeSearch.nearest
    monkeypatch.setattr(SameDtypeSearch, "nearest", recording)
    matmul_precision(precision)
    check_search()
    assert not {"bf16", "tf32"} & set(during)
    assert len(during) == 2
    assert torch.get_float32_matmul_precision() == precision


def test_setting_is_restored_after_an_error(monkeypatch, matmul_precision):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(SameDtypeSearch, "nearest", fail)
    matmul_precision("medium")
    with pytest.raises(MemoryError):
        check_search()
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("backend", BACKENDS, ids=["mkldnn", "cuda"])
def test_precision_set_for_one_backend_does_not_change_the_search_and_is_kept(backend):
    before = backend.fp32_precision
    backend.fp32_precision = "tf32"
    try:
        check_search()
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before


# Each backend of matrix products, and a parent from which it inherits its precision if it has none.
INHERITED = [(BACKENDS[0], torch.backends), (BACKENDS[0], torch.backends.mkldnn), (BACKENDS[1], torch.backends.cudnn)]


@pytest.mark.parametrize(("backend", "parent"), INHERITED, ids=["all", "mkldnn", "cuda"])
def test_inherited_precision_follows_its_parent_again_afterwards(backend, parent):
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


def test_precision_set_by_the_user_inside_the_context_is_kept(matmul_precision):
    with full_precision(CPU):
        torch.set_float32_matmul_precision("medium")
    assert torch.get_float32_matmul_precision() == "medium"


# Python 3.12 and later warn about os.fork in a process with threads.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_child_forked_inside_the_context_has_the_users_precision(matmul_precision):
    matmul_precision("medium")
    with full_precision(CPU):
        child = os.fork()
        if not child:
            with full_precision(CPU):
                inside = BACKENDS[0].fp32_precision
            os._exit(inside != "ieee" or torch.get_float32_matmul_precision() != "medium")
    assert os.waitpid(child, 0)[1] == 0


def test_precision_is_restored_after_concurrent_searches(matmul_precision):
    matmul_precision("medium")
    before = [backend.fp32_precision for backend in BACKENDS]
    vectors, codes = random_normal(0, 64, 8), random_normal(1, 200, 8)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: nearest_codes(vectors, codes), range(100)))
    assert [backend.fp32_precision for backend in BACKENDS] == before


@pytest.fixture
def set_flush_denormal():
    """Function that sets whether this thread flushes denormals; reset to False after the test."""
    yield torch.set_flush_denormal
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_flush_denormals_is_set_inside_and_restored(set_flush_denormal, before, inside):
    set_flush_denormal(before)
    with flush_denormals(inside):
        assert (half_smallest_normal() == 0.0) is inside
    assert (half_smallest_normal() == 0.0) is before


def test_flush_denormals_is_restored_after_an_error(set_flush_denormal):
    def fail():
        with flush_denormals(True):
            assert half_smallest_normal() == 0.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert half_smallest_normal() > 0.0
