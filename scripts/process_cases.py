"""What scripts/processes.py trains by one process and by several: configs, and what is kept of a run of each.

torchrun --nproc-per-node 3 scripts/process_cases.py CASE... --to FOLDER [--double] [--steps 20]
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqtool.config import RunSettings
from vqtool.data import BatchOrder
from vqtool.distributed import copy_from_first, is_first, joined, planned
from vqtool.evaluation import evaluate_together
from vqtool.training.batches import Batches
from vqtool.training.prepare import Prepared, deterministic, prepare
from vqtool.training.step import Stepper

Block = dict[str, Any]
MIXTURE = {"kind": "synthetic", "samples": 400, "source": {"kind": "mixture"}}
TEXTURES = {"kind": "synthetic", "samples": 200, "source": {"kind": "textures", "height": 8, "width": 8}}
TILES = {"kind": "synthetic", "samples": 200, "source": {"kind": "tiles", "height": 8, "width": 8}}
MLP = {"kind": "mlp", "width": 16, "layers": 1}
# Codes start, and die and are revived, within a few steps.
SOON = {"start": {"kind": "kmeans", "vectors": 6}, "revival": {"window": 2, "least": 2}}
BARE = {"start": {"kind": "random"}, "revival": None}


def _vector(**block: Any) -> Block:
    return {"kind": "vector", "codebook_size": 24, "codebook_dim": 6, **SOON, **block}


def _case(quantizer: Block, batch_size: int = 33, **blocks: Any) -> Block:
    settings = {
        "data": MIXTURE,
        "model": {"encoder": MLP, "quantizer": quantizer},
        "loss": {"entropy": 0.1},
        "training": {"batch_size": batch_size, "steps": 20, "device": "cpu", "learning_rate": 0.003, "warmup_steps": 2},
    }
    return {**settings, **blocks}


_RESIDUAL = {"kind": "residual", "levels": 3, "quantizer": _vector(), "dropout": 0.5}
CASES: dict[str, Block] = {
    "ema": _case(_vector(bypass=0.25)),
    "ema, bare start": _case(_vector(start={"kind": "random"})),
    "ema, 2 samples": _case(_vector(), batch_size=2),
    "entropy, bare": _case({**_vector(learning={"kind": "entropy"}), **BARE}, batch_size=17),
    "codebook loss": _case(_vector(learning={"kind": "codebook_loss"}, bypass=0.1, gradient="rotation"), 31),
    "linear": _case(_vector(learning={"kind": "linear"}, confidence=0.2), 31),
    "unit of error": _case(_vector(temperature=2.0, temperature_unit="error", confidence=0.1), 25),
    "cosine": _case(_vector(metric="cosine", learning={"kind": "codebook_loss"}), 29),
    "sinkhorn": _case(_vector(balance={"kind": "sinkhorn"}), 35),
    "residual, ema": _case({**_RESIDUAL, "quantizer": _vector(bypass=0.2)}),
    "residual, codebook loss": _case({**_RESIDUAL, "quantizer": _vector(learning={"kind": "codebook_loss"})}, 35),
    "residual, shared": _case({**_RESIDUAL, "shared": True}, 31),
    "residual, beam": _case({**_RESIDUAL, "beam": 3}, 25),
    "product": _case({"kind": "product", "groups": 2, "quantizer": _vector()}),
    "fsq": _case({"kind": "fsq", "levels": [5, 4, 3]}),
    "lfq": _case({"kind": "lfq", "bits": 6}, 31),
    "bsq": _case({"kind": "bsq", "bits": 6}, 35),
    "no gradient": _case(_vector(), 37, model={"encoder": {"kind": "identity"}, "quantizer": _vector(codebook_dim=16)}),
    "images": _case(
        {}, 13, data=TEXTURES, model={"encoder": {"kind": "conv2d", "width": 8, "halvings": 1}, "quantizer": _vector()}
    ),
    "classes": _case(
        {}, 7, data=TILES, model={"encoder": {"kind": "conv2d", "width": 8, "halvings": 1}, "quantizer": _vector()}
    ),
    "queries": _case(
        {},
        11,
        data=TEXTURES,
        model={
            "encoder": {"kind": "transformer", "positions": 4, "patch": 4, "width": 8, "depth": 1, "heads": 2},
            "quantizer": _vector(),
        },
    ),
}


def kept(case: str, double: bool, steps: int) -> dict[str, Tensor]:
    """Losses and gradients of each step, the state after the last, usage and indices of the whole validation part."""
    prepared = prepare(RunSettings.model_validate(CASES[case]))
    model, settings = prepared.model, prepared.settings.training
    kind = torch.float64 if double else torch.float32
    model.to(kind)
    copy_from_first(model.state_dict().values())
    order = BatchOrder(len(prepared.dataset.training), settings.batch_size, 0)
    stepper = Stepper(prepared, order)
    found: dict[str, Tensor] = {}
    batches = Batches(prepared.dataset.training, order, steps, prepared.device, 0)
    for step in range(steps):
        x = batches.take(step)
        output = stepper.forward(x.to(kind) if x.is_floating_point() else x)
        metrics = stepper.measure(step, output)
        found[f"losses, step {step + 1}"] = torch.tensor(list(metrics.values()), dtype=torch.float64)
        stepper.apply(step, output)
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        found |= {f"gradient of {name}, step {step + 1}": each.clone() for name, each in gradients.items()}
        model.quantizer.start(full=True)
    model.hit_times.agree()
    found |= {f"state {name}": tensor.clone() for name, tensor in model.state_dict().items()}
    return found | _validated(prepared, kind)


def _validated(prepared: Prepared, kind: torch.dtype) -> dict[str, Tensor]:
    model, data = prepared.model, prepared.dataset
    evaluation = evaluate_together(model, data.validation, prepared.settings.loss)
    levels = {f"usage of level {number}": counts for number, counts in enumerate(evaluation.counts)}
    losses = torch.tensor(list(evaluation.losses.values()), dtype=torch.float64)
    x = data.validation.read(0, len(data.validation))
    model.eval()
    indices = model.encode(x.to(kind) if x.is_floating_point() else x)
    return {**levels, "validation losses": losses, "indices": indices}


def main() -> None:
    """Train the cases, and keep each one in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", choices=CASES, metavar="CASE")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--double", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with joined(), deterministic():
        for case in options.cases:
            with planned(CASES[case]["training"]["batch_size"]):
                found = kept(case, options.double, options.steps)
            if is_first():
                torch.save(found, options.to / f"{case}.pt")


if __name__ == "__main__":
    main()
