"""Which settings class stands under a key."""

import pytest

from vqtool.config import RunSettings, TrainingSettings
from vqtool.config.fields import block_at, blocks_under
from vqtool.data import DataKind
from vqtool.data.settings import SyntheticSettings, TensorsSettings
from vqtool.data.synthetic.tiles import TilesSettings
from vqtool.models.encoders.mlp import MlpSettings
from vqtool.quantizers import EmaUpdate
from vqtool.runtime.settings import Settings


def test_a_plain_block_has_no_kind() -> None:
    assert blocks_under(RunSettings, "training") == {"": TrainingSettings}


def test_a_union_has_a_class_for_each_kind() -> None:
    assert blocks_under(RunSettings, "data") == {"tensors": TensorsSettings, "synthetic": SyntheticSettings}


def test_a_union_that_may_be_left_out_has_the_same_kinds() -> None:
    model = blocks_under(RunSettings, "model")[""]
    assert blocks_under(model, "decoder") == blocks_under(model, "encoder")


@pytest.mark.parametrize("key", ["seed", "name", "nothing"])
def test_a_leaf_and_an_unknown_key_have_no_class(key: str) -> None:
    assert blocks_under(RunSettings, key) == {}


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
def test_a_path_leads_to_the_class_that_the_kinds_choose(path: tuple[str, ...], block: type[Settings] | None) -> None:
    values = {
        "data": {"kind": "synthetic", "source": {"kind": "tiles"}},
        "model": {
            "encoder": {"kind": "mlp"},
            "quantizer": {"kind": "vector", "update": {"kind": "ema"}},
            "decoder": {"kind": "no such"},
        },
        "training": {"steps": 3},
    }
    assert block_at(RunSettings, values, path) is block


def test_every_member_of_a_union_is_found_by_the_kind_that_it_validates() -> None:
    class Holder(Settings):
        data: DataKind

    for kind, member in blocks_under(Holder, "data").items():
        needed = {"tensors": {"path": "x.npy"}, "synthetic": {"source": {"kind": "gaussian"}}}[kind]
        assert type(Holder.model_validate({"data": {"kind": kind, **needed}}).data) is member
