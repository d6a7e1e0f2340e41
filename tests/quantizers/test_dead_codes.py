"""Dead codes: when a window ends, what takes their place, and what is left alone."""

import pytest
import torch
from pydantic import ValidationError

from tests.quantizers import assert_same_state, state
from vqtool import VectorQuantizer
from vqtool.quantizers import CodebookLossUpdate, EmaUpdate, EntropyOnlyUpdate, SimVQUpdate
from vqtool.quantizers.dead_codes import DeadCodeReset, DeadCodeResetSettings
from vqtool.runtime.distributed import BatchShard

LEARNINGS = [EntropyOnlyUpdate(), CodebookLossUpdate(), EmaUpdate()]


def vectors(n, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 50


def step(revival, codebook, z, indices):
    revival.gather(z, indices, BatchShard.unsharded(len(z)))
    revival.update(codebook)


def book(learning, k, d=3):
    torch.manual_seed(0)
    return learning.build(k, d)


@pytest.mark.parametrize("n", [1, 7, 64, 1000])
@pytest.mark.parametrize("k", [2, 5, 32])
def test_a_window_is_twenty_hits_of_the_average_code(n, k):
    codebook, revival = book(EntropyOnlyUpdate(), k), DeadCodeResetSettings(step_size=1.0).build(k)
    before = codebook.weight.detach().clone()
    steps = -(-20 * k // n)
    for number in range(steps):
        assert torch.equal(codebook.weight, before)
        assert revival.hits.sum() == number * n
        step(revival, codebook, vectors(n, seed=number), (number * n + torch.arange(n)) % (k - 1))  # never the last
    assert (vectors(n, seed=steps - 1) == codebook.weight[-1]).all(dim=1).any()
    assert revival.hits.tolist() == [0] * k


@pytest.mark.parametrize("learning", LEARNINGS)
def test_codes_with_a_single_hit_in_the_window_stay(learning):
    codebook, revival = book(learning, 6), DeadCodeReset(6, window=5)
    before = codebook.weight.detach().clone()
    step(revival, codebook, vectors(1), torch.tensor([4]))
    z = vectors(29, seed=1)
    step(revival, codebook, z, torch.tensor([0, 2] * 14 + [0]))
    alive = [0, 2, 4]
    assert torch.equal(codebook.weight[alive], before[alive])
    for dead in (1, 3, 5):
        assert (z == codebook.weight[dead]).all(dim=1).any()


@pytest.mark.parametrize("least", [1, 2, 4])
def test_codes_with_fewer_hits_than_the_least_are_set_down_anew(least):
    codebook, revival = book(EntropyOnlyUpdate(), 5), DeadCodeReset(5, window=4, least=least)
    before, z = codebook.weight.detach().clone(), vectors(20)
    step(revival, codebook, z, torch.tensor([1] + [2] * 2 + [3] * 4 + [4] * 13))
    moved = (codebook.weight != before).any(dim=1).tolist()
    assert moved == [hits < least for hits in (0, 1, 2, 4, 13)]
    assert DeadCodeResetSettings(min_hits=least).build(5)._least == least


def test_codes_are_set_down_on_different_vectors_where_there_are_enough():
    codebook, revival = book(EntropyOnlyUpdate(), 8), DeadCodeReset(8, window=2)
    z = vectors(16)
    step(revival, codebook, z, torch.zeros(16, dtype=torch.int64))
    rows = [z.tolist().index(code) for code in codebook.weight[1:].tolist()]
    assert len(set(rows)) == 7


@pytest.mark.parametrize("resumed", [None, 0, 1, 2, 3])
def test_more_dead_codes_than_vectors_are_set_down_in_the_steps_that_follow(resumed):
    codebook, revival = book(EntropyOnlyUpdate(), 8), DeadCodeReset(8, window=1, least=3)
    before = codebook.weight.detach().clone()
    step(revival, codebook, vectors(6, seed=9), torch.zeros(6, dtype=torch.int64))
    # Seven are dead: the one of two hits is, too.
    for number, dead in enumerate(([3, 4, 5, 6, 7], [5, 6, 7], [7], [])):
        z = vectors(2, seed=number)
        step(revival, codebook, z, torch.tensor([1, 1]) if not number else torch.tensor([0, 0]))
        assert revival.dead.nonzero()[:, 0].tolist() == dead
        set_down = codebook.weight[1 + 2 * number : 3 + 2 * number]
        assert torch.equal(set_down, z[: len(set_down)])
        assert torch.equal(codebook.weight[[0, *dead]], before[[0, *dead]])
        if number == resumed:
            fresh = DeadCodeReset(8, window=1, least=3)
            fresh.load_state_dict(state(revival))
            revival = fresh
    assert revival.hits.tolist() == [6] + [0] * 7
    assert len({tuple(code) for code in codebook.weight.tolist()}) == 8


@pytest.mark.parametrize("learning", [*LEARNINGS, SimVQUpdate()])
@pytest.mark.parametrize("reach", [0.1, 0.5, 1.0])
def test_a_code_is_set_down_from_another_towards_a_vector(learning, reach):
    codebook, revival = book(learning, 4), DeadCodeResetSettings(window_hits=1, min_hits=1, step_size=reach).build(4)
    before, z = codebook.codes.detach().clone(), vectors(4)
    revival.gather(z[:3], torch.tensor([0, 2, 2]), BatchShard.unsharded(3))
    step(revival, codebook, z[3:], torch.tensor([2]))
    expected = before.clone()  # two are dead: they go by the first and the third of four vectors
    expected[1], expected[3] = before[0] + reach * (z[0] - before[0]), before[2] + reach * (z[2] - before[2])
    torch.testing.assert_close(codebook.codes.detach(), expected, rtol=1e-5, atol=1e-5)


def test_the_next_window_starts_from_nothing():
    codebook, revival = book(EntropyOnlyUpdate(), 3), DeadCodeReset(3, window=2)
    step(revival, codebook, vectors(6), torch.tensor([0, 1, 0, 1, 0, 2]))
    before = codebook.weight.detach().clone()
    step(revival, codebook, vectors(5), torch.tensor([0, 0, 0, 1, 1]))
    assert torch.equal(codebook.weight, before)
    z = vectors(1, seed=9)
    step(revival, codebook, z, torch.tensor([0]))
    assert torch.equal(codebook.weight, torch.cat([before[:2], z]))


def test_the_moving_average_of_a_revived_code_starts_anew_with_the_weight_of_the_average_code():
    codebook, revival = book(EmaUpdate(decay=0.9), 3), DeadCodeReset(3, window=4)
    codebook.gather(vectors(6), torch.tensor([0, 1, 2, 0, 1, 2]))
    codebook.update()
    before = state(codebook)
    z = vectors(12, seed=1)
    step(revival, codebook, z, torch.tensor([0, 2] * 6))
    for name in ("weight", "counts", "sums"):
        assert torch.equal(state(codebook)[name][[0, 2]], before[name][[0, 2]])
    revived, weight = codebook.weight[1].clone(), codebook.counts[1].clone()
    torch.testing.assert_close(weight, before["counts"].mean())
    # Without hits it stays where it was set down; those that it wins draw it by what they weigh beside that.
    codebook.gather(vectors(2, seed=2), torch.tensor([0, 0]))
    codebook.update()
    torch.testing.assert_close(codebook.weight[1], revived)
    codebook.gather(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), torch.tensor([1, 1]))
    codebook.update()
    kept, taken = 0.9 * weight, 0.1 * 2
    torch.testing.assert_close(codebook.weight[1], (kept * revived + taken * 2) / (kept + taken))


def test_codes_under_a_linear_map_land_on_vectors_too():
    codebook, revival = book(SimVQUpdate(), 4), DeadCodeReset(4, window=2)
    with torch.no_grad():
        codebook.transform.copy_(torch.randn(3, 3, generator=torch.Generator().manual_seed(4)))
    before = codebook.codes.detach().clone()
    z = vectors(8) - 50
    step(revival, codebook, z, torch.tensor([0, 3] * 4))
    torch.testing.assert_close(codebook.codes[[0, 3]], before[[0, 3]])
    for dead in (1, 2):
        assert torch.isclose(z, codebook.codes[dead], atol=1e-5).all(dim=1).any()


def test_gathering_alone_changes_no_state():
    codebook, revival = book(EntropyOnlyUpdate(), 4), DeadCodeReset(4, window=1)
    before = state(revival), state(codebook)
    revival.gather(vectors(20), torch.zeros(20, dtype=torch.int64), BatchShard.unsharded(20))
    assert_same_state(state(revival), before[0])
    assert_same_state(state(codebook), before[1])


def test_batches_gathered_before_one_update_count_together():
    codebook, revival = book(EntropyOnlyUpdate(), 4), DeadCodeReset(4, window=3)
    revival.gather(vectors(6), torch.tensor([1] * 6), BatchShard.unsharded(6))
    step(revival, codebook, vectors(5, seed=1), torch.tensor([0, 0, 0, 2, 2]))
    assert revival.hits.tolist() == [3, 6, 2, 0]


def test_discarded_batches_count_for_nothing():
    codebook, revival = book(EntropyOnlyUpdate(), 4), DeadCodeReset(4, window=1)
    before = codebook.weight.detach().clone()
    revival.gather(vectors(20), torch.zeros(20, dtype=torch.int64), BatchShard.unsharded(20))
    revival.discard()
    revival.update(codebook)
    assert revival.hits.tolist() == [0] * 4
    assert torch.equal(codebook.weight, before)


def test_a_window_goes_on_from_the_state_dict():
    one, other = (
        VectorQuantizer(8, 3, update=EmaUpdate(), dead_code_reset=DeadCodeResetSettings(window_hits=4)).train()
        for _ in range(2)
    )
    for seed in range(5):
        one(vectors(5, seed=seed))
        one.update()
    assert one.revival.hits.sum() == 25
    other.load_state_dict(one.state_dict())
    before = one.codebook.weight.clone()
    for model in (one, other):
        model(vectors(7, seed=5))
        model.update()
    assert_same_state(state(one), state(other))
    assert one.revival.hits.sum() == 0
    assert not torch.equal(one.codebook.weight, before)


@pytest.mark.parametrize(("reach", "steps"), [(1.0, 6), (0.1, 80)])
@pytest.mark.parametrize("learning", [*LEARNINGS, SimVQUpdate()])
def test_a_quantizer_far_from_its_vectors_comes_to_use_every_code(learning, reach, steps):
    torch.manual_seed(0)
    model = VectorQuantizer(
        8, 3, update=learning, dead_code_reset=DeadCodeResetSettings(window_hits=2, step_size=reach)
    ).train()
    z = torch.randn(64, 3) + 50
    assert len(set(model(z).indices.tolist())) < 3
    model.update()
    for _ in range(steps):
        model(z)
        model.update()
    assert len(set(model(z).indices.tolist())) >= 7


def test_no_revival_leaves_dead_codes_where_they_are():
    model = VectorQuantizer(8, 3, update=EmaUpdate()).train()
    before = model.codebook.weight.clone()
    for _ in range(40):
        model(vectors(64))
        model.update()
    dead = torch.bincount(model.encode(vectors(64)), minlength=8) == 0
    assert torch.equal(model.codebook.weight[dead], before[dead])
    assert dead.any()


def test_a_window_is_at_least_one_hit():
    assert DeadCodeResetSettings().window_hits == 20
    with pytest.raises(ValidationError, match="window_hits"):
        DeadCodeResetSettings(window_hits=0)


@pytest.mark.parametrize("reach", [0.0, -0.1, 1.1])
def test_a_revived_code_goes_some_way_and_no_further_than_its_vector(reach):
    with pytest.raises(ValidationError, match="step_size"):
        DeadCodeResetSettings(step_size=reach)


@pytest.mark.parametrize("key", ["window_hits", "min_hits"])
def test_more_hits_than_can_be_counted_are_refused(key):
    with pytest.raises(ValidationError, match="less than or equal to"):
        DeadCodeResetSettings(**{key: 2**63})
