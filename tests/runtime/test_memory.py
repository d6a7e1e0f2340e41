"""Memory: free, peak and mapped memory, and out-of-memory errors."""

import resource
import subprocess
import sys

import pytest
import torch

from vqtool.errors import DataError
from vqtool.runtime.memory import convert_out_of_memory, free_memory, mapped_memory, peak_memory


def test_peak_is_the_memory_held_at_the_same_time() -> None:
    size = 200 << 20

    def allocate_three_times() -> int:
        for _ in range(3):
            torch.ones(size, dtype=torch.uint8)
        return 5

    _, before = peak_memory(lambda: None)
    result, after = peak_memory(allocate_three_times)
    assert result == 5
    assert 0.9 * size < after - before < 1.25 * size


def test_peak_does_not_include_earlier_work() -> None:
    _, high = peak_memory(lambda: torch.ones(200 << 20, dtype=torch.uint8).sum())
    _, after = peak_memory(lambda: None)
    assert after < high - (100 << 20)


def test_mapped_memory_includes_libraries() -> None:
    assert mapped_memory() > 10 << 20


def test_free_memory_is_plausible() -> None:
    assert 1 << 20 < free_memory() < 1 << 60


def test_free_memory_respects_the_limit_of_the_process() -> None:
    script = (
        "import resource; from pathlib import Path; from vqtool.runtime.memory import free_memory; "
        "mapped = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize(); "
        "limit = mapped + (300 << 20); resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); print(free_memory())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (250 << 20) < int(done.stdout) <= (300 << 20)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("can't start new thread"),
    ],
)
def test_out_of_memory_errors_are_converted_with_advice(error: Exception) -> None:
    with (
        pytest.raises(DataError, match="memory; lower --batch-size"),
        convert_out_of_memory(DataError, "lower --batch-size"),
    ):
        raise error


def test_other_errors_are_not_converted() -> None:
    with pytest.raises(RuntimeError, match="shape"), convert_out_of_memory(DataError, "lower"):
        raise RuntimeError("shape mismatch")
