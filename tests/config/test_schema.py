"""Lookup of the settings class at a key of the config."""

import pytest

from vqtool.config import RunSettings, TrainingSettings
from vqtool.config.schema import settings_by_kind, settings_class_at
from vqtool.data import AnyDataSettings
from vqtool.data.settings import SyntheticSettings, TensorsSettings
from vqtool.data.synthetic import TilesSettings
from vqtool.models.encoders.mlp import MlpSettings
from vqtool.quantizers import EmaUpdate
from vqtool.runtime.settings import Settings


def test_block_of_a_single_class_has_no_kind() -> None:
    assert settings_by_kind(RunSettings, "training") == {"": TrainingSettings}


def test_union_has_one_class_per_kind() -> None:
    assert settings_by_kind(RunSettings, "data") == {"tensors": TensorsSettings, "synthetic": SyntheticSettings}


def test_optional_union_has_the_same_kinds() -> None:
    model = settings_by_kind(RunSettings, "model")[""]
    assert settings_by_kind(model, "decoder") == settings_by_kind(model, "encoder")


@pytest.mark.parametrize("key", ["seed", "name", "nothing"])
def test_single_value_and_unknown_key_have_no_class(key: str) -> None:
    assert settings_by_kind(RunSettings, key) == {}


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ((), RunSettings),
        (("training",), TrainingSettings),
        (("data",), SyntheticSettings),
        (("data", "source"), TilesSettings),
        (("model", "encoder"), MlpSettings),
        (("model", "quantizer", "update"), EmaUpdate),
        (("model", "decoder"), None),
        (("training", "steps"), None),
        (("training", "steps", "more"), None),
        (("nothing", "at", 0, "all"), None),
    ],
)
def test_kinds_in_the_config_select_the_class_at_a_path(path: tuple[str, ...], block: type[Settings] | None) -> None:
    values = {
        "data": {"kind": "synthetic", "source": {"kind": "tiles"}},
        "model": {
            "encoder": {"kind": "mlp"},
            "quantizer": {"kind": "vector", "update": {"kind": "ema"}},
            "decoder": {"kind": "unknown"},
        },
        "training": {"steps": 3},
    }
    assert settings_class_at(RunSettings, values, path) is block


def test_every_kind_validates_to_its_class() -> None:
    class Holder(Settings):
        data: AnyDataSettings

    for kind, member in settings_by_kind(Holder, "data").items():
        required = {"tensors": {"path": "x.npy"}, "synthetic": {"source": {"kind": "gaussian"}}}[kind]
        assert type(Holder.model_validate({"data": {"kind": kind, **required}}).data) is member
