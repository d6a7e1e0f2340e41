"""Train the configs of scripts/processes.py and save their results; started by that script.

torchrun --nproc-per-node 3 scripts/checks/process_cases.py CASE... --to FOLDER [--double] [--steps 20]
"""

import argparse
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from vqtool.config import RunSettings
from vqtool.data import BatchOrder
from vqtool.metrics.evaluation import evaluate_distributed
from vqtool.quantizers.vector import VectorQuantizerSettings
from vqtool.runtime.distributed import all_gather_rows, fixed_global_batch, is_rank0, process_group, rank, world_size
from vqtool.training.batches import BatchLoader
from vqtool.training.setup import TrainingSetup, deterministic, set_up
from vqtool.training.step import Stepper

Block = dict[str, Any]
MIXTURE = {"kind": "synthetic", "samples": 400, "source": {"kind": "mixture"}}
TEXTURES = {"kind": "synthetic", "samples": 200, "source": {"kind": "textures", "height": 8, "width": 8}}
TILES = {"kind": "synthetic", "samples": 200, "source": {"kind": "tiles", "height": 8, "width": 8}}
CONV2D = {"kind": "conv2d", "width": 8, "downsamples": 1}
TRANSFORMER = {"kind": "transformer", "num_tokens": 4, "patch_size": 4, "width": 8, "depth": 1, "heads": 2}
MLP = {"kind": "mlp", "width": 16, "layers": 1}
# With EARLY, codes are initialised and dead codes reset within a few steps; with STATIC neither happens.
EARLY = {"init": {"kind": "kmeans", "latents_per_code": 6}, "dead_code_reset": {"window_hits": 2, "min_hits": 2}}
STATIC = {"init": {"kind": "random"}, "dead_code_reset": None}


def _vector(**block: Any) -> Block:
    return {"kind": "vector", "codebook_size": 24, "codebook_dim": 6, **EARLY, **block}


def _case(quantizer: Block, batch_size: int = 33, data: Block = MIXTURE, encoder: Block = MLP) -> Block:
    return {
        "data": data,
        "model": {"encoder": encoder, "quantizer": quantizer},
        "loss": {"entropy": 0.1},
        "training": {"batch_size": batch_size, "steps": 20, "device": "cpu", "learning_rate": 0.003, "warmup_steps": 2},
    }


_RESIDUAL = {"kind": "residual", "levels": 3, "quantizer": _vector(), "level_dropout": 0.5}
CASES: dict[str, Block] = {
    "ema": _case(_vector(unquantized_fraction=0.25)),
    "residual, long": _case({**_RESIDUAL, "level_dropout": 0}, 27, {**MIXTURE, "samples": 12_000, "validation": 0.8}),
    "ema, random init": _case(_vector(init={"kind": "random"})),
    "ema, 2 samples": _case(_vector(), batch_size=2),
    "entropy only": _case({**_vector(update={"kind": "entropy_only"}), **STATIC}, batch_size=17),
    "codebook loss": _case(
        _vector(update={"kind": "codebook_loss"}, unquantized_fraction=0.1, gradient_estimator="rotation"), 31
    ),
    "simvq": _case(_vector(update={"kind": "simvq"}, sample_entropy_weight=0.2), 31),
    "quantization error unit": _case(
        _vector(temperature=2.0, temperature_unit="quantization_error", sample_entropy_weight=0.1), 25
    ),
    "cosine": _case(_vector(metric="cosine", update={"kind": "codebook_loss"}), 29),
    "sinkhorn": _case(_vector(assignment={"kind": "sinkhorn"}), 35),
    "residual, ema": _case({**_RESIDUAL, "quantizer": _vector(unquantized_fraction=0.2)}),
    "residual, codebook loss": _case({**_RESIDUAL, "quantizer": _vector(update={"kind": "codebook_loss"})}, 35),
    "residual, shared": _case({**_RESIDUAL, "shared": True}, 31),
    "residual, beam": _case({**_RESIDUAL, "beam_size": 3}, 25),
    "product": _case({"kind": "product", "groups": 2, "quantizer": _vector()}),
    "fsq": _case({"kind": "fsq", "levels": [5, 4, 3]}),
    "lfq": _case({"kind": "lfq", "bits": 6}, 31),
    "bsq": _case({"kind": "bsq", "bits": 6}, 35),
    "no gradient": _case(_vector(codebook_dim=16), 37, encoder={"kind": "identity"}),
    "images": _case(_vector(), 13, TEXTURES, CONV2D),
    "classes": _case(_vector(), 7, TILES, CONV2D),
    "transformer": _case(_vector(), 11, TEXTURES, TRANSFORMER),
}


# Each reduction over processes, and a config whose results change without it.
MUTANTS = {
    "vqtool.runtime.distributed.batch_shard.BatchShard.sum": "codebook loss",
    "vqtool.runtime.distributed.batch_shard.all_reduce": "codebook loss",
    "vqtool.quantizers.codebook_update.all_reduce_sum": "ema",
    "vqtool.quantizers.dead_codes.all_reduce_sum": "ema, random init",
    "vqtool.quantizers.initialization.all_gather_rows": "ema",
    "vqtool.quantizers.sinkhorn.all_reduce_max": "sinkhorn",
    "vqtool.quantizers.dead_codes.all_reduce_min": "ema",
    "vqtool.metrics.evaluation.all_reduce_statistics": "residual, long",
    "vqtool.metrics.collisions.all_gather_rows": "residual, long",
}
# The case of a quantizer without a trainer, and the number of rows of each rank by number of processes.
UNEVEN, ROWS = "uneven rows", {1: (53,), 2: (0, 53), 3: (40, 0, 13)}


def train_case(case: str, double: bool, steps: int) -> dict[str, Tensor]:
    """Train a case of `CASES`; return its results as tensors by name.

    Losses and gradients of each step, the final state, and code counts, losses, ids and indices of the validation
    split. They must not depend on the number of processes.

    Args:
        double: train in float64 instead of float32.
    """
    setup = set_up(RunSettings.model_validate(CASES[case]))
    model, settings = setup.model, setup.settings.training
    dtype = torch.float64 if double else torch.float32
    model.to(dtype)
    order = BatchOrder(len(setup.dataset.training), settings.batch_size, 0)
    stepper = Stepper(setup, order)
    results: dict[str, Tensor] = {}
    batches = BatchLoader(setup.dataset.training, order, steps, setup.device, 0)
    with fixed_global_batch(settings.batch_size):
        for step in range(steps):
            x = batches.load(step)
            output = stepper.forward(x.to(dtype) if x.is_floating_point() else x)
            metrics = stepper.metrics(step, output)
            results[f"losses, step {step + 1}"] = torch.tensor(list(metrics.values()), dtype=torch.float64)
            stepper.backward_and_update(step, output)
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    results[f"gradient of {name}, step {step + 1}"] = parameter.grad.clone()
            model.quantizer.run_init(only_if_complete=True)
    model.hit_steps.synchronize()
    results |= {f"state {name}": tensor.clone() for name, tensor in model.state_dict().items()}
    return results | _validation_results(setup, dtype)


def _validation_results(setup: TrainingSetup, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return code counts per level, losses, number of distinct ids, and indices of the validation split."""
    model, data = setup.model, setup.dataset
    evaluation = evaluate_distributed(model, data.validation, setup.settings.loss)
    level_counts = {f"usage of level {number}": counts for number, counts in enumerate(evaluation.counts)}
    assert data.spec.size or evaluation.distinct
    distinct = [evaluation.distinct.rows, evaluation.distinct.ids] if evaluation.distinct else []
    losses = torch.tensor(list(evaluation.losses.values()), dtype=torch.float64)
    x = data.validation.read(0, len(data.validation))
    model.eval()
    indices = model.encode(x.to(dtype) if x.is_floating_point() else x)
    return {**level_counts, "validation losses": losses, "distinct ids": torch.tensor(distinct), "indices": indices}


def uneven(double: bool) -> dict[str, Tensor]:
    """Train a vector quantizer without a trainer; return gradients and codes of each step and the final state.

    The processes have different numbers of rows (`ROWS`), one of them none. Codes must be equal on all ranks.
    """
    torch.manual_seed(0)
    quantizer = VectorQuantizerSettings.model_validate(_vector(unquantized_fraction=0.3)).build()
    quantizer.to(torch.float64 if double else torch.float32)
    generator = torch.Generator().manual_seed(0)
    results: dict[str, Tensor] = {}
    for step in range(12):
        # The data move from step to step, so that codes die and are reset.
        rows = torch.randn(53, 6, generator=generator, dtype=torch.float64) + step
        vectors = rows.split(ROWS[world_size()])[rank()].to(quantizer.codes.dtype).requires_grad_()
        output = quantizer(vectors)
        if output.commitment_loss.requires_grad:
            gradient = torch.autograd.grad(output.commitment_loss + output.entropy_loss, vectors)[0] / world_size()
            results[f"gradient, step {step + 1}"] = all_gather_rows(gradient)
        quantizer.update()
        results[f"codes, step {step + 1}"] = quantizer.codes.clone()
    codes_of_ranks = all_gather_rows(quantizer.codes[None])
    assert all(torch.equal(codes, codes_of_ranks[0]) for codes in codes_of_ranks), "codes differ between processes"
    return results | {f"state {name}": tensor.clone() for name, tensor in quantizer.state_dict().items()}


def bytes_of_a_step(codes: int, dim: int) -> int:
    """Return the bytes that this process passes to all_reduce in the second step, without the gradients of DDP."""
    quantizer = {"kind": "vector", "codebook_size": codes, "codebook_dim": dim, "init": {"kind": "random"}}
    setup = set_up(RunSettings.model_validate(_case({**quantizer, "sample_entropy_weight": 0.1}, 32)))
    order = BatchOrder(len(setup.dataset.training), 32, 0)
    stepper = Stepper(setup, order)
    batches = BatchLoader(setup.dataset.training, order, 2, setup.device, 0)
    reduced_bytes = []
    all_reduce = dist.all_reduce

    def count_bytes(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        reduced_bytes.append(tensor.nbytes)
        return all_reduce(tensor, *args, **kwargs)

    with fixed_global_batch(32):
        for step in range(2):
            with patch.object(dist, "all_reduce", count_bytes):
                reduced_bytes.clear()
                stepper.backward_and_update(step, stepper.forward(batches.load(step)))
    return sum(reduced_bytes)


def _without(name: str) -> AbstractContextManager[Any]:
    """Context in which the function `name`, a reduction over processes, returns its tensor or list unchanged."""
    return patch(name, lambda *args: next(argument for argument in args if isinstance(argument, Tensor | list)))


def main() -> None:
    """Train the cases and save one file each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, UNEVEN, []], metavar="CASE", help="names of configs")
    parser.add_argument("--to", type=Path, required=True, help="folder for the results; with --traffic, a file")
    parser.add_argument("--double", action="store_true", help="train in float64")
    parser.add_argument("--steps", type=int, default=20, help="training steps; default: 20")
    parser.add_argument("--without", choices=MUTANTS, metavar="NAME", help="sum over processes to skip")
    parser.add_argument("--traffic", type=int, nargs=2, metavar=("K", "D"), help="count the bytes of a step instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with process_group(), deterministic(), _without(options.without) if options.without else nullcontext():
        if options.traffic:
            step_bytes = bytes_of_a_step(*options.traffic)
            options.to.write_text(str(step_bytes)) if is_rank0() else None
        for case in options.cases:
            results = uneven(options.double) if case == UNEVEN else train_case(case, options.double, options.steps)
            if is_rank0():
                torch.save(results, options.to / f"{case}.pt")


if __name__ == "__main__":
    main()
