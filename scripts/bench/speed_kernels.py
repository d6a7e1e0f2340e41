"""Speed of the nearest-code search and of a training step, beside FAISS and vector-quantize-pytorch."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from subprocess import check_output
from sys import executable

import faiss
import torch
import vector_quantize_pytorch as peer
from torch import Tensor, nn

from bench.timing import Measurement, compare_timings, time_alternately
from vqtool import VectorQuantizer
from vqtool.quantizers import nearest_codes
from vqtool.runtime.threads import map_rows

# K and D of each search.
SEARCHES = [(512, 64), (1024, 64), (8192, 64), (16384, 64), (8192, 256), (65536, 64), (8192, 8)]
# Names of the peers in the tables.
VQP, TEXTBOOK = "vector-quantize-pytorch", "textbook implementation"
# N, K and D of a training step.
STEP = (8192, 16384, 64)
MIB = 1 << 20


def search(turns: int) -> Iterator[Measurement]:
    """Time the search for the nearest codes of 16,384 vectors; vectors and codes are normally distributed."""
    for size, dim in SEARCHES:
        yield from _search(size, dim, turns)


def _search(size: int, dim: int, turns: int) -> Iterator[Measurement]:
    vectors, codes = torch.randn(16384, dim), torch.randn(size, dim)
    index = faiss.IndexFlatL2(dim)
    index.add(codes.numpy())
    vqp = peer.VectorQuantize(dim=dim, codebook_size=size).eval()
    vqp._codebook.embed.data.copy_(codes[None])
    columns = codes.T.contiguous()
    seconds = time_alternately(
        {
            "ours": lambda: nearest_codes(vectors, codes),
            "faiss": lambda: index.search(vectors.numpy(), 1),
            "product": lambda: _product(vectors, columns),
        },
        turns,
    )
    # The peer is slow, so two turns are measured.
    vqp_seconds = time_alternately(
        {"ours": lambda: nearest_codes(vectors, codes), "peer": torch.no_grad()(lambda: vqp(vectors[None]))}, 2
    )
    case = f"search, K = {size}, D = {dim}"
    yield compare_timings(case, seconds["ours"], "FAISS", seconds["faiss"])
    if size >= 8192 and dim >= 64:
        yield compare_timings(case, seconds["ours"], "float32 matrix product only", seconds["product"])
    yield compare_timings(case, vqp_seconds["ours"], VQP, vqp_seconds["peer"])
    yield _agreement(f"indices, K = {size}, D = {dim}", vectors, codes, index)


def _product(vectors: Tensor, columns: Tensor) -> None:
    """Compute float32 products of vectors (N, D) and `columns` (D, K), with the threads and blocks of the search."""
    rows = max(128, (1 << 21) // columns.shape[1])

    def multiply(thread_rows: slice) -> None:
        product = torch.empty(rows, columns.shape[1])
        for block in vectors[thread_rows].split(rows):
            torch.mm(block, columns, out=product[: len(block)])

    map_rows(multiply, len(vectors), torch.get_num_threads(), vectors.device)


def _agreement(case: str, vectors: Tensor, codes: Tensor, index: faiss.IndexFlatL2) -> Measurement:
    """Count the vectors for which FAISS finds another code, and those among them that rounding does not explain.

    Rounding explains them if vqtool's code is the nearer one, by at most the float32 error of a squared distance.
    """
    ours, theirs = nearest_codes(vectors, codes), torch.from_numpy(index.search(vectors.numpy(), 1)[1][:, 0])
    differ = (ours != theirs).nonzero().squeeze(1)
    rows = vectors[differ].double()
    our_distances, faiss_distances = (
        (rows - codes[chosen[differ]].double()).square().sum(1) for chosen in (ours, theirs)
    )
    scale = rows.square().sum(1) + codes.double().square().sum(1).max()
    is_rounding = (our_distances <= faiss_distances) & (
        faiss_distances - our_distances <= scale * vectors.shape[1] * torch.finfo(torch.float32).eps
    )
    return Measurement(
        case, f"{len(differ)} of {len(ours):,} differ, {int((~is_rounding).sum())} by more than rounding", "FAISS"
    )


class Textbook(nn.Module):
    """The losses of `VectorQuantizer(size, dim)` as their formulas are written, with all N x K matrices in memory.

    `forward` takes vectors (N, D); it returns quantized vectors (N, D), commitment loss () and entropy loss ().
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(size, dim))

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        distances = vectors.square().sum(1, keepdim=True) - 2 * vectors @ self.codes.T + self.codes.square().sum(1)
        chosen = self.codes[distances.argmin(dim=1)]
        soft = torch.softmax(-distances, dim=1).mean(dim=0)
        entropy = (soft * torch.log(soft + 1e-10)).sum()
        return vectors + (chosen - vectors).detach(), (vectors - chosen.detach()).square().mean(), entropy


def _textbook_step(rows: int, size: int, dim: int) -> Callable[[], None]:
    model, vectors = Textbook(size, dim), torch.randn(rows, dim, requires_grad=True)

    def step() -> None:
        quantized, commitment, entropy = model(vectors)
        (quantized.sum() + commitment + 0.1 * entropy).backward()

    return step


def _our_step(rows: int, size: int, dim: int) -> Callable[[], None]:
    model, vectors = VectorQuantizer(size, dim), torch.randn(1, rows, dim, requires_grad=True)
    nn.init.normal_(model.codebook.weight)

    def step() -> None:
        output = model(vectors)
        (output.quantized.sum() + output.commitment_loss + 0.1 * output.entropy_loss).backward()

    return step


def _peer_step(rows: int, size: int, dim: int) -> Callable[[], None]:
    model = peer.VectorQuantize(dim=dim, codebook_size=size, codebook_diversity_loss_weight=0.1, rotation_trick=False)
    model._codebook.embed.data.normal_()
    vectors = torch.randn(1, rows, dim, requires_grad=True)

    def step() -> None:
        quantized, _, loss = model(vectors)
        (quantized.sum() + loss.sum()).backward()

    return step


STEPS = {"textbook": _textbook_step, "ours": _our_step, "peer": _peer_step}


def training_step(turns: int) -> Iterator[Measurement]:
    """Time forward and backward with the entropy loss on normal vectors, with and without flushing of denormals."""
    name = "step, N = {}, K = {}, D = {}".format(*STEP)
    for flush, suffix in ((False, ""), (True, ", denormals flushed")):
        seconds = json.loads(_run_in_new_process(f"print(json.dumps(step_seconds({turns}, {flush})))"))
        yield compare_timings(f"{name}{suffix}", seconds["ours"], TEXTBOOK, seconds["textbook"])
        yield compare_timings(f"{name}{suffix}", seconds["ours"], f"{VQP}, diversity loss", seconds["peer"])


def step_seconds(turns: int, flush: bool) -> dict[str, list[float]]:
    """Return the seconds of a step in each turn, by the names of `STEPS`.

    Call it in a new process: its threads inherit the denormal mode set here.
    """
    torch.set_flush_denormal(flush)
    torch.manual_seed(0)
    return time_alternately({name: make(*STEP) for name, make in STEPS.items()}, turns)


def memory(turns: int) -> Iterator[Measurement]:
    """Measure the peak memory of a training step above its inputs and outputs, each in a new process."""
    rows, size, dim = STEP
    ours, textbook = ([_step_mib(name, rows) for _ in range(turns)] for name in ("ours", "textbook"))
    larger = [_step_mib("ours", 16 * rows) for _ in range(turns)]
    for count, mibs, name, peer_mibs in (
        (rows, ours, TEXTBOOK, textbook),
        (16 * rows, larger, f"vqtool, N = {rows}", ours),
    ):
        mine, theirs = median(mibs), median(peer_mibs)
        case = f"memory of a step, N = {count}, K = {size}, D = {dim}"
        yield Measurement(case, f"{mine:.0f} MiB", name, f"{theirs:.0f} MiB", theirs / mine)


def _step_mib(name: str, rows: int) -> float:
    """Return `measure` of a new process."""
    return float(_run_in_new_process(f"print(measure({name!r}, {rows}))"))


def _run_in_new_process(code: str) -> str:
    """Run `code`, which can use the names of this module, in a new process; return its standard output."""
    code = f"from bench.speed_kernels import *; {code}"
    return check_output([executable, "-W", "ignore", "-c", code], cwd=Path(__file__).parents[1], text=True)


def measure(name: str, rows: int) -> float:
    """Return the peak memory of a step in MiB, above the memory before it and without its outputs; N = `rows`.

    The outputs are two tensors (N, D), one (K, D) and int64 indices (N,). Call it in a new process.
    """
    _, size, dim = STEP
    STEPS[name](16, 16, dim)()  # one-time setup of the libraries
    step = STEPS[name](rows, size, dim)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # reset the peak
    before = _status("VmRSS")
    step()
    outputs = 4 * (2 * rows * dim + size * dim) + 8 * rows
    return (_status("VmHWM") - before - outputs) / MIB


def _status(key: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))
