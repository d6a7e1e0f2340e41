"""What a training step costs where there is no codebook to search, for few codes and for many."""

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from turns import Figure, seconds, spread

from vqtool.config import RunSettings
from vqtool.data import BatchOrder
from vqtool.training.prepare import prepare
from vqtool.training.step import Stepper

# 2^8 and 2^18 codes.
_SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fsq": ({"levels": [4] * 4}, {"levels": [8] * 6}),
    "lfq": ({"bits": 8}, {"bits": 18}),
    "bsq": ({"bits": 8}, {"bits": 18}),
}
_BATCH = 4096
_MOST = 1.5


def scalar(turns: int) -> Iterator[Figure]:
    """A step of a perceptron of width 256 with each quantizer, at K = 2^18 against K = 2^8."""
    for kind, (few, many) in _SIZES.items():
        taken = seconds({"few": _step({"kind": kind, **few}), "many": _step({"kind": kind, **many})}, turns)
        ratio = median(taken["many"]) / median(taken["few"])
        what = f"step of {kind}: K = 2^18, against 2^8"
        yield Figure(what, spread(taken["many"]), spread(taken["few"]), ratio, f"at most {_MOST:g}", ratio <= _MOST)


def _step(quantizer: dict[str, Any]) -> Callable[[], None]:
    settings = RunSettings.model_validate(
        {
            "data": {"kind": "synthetic", "samples": 2 * _BATCH, "source": {"kind": "gaussian", "dim": 64}},
            "model": {"encoder": {"kind": "mlp", "width": 256, "layers": 2}, "quantizer": quantizer},
            "loss": {"entropy": 0.1},
            "training": {"batch_size": _BATCH, "device": "cpu"},
        }
    )
    prepared = prepare(settings)
    order = BatchOrder(len(prepared.dataset.training), _BATCH, 0)
    stepper, x = Stepper(prepared, order), prepared.dataset.training.take(order.batch(0))

    def step() -> None:
        stepper.apply(0, stepper.forward(x))

    return step
