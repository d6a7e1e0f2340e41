"""What is known of memory: how much is free, what work takes, and what running out of it says."""

import resource
import subprocess
import sys

import pytest
import torch

from vqtool.errors import DataError
from vqtool.runtime.memory import convert_out_of_memory, free_memory, mapped_memory, peak_memory


def test_the_peak_is_that_of_what_was_held_at_once() -> None:
    size = 200 << 20

    def work() -> int:
        for _ in range(3):
            torch.ones(size, dtype=torch.uint8)
        return 5

    _, before = peak_memory(lambda: None)
    result, after = peak_memory(work)
    assert result == 5
    assert 0.9 * size < after - before < 1.25 * size


def test_the_peak_of_earlier_work_is_forgotten() -> None:
    _, high = peak_memory(lambda: torch.ones(200 << 20, dtype=torch.uint8).sum())
    _, after = peak_memory(lambda: None)
    assert after < high - (100 << 20)


def test_libraries_are_mapped() -> None:
    assert mapped_memory() > 10 << 20


def test_some_memory_is_free() -> None:
    assert 1 << 20 < free_memory() < 1 << 60


def test_a_limit_of_the_process_counts() -> None:
    limited = (
        "import resource, vqtool.runtime.memory as m; from vqtool.runtime.memory import _own; "
        "limit = _own('VmSize') + (300 << 20); resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); "
        "print(m.free_memory())"
    )
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=True)
    assert (250 << 20) < int(done.stdout) <= (300 << 20)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("can't start new thread"),
    ],
)
def test_running_out_says_what_to_lower(fault: Exception) -> None:
    with (
        pytest.raises(DataError, match="out of memory; lower --batch-size"),
        convert_out_of_memory(DataError, "lower --batch-size"),
    ):
        raise fault


def test_other_faults_pass() -> None:
    with pytest.raises(RuntimeError, match="shape"), convert_out_of_memory(DataError, "lower"):
        raise RuntimeError("shape mismatch")
