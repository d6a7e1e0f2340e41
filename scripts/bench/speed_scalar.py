"""Time of a training step of quantizers without a learned codebook, for few and for many codes."""

from collections.abc import Callable, Iterator
from typing import Any

from bench.timing import Measurement, compare_timings, time_alternately
from vqtool.config import RunSettings
from vqtool.data import BatchOrder
from vqtool.training.setup import set_up
from vqtool.training.step import Stepper

# Settings of each kind for 2^8 codes and for 2^18 codes.
_SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fsq": ({"levels": [4] * 4}, {"levels": [8] * 6}),
    "lfq": ({"bits": 8}, {"bits": 18}),
    "bsq": ({"bits": 8}, {"bits": 18}),
}
_BATCH_SIZE = 4096


def scalar(turns: int) -> Iterator[Measurement]:
    """Time a step of an MLP of width 256 with each quantizer, at K = 2^18 and K = 2^8."""
    for kind, (few, many) in _SETTINGS.items():
        seconds = time_alternately({"few": _step({"kind": kind, **few}), "many": _step({"kind": kind, **many})}, turns)
        yield compare_timings(f"step of {kind}, K = 2^18", seconds["many"], "vqtool, K = 2^8", seconds["few"])


def _step(quantizer: dict[str, Any]) -> Callable[[], None]:
    """Return a function that takes a training step with this quantizer block, each time on the same batch."""
    settings = RunSettings.model_validate(
        {
            "data": {"kind": "synthetic", "samples": 2 * _BATCH_SIZE, "source": {"kind": "gaussian", "dim": 64}},
            "model": {"encoder": {"kind": "mlp", "width": 256, "layers": 2}, "quantizer": quantizer},
            "loss": {"entropy": 0.1},
            "training": {"batch_size": _BATCH_SIZE, "device": "cpu"},
        }
    )
    prepared = set_up(settings)
    order = BatchOrder(len(prepared.dataset.training), _BATCH_SIZE, 0)
    stepper, x = Stepper(prepared, order), prepared.dataset.training.take(order.batch(0))

    def step() -> None:
        stepper.backward_and_update(0, stepper.forward(x))

    return step
