"""Check that training in several processes gives the results of one process, and that all processes stop together.

    python scripts/processes.py                     all parts
    python scripts/processes.py double death        selected parts
    python scripts/processes.py --share 0.1         a tenth of the configs of each part

Prints one row per check with its result and whether the guarantee held. The exit status is 1 if one did not hold.
"""

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from checks import process_ends, process_traffic
from checks.guarantees import Row, run_checks
from checks.process_cases import CASES, MUTANTS, UNEVEN
from checks.process_jobs import first_share, job
from torch import Tensor

SCRIPT = str(Path(__file__).parent / "checks" / "process_cases.py")


def double(folder: Path, share: float) -> Iterator[Row]:
    """Compare losses, gradients, state, usage and indices after 20 steps in float64."""
    cases, sizes = first_share([*CASES], share), first_share((3, 2), share)
    _run(folder, [*cases, UNEVEN], "--double", sizes=(1, *sizes))
    for size in sizes:
        differences = {case: _difference(folder, case, size) for case in [*cases, UNEVEN]}
        worst = max(differences, key=differences.__getitem__)
        check = f"{size} processes, float64, {len(differences)} configs: all results of 20 steps"
        result = f"largest difference {differences[worst]:.1e} ({worst}; limit 1e-12)"
        yield Row(check, result, differences[worst] <= 1e-12)


def single(folder: Path, share: float) -> Iterator[Row]:
    """Compare the gradients of the first step, the loss after 20 steps and the indices in float32."""
    cases, sizes = first_share([*CASES], share), first_share((3, 2), share)
    _run(folder, cases, sizes=(1, *sizes))
    for size in sizes:
        gradients, tensors, losses, indices = zip(
            *(_compare_float32(folder, case, size) for case in cases), strict=True
        )
        result = f"relative difference {max(gradients):.1e} (limit 1e-5), of a single tensor {max(tensors):.1e}"
        yield Row(f"{size} processes, float32: gradient of the first step", result, max(gradients) <= 1e-5)
        result = f"relative difference {max(losses):.1e} (limit 1e-3)"
        yield Row(f"{size} processes, float32: loss after 20 steps", result, max(losses) <= 1e-3)
        result = f"{min(indices):.2%} equal (limit 99.9%)"
        yield Row(f"{size} processes, float32: indices", result, min(indices) >= 0.999)


def mutants(folder: Path, share: float) -> Iterator[Row]:
    """Skip one sum over processes at a time; each must change the results."""
    mutants = first_share([*MUTANTS.items()], share)
    _run(folder, sorted({case for _, case in mutants}), "--double", sizes=(1,))
    for name, case in mutants:
        _run(folder, [case], "--double", "--without", name, sizes=(2,))
        difference = _difference(folder, case, 2)
        result = f"difference {difference:.1e} (must exceed 1e-12)"
        yield Row(f"without {name.removeprefix('vqtool.')}", result, not difference <= 1e-12)


PARTS = {
    "double": double,
    "single": single,
    "mutants": mutants,
    "death": process_ends.death,
    "signal": process_ends.signals,
    "init-from": process_ends.init_from,
    "traffic": process_traffic.traffic,
    "scaling": process_traffic.scaling,
}


def _run(folder: Path, cases: Sequence[str], *options: str, sizes: Sequence[int]) -> None:
    """Run process_cases.py with these options for each number of processes; results are in folder/SIZE/CASE.pt."""
    for size in sizes:
        output = folder / str(size)
        output.mkdir(exist_ok=True)
        subprocess.run([*job(size), SCRIPT, *cases, "--to", str(output), *options], check=True)


def _load_results(folder: Path, case: str, size: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the results of a case, tensors by name, with one process and with `size` processes."""
    one, several = (torch.load(folder / str(number) / f"{case}.pt", weights_only=True) for number in (1, size))
    assert one.keys() == several.keys()
    return one, several


def _difference(folder: Path, case: str, size: int) -> float:
    """Return the largest difference of any result between one process and `size` processes."""
    one, several = _load_results(folder, case, size)
    return max(_max_difference(one[name], several[name]) for name in one)


def _max_difference(one: Tensor, other: Tensor) -> float:
    """Return max |one - other| / max(|one|, 1) over all elements; infinity if the shapes differ, 0 if empty."""
    if one.shape != other.shape:
        return float("inf")
    one, other = one.double(), other.double()
    return float(((one - other).abs() / one.abs().clamp_min(1)).max()) if one.numel() else 0.0


def _compare_float32(folder: Path, case: str, size: int) -> tuple[float, float, float, float]:
    """Compare the results of one process and of `size` processes in float32.

    Returns:
        Relative difference of the gradient of step 1 over all parameters; the same for the parameter where it is
        largest; relative difference of the losses of step 20; fraction of equal indices. The second has no limit: with
        `update: entropy_only` the first gradient of the codes is close to 0, so its difference is mostly rounding.
    """
    one, several = _load_results(folder, case, size)
    names = [name for name in one if name.startswith("gradient") and name.endswith("step 1")]
    worst_tensor = max((_relative(one[name], several[name]) for name in names), default=0.0)
    gradients = [torch.cat([run[name].flatten() for name in names] or [torch.zeros(0)]) for run in (one, several)]
    losses = _relative(one["losses, step 20"], several["losses, step 20"])
    return _relative(*gradients), worst_tensor, losses, float((one["indices"] == several["indices"]).double().mean())


def _relative(one: Tensor, other: Tensor) -> float:
    """Return |one - other| / |one|, with Euclidean norms."""
    return float((one.double() - other.double()).norm() / one.double().norm().clamp_min(1e-30))


if __name__ == "__main__":
    run_checks(__doc__, PARTS)
