"""Search and training step beside the textbook, FAISS and vector-quantize-pytorch."""

import json
from collections.abc import Callable, Iterator
from statistics import median
from subprocess import check_output
from sys import executable

import faiss
import torch
import vector_quantize_pytorch as peer
from torch import Tensor, nn
from turns import Figure, faster, seconds

from vqtool import VectorQuantizer
from vqtool.quantizers import nearest_codes
from vqtool.threads import over_rows

# Codes, dimensions, and how many times as fast as FAISS search must be.
SEARCHES = [
    (512, 64, 1.5),
    (1024, 64, 1.5),
    (8192, 64, 1.5),
    (16384, 64, 1.5),
    (8192, 256, 1.5),
    (65536, 64, 1.5),
    (8192, 8, 0.5),
]
STEP = (8192, 16384, 64)
MIB = 1 << 20


def search(turns: int) -> Iterator[Figure]:
    """Nearest codes of 16,384 vectors, all normal."""
    for size, dim, least in SEARCHES:
        yield from _search(size, dim, least, turns)


def _search(size: int, dim: int, least: float, turns: int) -> Iterator[Figure]:
    vectors, codes = torch.randn(16384, dim), torch.randn(size, dim)
    index = faiss.IndexFlatL2(dim)
    index.add(codes.numpy())
    other = peer.VectorQuantize(dim=dim, codebook_size=size).eval()
    other._codebook.embed.data.copy_(codes[None])
    columns = codes.T.contiguous()
    taken = seconds(
        {
            "ours": lambda: nearest_codes(vectors, codes),
            "faiss": lambda: index.search(vectors.numpy(), 1),
            "product": lambda: _product(vectors, columns),
        },
        turns,
    )
    # The peer takes so long that few turns must do.
    slow = seconds(
        {"ours": lambda: nearest_codes(vectors, codes), "peer": torch.no_grad()(lambda: other(vectors[None]))}, 2
    )
    name = f"K = {size}, D = {dim}"
    yield faster(f"{name}: FAISS", taken["ours"], taken["faiss"], least)
    if size >= 8192 and dim >= 64:
        yield faster(f"{name}: product alone", taken["ours"], taken["product"], 0.7)
    yield faster(f"{name}: vector-quantize-pytorch", slow["ours"], slow["peer"], 10)
    yield _agreement(name, vectors, codes, index)


def _product(vectors: Tensor, columns: Tensor) -> None:
    """The float32 products of vectors (N, D) and codes (D, K), by threads and in blocks as those of the search are."""
    rows = max(128, (1 << 21) // columns.shape[1])

    def walk(part: slice) -> None:
        product = torch.empty(rows, columns.shape[1])
        for block in vectors[part].split(rows):
            torch.mm(block, columns, out=product[: len(block)])

    over_rows(walk, len(vectors), torch.get_num_threads(), vectors.device)


def _agreement(name: str, vectors: Tensor, codes: Tensor, index: faiss.IndexFlatL2) -> Figure:
    """Rows where FAISS finds another code, checked in float64: ours must be nearest, its own within rounding."""
    ours, theirs = nearest_codes(vectors, codes), torch.from_numpy(index.search(vectors.numpy(), 1)[1][:, 0])
    differ = (ours != theirs).nonzero().squeeze(1)
    rows = vectors[differ].double()
    best, found = ((rows - codes[chosen[differ]].double()).square().sum(1) for chosen in (ours, theirs))
    scale = rows.square().sum(1) + codes.double().square().sum(1).max()
    fine = bool(((best <= found) & (found - best <= scale * vectors.shape[1] * torch.finfo(torch.float32).eps)).all())
    return Figure(f"{name}: indices", f"{len(differ)} of {len(ours):,} differ", "", float("nan"), "ties alone", fine)


class Textbook(nn.Module):
    """The bare form, with every N x K matrix that its formula has."""

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


def training_step(turns: int) -> Iterator[Figure]:
    """Forward and backward with the entropy loss, all normal; as everyone starts, and without denormal numbers."""
    name = "step, N = {}, K = {}, D = {}".format(*STEP)
    for flush, how in ((False, ""), (True, ", denormals flushed for all")):
        taken = json.loads(_printed(f"print(json.dumps(step_seconds({turns}, {flush})))"))
        yield faster(f"{name}{how}: textbook", taken["ours"], taken["textbook"], 5)
        yield faster(f"{name}{how}: vector-quantize-pytorch, diversity loss", taken["ours"], taken["peer"], 12)


def step_seconds(turns: int, flush: bool) -> dict[str, list[float]]:
    """For `training_step`, in a process whose threads, all yet to come, flush denormals or not."""
    torch.set_flush_denormal(flush)
    torch.manual_seed(0)
    return seconds({name: make(*STEP) for name, make in STEPS.items()}, turns)


def memory(turns: int) -> Iterator[Figure]:
    """What a training step takes above its inputs and outputs, each in a process of its own."""
    rows, size, dim = STEP
    ours, textbook = ([_grown(name, rows) for _ in range(turns)] for name in ("ours", "textbook"))
    ratio = median(textbook) / median(ours)
    what = f"memory of a step, N = {rows}, K = {size}, D = {dim}: textbook"
    yield Figure(what, f"{median(ours):.0f} MiB", f"{median(textbook):.0f} MiB", ratio, "at least 20", ratio >= 20)
    larger = [_grown("ours", 16 * rows) for _ in range(turns)]
    more = median(larger) - median(ours)
    what = f"the same, N = {16 * rows}"
    inputs = 15 * rows * dim * 4 / MIB
    yield Figure(
        what,
        f"{median(larger):.0f} MiB",
        f"{median(ours):.0f} MiB",
        more / inputs,
        "at most 1 of the inputs",
        more <= inputs,
    )


def _grown(name: str, rows: int) -> float:
    """MiB at the peak of a step, above what stands before it and what it gives: two (N, D), one (N,) and one (K, D)."""
    return float(_printed(f"print(measure({name!r}, {rows}))"))


def _printed(code: str) -> str:
    """What a process of its own prints, that has all of this module."""
    code = f"from speed_kernels import *; {code}"
    return check_output([executable, "-W", "ignore", "-c", code], cwd=__file__.rpartition("/")[0], text=True)


def measure(name: str, rows: int) -> float:
    """For `_grown`, in its process."""
    _, size, dim = STEP
    STEPS[name](16, 16, dim)()  # what libraries set up once
    step = STEPS[name](rows, size, dim)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = _status("VmRSS")
    step()
    outputs = 4 * (2 * rows * dim + size * dim) + 8 * rows
    return (_status("VmHWM") - before - outputs) / MIB


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))
