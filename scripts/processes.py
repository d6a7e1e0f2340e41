"""One process and several give the same answer: what vqtool promises of that, put to the test.

    python scripts/processes.py                     all parts
    python scripts/processes.py double death        some of them
    python scripts/processes.py --share 0.1         each with a tenth of its configs, or of its victims

Each part prints what was done, what came of it, and whether the promise held; the exit status is 1 where one did not.
"""

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import process_ends
import process_traffic
import torch
from process_cases import CASES, MUTANTS, UNEVEN
from process_jobs import job, part_of
from promises import Row, put_to_the_test
from torch import Tensor

SCRIPT = str(Path(__file__).with_name("process_cases.py"))


def double(folder: Path, share: float) -> Iterator[Row]:
    """In float64, all that 20 steps leave behind is equal."""
    cases, sizes = part_of([*CASES], share), part_of((3, 2), share)
    _run(folder, [*cases, UNEVEN], "--double", sizes=(1, *sizes))
    for size in sizes:
        found = {case: _difference(folder, case, size) for case in [*cases, UNEVEN]}
        worst = max(found, key=found.__getitem__)
        what = f"{size} processes, float64, {len(found)} configs: all after 20 steps"
        yield Row(what, f"differs by {found[worst]:.1e} at most ({worst})", found[worst] <= 1e-12)


def single(folder: Path, share: float) -> Iterator[Row]:
    """In float32, a first step's gradients, the loss after 20 steps, and the indices."""
    cases, sizes = part_of([*CASES], share), part_of((3, 2), share)
    _run(folder, cases, sizes=(1, *sizes))
    for size in sizes:
        gradients, tensors, losses, indices = zip(*(_float32(folder, case, size) for case in cases), strict=True)
        figure = f"{max(gradients):.1e}, and {max(tensors):.1e} of any single tensor's"
        yield Row(f"{size} processes, float32: gradient of a step", figure, max(gradients) <= 1e-5)
        yield Row(f"{size} processes, float32: loss after 20 steps", f"{max(losses):.1e}", max(losses) <= 1e-3)
        yield Row(f"{size} processes, float32: indices equal", f"{min(indices):.2%}", min(indices) >= 0.999)


def mutants(folder: Path, share: float) -> Iterator[Row]:
    """Where one sum over processes is left out, the difference shows."""
    mutants = part_of([*MUTANTS.items()], share)
    _run(folder, sorted({case for _, case in mutants}), "--double", sizes=(1,))
    for name, case in mutants:
        _run(folder, [case], "--double", "--without", name, sizes=(2,))
        difference = _difference(folder, case, 2)
        yield Row(f"without {name.removeprefix('vqtool.')}", f"differs by {difference:.1e}", not difference <= 1e-12)


PARTS = {
    "double": double,
    "single": single,
    "mutants": mutants,
    "death": process_ends.death,
    "signal": process_ends.signals,
    "begun": process_ends.init_from,
    "traffic": process_traffic.traffic,
    "scaling": process_traffic.scaling,
}


def _run(folder: Path, cases: Sequence[str], *options: str, sizes: Sequence[int]) -> None:
    for size in sizes:
        to = folder / str(size)
        to.mkdir(exist_ok=True)
        subprocess.run([*job(size), SCRIPT, *cases, "--to", str(to), *options], check=True)


def _found(folder: Path, case: str, size: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    one, several = (torch.load(folder / str(each) / f"{case}.pt", weights_only=True) for each in (1, size))
    assert one.keys() == several.keys()
    return one, several


def _difference(folder: Path, case: str, size: int) -> float:
    one, several = _found(folder, case, size)
    return max(_apart(one[name], several[name]) for name in one)


def _apart(one: Tensor, other: Tensor) -> float:
    """How far apart two tensors are, for numbers beyond 1 relative to them."""
    if one.shape != other.shape:
        return float("inf")
    one, other = one.double(), other.double()
    return float(((one - other).abs() / one.abs().clamp_min(1)).max()) if one.numel() else 0.0


def _float32(folder: Path, case: str, size: int) -> tuple[float, float, float, float]:
    """Of a case: differences of the gradient, of that of any one tensor, and of the loss; the share of equal indices.

    The gradient of codes that learn from the entropy alone is all but 0 at the start, and the rest is rounding.
    """
    one, several = _found(folder, case, size)
    first = [name for name in one if name.startswith("gradient") and name.endswith("step 1")]
    tensors = max((_relative(one[name], several[name]) for name in first), default=0.0)
    whole = [torch.cat([found[name].flatten() for name in first] or [torch.zeros(0)]) for found in (one, several)]
    losses = _relative(one["losses, step 20"], several["losses, step 20"])
    return _relative(*whole), tensors, losses, float((one["indices"] == several["indices"]).double().mean())


def _relative(one: Tensor, other: Tensor) -> float:
    """The norm of a difference, relative to that of the whole."""
    return float((one.double() - other.double()).norm() / one.double().norm().clamp_min(1e-30))


if __name__ == "__main__":
    put_to_the_test(__doc__, PARTS)
