"""Time of a training step of quantizers without a learned codebook, for few and for many codes."""

from collections.abc import Callable, Iterator
from typing import Any

from bench.timing import Measurement, compare_timings, time_alternately
from vqtool.config import RunSettings
from vqtool.data import BatchOrder
from vqtool.training.setup import set_up
from vqtool.training.step import Stepper

# 2^8 and 2^18 codes.
_SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fsq": ({"levels": [4] * 4}, {"levels": [8] * 6}),
    "lfq": ({"bits": 8}, {"bits": 18}),
    "bsq": ({"bits": 8}, {"bits": 18}),
}
_BATCH = 4096


def scalar(turns: int) -> Iterator[Measurement]:
    """Time a step of an MLP of width 256 with each quantizer, at K = 2^18 and K = 2^8."""
    for kind, (few, many) in _SIZES.items():
        taken = time_alternately({"few": _step({"kind": kind, **few}), "many": _step({"kind": kind, **many})}, turns)
        yield compare_timings(f"step of {kind}, K = 2^18", taken["many"], "vqtool, K = 2^8", taken["few"])


def _step(quantizer: dict[str, Any]) -> Callable[[], None]:
    settings = RunSettings.model_validate(
        {
            "data": {"kind": "synthetic", "samples": 2 * _BATCH, "source": {"kind": "gaussian", "dim": 64}},
            "model": {"encoder": {"kind": "mlp", "width": 256, "layers": 2}, "quantizer": quantizer},
            "loss": {"entropy": 0.1},
            "training": {"batch_size": _BATCH, "device": "cpu"},
        }
    )
    prepared = set_up(settings)
    order = BatchOrder(len(prepared.dataset.training), _BATCH, 0)
    stepper, x = Stepper(prepared, order), prepared.dataset.training.take(order.batch(0))

    def step() -> None:
        stepper.backward_and_update(0, stepper.forward(x))

    return step
