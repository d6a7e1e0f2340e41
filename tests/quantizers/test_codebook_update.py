"""The ways of learning: what settings say, and what they build."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from vqtool.quantizers import CodebookLossUpdate, EmaUpdate, EntropyOnlyUpdate, SimVQUpdate
from vqtool.quantizers.codebook import Codebook, GradientCodebook
from vqtool.quantizers.codebook_update import CodebookUpdate
from vqtool.quantizers.ema_codebook import EmaCodebook
from vqtool.quantizers.simvq_codebook import SimVQCodebook
from vqtool.runtime.distributed import BatchShard

KINDS = {
    "entropy_only": (EntropyOnlyUpdate(), Codebook),
    "codebook_loss": (CodebookLossUpdate(), GradientCodebook),
    "simvq": (SimVQUpdate(), SimVQCodebook),
    "ema": (EmaUpdate(), EmaCodebook),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kind_chooses_the_way_and_the_codebook(kind):
    settings, codebook = KINDS[kind]
    assert TypeAdapter(CodebookUpdate).validate_python({"kind": kind}) == settings
    assert type(settings.build(8, 3)) is codebook
    assert settings.build(8, 3).codes.shape == (8, 3)


def test_settings_reach_the_codebook():
    assert EmaUpdate(decay=0.3).build(8, 3).decay == 0.3
    vectors, codes = torch.ones(2, 3), torch.zeros(2, 3)
    for learning in (CodebookLossUpdate(weight=7.0), SimVQUpdate(weight=7.0)):
        assert float(learning.build(8, 3).codebook_loss(vectors, codes, BatchShard.unsharded(len(vectors)))) == 7


@pytest.mark.parametrize("learning", [EntropyOnlyUpdate(), CodebookLossUpdate(), EmaUpdate()])
def test_codes_start_uniform_within_one_over_k(learning):
    torch.manual_seed(0)
    codes = learning.build(200, 100).codes
    assert codes.shape == (200, 100)
    scaled = codes.detach().double().flatten() * 200
    assert -1 <= scaled.min() < -0.99
    assert 0.99 < scaled.max() <= 1
    # Mean 0 and variance 1/3, each within five standard errors of 20,000 draws.
    assert abs(scaled.mean()) < 5 * (1 / 3 / 20_000) ** 0.5
    assert abs(scaled.square().mean() - 1 / 3) < 5 * (4 / 45 / 20_000) ** 0.5


def test_they_say_which_loss_moves_the_codes():
    assert [settings.required_loss for settings, _ in KINDS.values()] == ["entropy", "commitment", "commitment", None]


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_lies_below_one(decay):
    with pytest.raises(ValidationError, match="decay"):
        EmaUpdate(decay=decay)


@pytest.mark.parametrize("learning", [CodebookLossUpdate, SimVQUpdate])
@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf")])
def test_the_weight_of_the_codebook_loss_is_positive(learning, weight):
    with pytest.raises(ValidationError, match="weight"):
        learning(weight=weight)
