"""Keys and values of earlier versions are errors that name the key of today."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from vqtool.config import load_config
from vqtool.errors import ConfigError

VECTOR = {
    "kind": "vector",
    "init": {"kind": "kmeans"},
    "update": {"kind": "ema"},
    "dead_code_reset": {},
    "temperature_unit": "absolute",
}
QUANTIZER, ENCODER = "model.quantizer", "model.encoder"

# The block to begin with: key, old key, a value it had, new key.
KEYS: list[tuple[dict[str, Any], str, str, Any, str]] = [
    (VECTOR, QUANTIZER, "start", {"kind": "kmeans", "vectors": 64}, "init"),
    (VECTOR, f"{QUANTIZER}.init", "vectors", 64, "latents_per_code"),
    (VECTOR, QUANTIZER, "learning", {"kind": "ema", "decay": 0.9, "memory": 15.0}, "update"),
    (VECTOR, f"{QUANTIZER}.update", "memory", 15.0, "min_ema_hits"),
    (VECTOR, QUANTIZER, "revival", {"window": 20, "least": 2, "reach": 0.1}, "dead_code_reset"),
    (VECTOR, QUANTIZER, "revival", None, "dead_code_reset"),
    (VECTOR, f"{QUANTIZER}.dead_code_reset", "window", 20, "window_hits"),
    (VECTOR, f"{QUANTIZER}.dead_code_reset", "least", 2, "min_hits"),
    (VECTOR, f"{QUANTIZER}.dead_code_reset", "reach", 0.1, "step_size"),
    (VECTOR, QUANTIZER, "gradient", "rotation", "gradient_estimator"),
    (VECTOR, QUANTIZER, "bypass", 0.25, "unquantized_fraction"),
    (VECTOR, QUANTIZER, "balance", {"kind": "sinkhorn"}, "assignment"),
    (VECTOR, QUANTIZER, "balance", None, "assignment"),
    (VECTOR, QUANTIZER, "confidence", 0.5, "sample_entropy_weight"),
    ({"kind": "residual", "quantizer": VECTOR}, QUANTIZER, "beam", 4, "beam_size"),
    ({"kind": "residual", "quantizer": VECTOR}, QUANTIZER, "dropout", 0.5, "level_dropout"),
    ({"kind": "residual", "quantizer": VECTOR}, f"{QUANTIZER}.quantizer", "learning", {"kind": "ema"}, "update"),
    ({"kind": "product", "quantizer": VECTOR}, f"{QUANTIZER}.quantizer", "revival", None, "dead_code_reset"),
    ({"kind": "fsq", "levels": [4, 4]}, QUANTIZER, "confidence", 0.5, "sample_entropy_weight"),
    ({"kind": "lfq", "bits": 4}, QUANTIZER, "confidence", 0.5, "sample_entropy_weight"),
    ({"kind": "conv1d"}, ENCODER, "halvings", 2, "downsamples"),
    ({"kind": "conv1d"}, ENCODER, "blocks", 2, "res_blocks"),
    ({"kind": "conv2d"}, ENCODER, "halvings", 2, "downsamples"),
    ({"kind": "conv2d"}, ENCODER, "blocks", 2, "res_blocks"),
    ({"kind": "mlp"}, ENCODER, "positions", 4, "num_tokens"),
    ({"kind": "transformer"}, ENCODER, "positions", 4, "num_tokens"),
    ({"kind": "transformer"}, ENCODER, "patch", 4, "patch_size"),
]

# Key, old value, new value.
VALUES = [
    (f"{QUANTIZER}.update.kind", "linear", "simvq"),
    (f"{QUANTIZER}.update.kind", "entropy", "entropy_only"),
    (f"{QUANTIZER}.temperature_unit", "squared", "absolute"),
    (f"{QUANTIZER}.temperature_unit", "error", "quantization_error"),
]

IDS = [f"{block['kind']}-{old}" for block, _, old, _, _ in KEYS]


def config(folder: Path, block: dict[str, Any], key: str = "", value: Any = None) -> Path:
    """A config with this encoder or quantizer, and with a value at a dotted key of it."""
    encoder = block if block["kind"] in ("conv1d", "conv2d", "mlp", "transformer") else {"kind": "mlp"}
    model = {"encoder": encoder, "quantizer": VECTOR if encoder is block else block}
    tree = yaml.safe_load(yaml.safe_dump({"data": {"kind": "tensors", "path": "x.npy"}, "model": model}))
    if key:
        *outer, last = key.split(".")
        inner = tree
        for name in outer:
            inner = inner[name]
        inner[last] = value
    (folder / "c.yaml").write_text(yaml.safe_dump(tree))
    return folder / "c.yaml"


def error(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(("block", "at", "old", "value", "new"), KEYS, ids=IDS)
def test_an_old_key_names_the_new_one(
    block: dict[str, Any], at: str, old: str, value: Any, new: str, tmp_path: Path
) -> None:
    message = error(config(tmp_path, block, f"{at}.{old}", value))
    assert f" {at}.{old}: unknown key; did you mean {new}?" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(("block", "at", "old", "value", "new"), KEYS, ids=IDS)
def test_an_old_key_that_is_set_names_the_new_one(
    block: dict[str, Any], at: str, old: str, value: Any, new: str, tmp_path: Path
) -> None:
    pairs = {f"{at}.{old}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {}
    for key, inner in (pairs or {f"{at}.{old}": value}).items():
        override = f"{key}={yaml.safe_dump(inner).splitlines()[0]}"
        message = error(config(tmp_path, block), override)
        subject = f"--set {key}" if key == f"{at}.{old}" else f"--set {key}: {at}.{old}"
        assert message == f"{subject}: unknown key; did you mean {new}?"


@pytest.mark.parametrize(("key", "old", "new"), VALUES, ids=lambda value: value)
def test_an_old_value_names_the_new_one(key: str, old: str, new: str, tmp_path: Path) -> None:
    for message in (error(config(tmp_path, VECTOR, key, old)), error(config(tmp_path, VECTOR), f"{key}={old}")):
        assert f" {key}: " in message
        assert f"did you mean {new}?" in message


@pytest.mark.parametrize(
    ("block", "key"),
    [({"kind": "conv2d"}, f"{ENCODER}.patch"), ({"kind": "mlp"}, f"{ENCODER}.dropout"), (VECTOR, "training.beam")],
)
def test_an_old_key_elsewhere_names_no_key_that_is_not_valid_there(
    block: dict[str, Any], key: str, tmp_path: Path
) -> None:
    message = error(config(tmp_path, block), f"{key}=1")
    assert f"--set {key}: unknown key" in message
    assert not any(f"did you mean {new}?" in message for new in ("patch_size", "level_dropout", "beam_size"))
