"""Dead-code reset (windows, reset positions, unchanged codes), and the first and last hit steps of codes."""

import pickle

import pytest
import torch
from pydantic import ValidationError

from tests.quantizers import assert_same_state, state
from vqtool import VectorQuantizer
from vqtool.quantizers import CodebookLossUpdate, EmaUpdate, EntropyOnlyUpdate, SimVQUpdate
from vqtool.quantizers.dead_codes import DeadCodeReset, DeadCodeResetSettings, HitSteps
from vqtool.runtime.distributed import BatchShard

UPDATES = [EntropyOnlyUpdate(), CodebookLossUpdate(), EmaUpdate()]


def vectors(n, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 50


def step(reset, codebook, z, indices):
    reset.accumulate(z, indices, BatchShard.unsharded(len(z)))
    reset.update(codebook)


def build_codebook(update, k, d=3):
    torch.manual_seed(0)
    return update.build(k, d)


@pytest.mark.parametrize("n", [1, 7, 64, 1000])
@pytest.mark.parametrize("k", [2, 5, 32])
def test_a_window_ends_at_twenty_mean_hits_per_code(n, k):
    codebook, reset = build_codebook(EntropyOnlyUpdate(), k), DeadCodeResetSettings(step_size=1.0).build(k)
    before = codebook.weight.detach().clone()
    steps = -(-20 * k // n)
    for number in range(steps):
        assert torch.equal(codebook.weight, before)
        assert reset.hits.sum() == number * n
        indices = (number * n + torch.arange(n)) % (k - 1)  # never the last code
        step(reset, codebook, vectors(n, seed=number), indices)
    assert (vectors(n, seed=steps - 1) == codebook.weight[-1]).all(dim=1).any()
    assert reset.hits.tolist() == [0] * k


@pytest.mark.parametrize("update", UPDATES)
def test_a_code_with_one_hit_in_the_window_is_not_reset(update):
    codebook, reset = build_codebook(update, 6), DeadCodeReset(6, window_hits=5)
    before = codebook.weight.detach().clone()
    step(reset, codebook, vectors(1), torch.tensor([4]))
    z = vectors(29, seed=1)
    step(reset, codebook, z, torch.tensor([0, 2] * 14 + [0]))
    hit = [0, 2, 4]
    assert torch.equal(codebook.weight[hit], before[hit])
    for dead in (1, 3, 5):
        assert (z == codebook.weight[dead]).all(dim=1).any()


@pytest.mark.parametrize("min_hits", [1, 2, 4])
def test_codes_with_fewer_than_min_hits_are_reset(min_hits):
    codebook = build_codebook(EntropyOnlyUpdate(), 5)
    reset = DeadCodeResetSettings(window_hits=4, min_hits=min_hits, step_size=1.0).build(5)
    before, z = codebook.weight.detach().clone(), vectors(20)
    step(reset, codebook, z, torch.tensor([1] + [2] * 2 + [3] * 4 + [4] * 13))
    moved = (codebook.weight != before).any(dim=1).tolist()
    assert moved == [hits < min_hits for hits in (0, 1, 2, 4, 13)]


def test_codes_are_reset_to_different_vectors_of_the_batch():
    codebook, reset = build_codebook(EntropyOnlyUpdate(), 8), DeadCodeReset(8, window_hits=2)
    z = vectors(16)
    step(reset, codebook, z, torch.zeros(16, dtype=torch.int64))
    rows = [z.tolist().index(code) for code in codebook.weight[1:].tolist()]
    assert len(set(rows)) == 7


@pytest.mark.parametrize("resumed", [None, 0, 1, 2, 3])
def test_dead_codes_beyond_the_batch_size_are_reset_in_later_steps(resumed):
    codebook, reset = build_codebook(EntropyOnlyUpdate(), 8), DeadCodeReset(8, window_hits=1, min_hits=3)
    before = codebook.weight.detach().clone()
    step(reset, codebook, vectors(6, seed=9), torch.zeros(6, dtype=torch.int64))
    # Codes 1 to 7 are dead: code 1 has only two hits.
    for number, dead in enumerate(([3, 4, 5, 6, 7], [5, 6, 7], [7], [])):
        z = vectors(2, seed=number)
        step(reset, codebook, z, torch.tensor([1, 1]) if not number else torch.tensor([0, 0]))
        assert reset.dead.nonzero()[:, 0].tolist() == dead
        reset_codes = codebook.weight[1 + 2 * number : 3 + 2 * number]
        assert torch.equal(reset_codes, z[: len(reset_codes)])
        assert torch.equal(codebook.weight[[0, *dead]], before[[0, *dead]])
        if number == resumed:
            fresh = DeadCodeReset(8, window_hits=1, min_hits=3)
            fresh.load_state_dict(state(reset))
            reset = fresh
    assert reset.hits.tolist() == [6] + [0] * 7
    assert len({tuple(code) for code in codebook.weight.tolist()}) == 8


@pytest.mark.parametrize("update", [*UPDATES, SimVQUpdate()])
@pytest.mark.parametrize("step_size", [0.1, 0.5, 1.0])
def test_a_reset_code_lies_between_an_existing_code_and_its_vector(update, step_size):
    codebook, reset = (
        build_codebook(update, 4),
        DeadCodeResetSettings(window_hits=1, min_hits=1, step_size=step_size).build(4),
    )
    before, z = codebook.codes.detach().clone(), vectors(4)
    reset.accumulate(z[:3], torch.tensor([0, 2, 2]), BatchShard.unsharded(3))
    step(reset, codebook, z[3:], torch.tensor([2]))
    expected = before.clone()  # codes 1 and 3 are dead; of the four vectors, the first and the third are used
    expected[1], expected[3] = before[0] + step_size * (z[0] - before[0]), before[2] + step_size * (z[2] - before[2])
    torch.testing.assert_close(codebook.codes.detach(), expected, rtol=1e-5, atol=1e-5)


def test_hits_are_zero_at_the_start_of_the_next_window():
    codebook, reset = build_codebook(EntropyOnlyUpdate(), 3), DeadCodeReset(3, window_hits=2)
    step(reset, codebook, vectors(6), torch.tensor([0, 1, 0, 1, 0, 2]))
    before = codebook.weight.detach().clone()
    step(reset, codebook, vectors(5), torch.tensor([0, 0, 0, 1, 1]))
    assert torch.equal(codebook.weight, before)
    z = vectors(1, seed=9)
    step(reset, codebook, z, torch.tensor([0]))
    assert torch.equal(codebook.weight, torch.cat([before[:2], z]))


def test_the_ema_count_of_a_reset_code_is_the_mean_count():
    codebook, reset = build_codebook(EmaUpdate(decay=0.9), 3), DeadCodeReset(3, window_hits=4)
    codebook.accumulate(vectors(6), torch.tensor([0, 1, 2, 0, 1, 2]))
    codebook.update()
    before = state(codebook)
    z = vectors(12, seed=1)
    step(reset, codebook, z, torch.tensor([0, 2] * 6))
    for name in ("weight", "counts", "sums"):
        assert torch.equal(state(codebook)[name][[0, 2]], before[name][[0, 2]])
    reset_code, weight = codebook.weight[1].clone(), codebook.counts[1].clone()
    torch.testing.assert_close(weight, before["counts"].mean())
    # Without hits the code keeps its position; with hits it is the weighted mean of old average and new vectors.
    codebook.accumulate(vectors(2, seed=2), torch.tensor([0, 0]))
    codebook.update()
    torch.testing.assert_close(codebook.weight[1], reset_code)
    codebook.accumulate(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), torch.tensor([1, 1]))
    codebook.update()
    old_weight, new_weight = 0.9 * weight, 0.1 * 2
    torch.testing.assert_close(
        codebook.weight[1], (old_weight * reset_code + new_weight * 2) / (old_weight + new_weight)
    )


def test_codes_of_simvq_are_reset_to_vectors():
    codebook, reset = build_codebook(SimVQUpdate(), 4), DeadCodeReset(4, window_hits=2)
    with torch.no_grad():
        codebook.transform.copy_(torch.randn(3, 3, generator=torch.Generator().manual_seed(4)))
    before = codebook.codes.detach().clone()
    z = vectors(8) - 50
    step(reset, codebook, z, torch.tensor([0, 3] * 4))
    torch.testing.assert_close(codebook.codes[[0, 3]], before[[0, 3]])
    for dead in (1, 2):
        assert torch.isclose(z, codebook.codes[dead], atol=1e-5).all(dim=1).any()


def test_accumulate_changes_no_state():
    codebook, reset = build_codebook(EntropyOnlyUpdate(), 4), DeadCodeReset(4, window_hits=1)
    before = state(reset), state(codebook)
    reset.accumulate(vectors(20), torch.zeros(20, dtype=torch.int64), BatchShard.unsharded(20))
    assert_same_state(state(reset), before[0])
    assert_same_state(state(codebook), before[1])


def test_hits_of_all_batches_before_an_update_are_counted():
    codebook, reset = build_codebook(EntropyOnlyUpdate(), 4), DeadCodeReset(4, window_hits=3)
    reset.accumulate(vectors(6), torch.tensor([1] * 6), BatchShard.unsharded(6))
    step(reset, codebook, vectors(5, seed=1), torch.tensor([0, 0, 0, 2, 2]))
    assert reset.hits.tolist() == [3, 6, 2, 0]


def test_hits_of_discarded_batches_are_not_counted():
    codebook, reset = build_codebook(EntropyOnlyUpdate(), 4), DeadCodeReset(4, window_hits=1)
    before = codebook.weight.detach().clone()
    reset.accumulate(vectors(20), torch.zeros(20, dtype=torch.int64), BatchShard.unsharded(20))
    reset.discard()
    reset.update(codebook)
    assert reset.hits.tolist() == [0] * 4
    assert torch.equal(codebook.weight, before)


def test_a_window_continues_after_loading_the_state_dict():
    one, other = (
        VectorQuantizer(8, 3, update=EmaUpdate(), dead_code_reset=DeadCodeResetSettings(window_hits=4)).train()
        for _ in range(2)
    )
    for seed in range(5):
        one(vectors(5, seed=seed))
        one.update()
    assert one.dead_code_reset.hits.sum() == 25
    other.load_state_dict(one.state_dict())
    before = one.codebook.weight.clone()
    for model in (one, other):
        model(vectors(7, seed=5))
        model.update()
    assert_same_state(state(one), state(other))
    assert one.dead_code_reset.hits.sum() == 0
    assert not torch.equal(one.codebook.weight, before)


@pytest.mark.parametrize(("step_size", "steps"), [(1.0, 6), (0.1, 80)])
@pytest.mark.parametrize("update", [*UPDATES, SimVQUpdate()])
def test_resets_make_a_quantizer_far_from_its_vectors_use_nearly_all_codes(update, step_size, steps):
    torch.manual_seed(0)
    model = VectorQuantizer(
        8, 3, update=update, dead_code_reset=DeadCodeResetSettings(window_hits=2, step_size=step_size)
    ).train()
    z = torch.randn(64, 3) + 50
    assert len(set(model(z).indices.tolist())) < 3
    model.update()
    for _ in range(steps):
        model(z)
        model.update()
    assert len(set(model(z).indices.tolist())) >= 7


def test_without_dead_code_reset_dead_codes_do_not_move():
    model = VectorQuantizer(8, 3, update=EmaUpdate()).train()
    before = model.codebook.weight.clone()
    for _ in range(40):
        model(vectors(64))
        model.update()
    dead = torch.bincount(model.encode(vectors(64)), minlength=8) == 0
    assert torch.equal(model.codebook.weight[dead], before[dead])
    assert dead.any()


def test_window_hits_defaults_to_20_and_must_be_positive():
    assert DeadCodeResetSettings().window_hits == 20
    with pytest.raises(ValidationError, match="window_hits"):
        DeadCodeResetSettings(window_hits=0)


@pytest.mark.parametrize("step_size", [0.0, -0.1, 1.1])
def test_step_size_must_be_in_0_to_1(step_size):
    with pytest.raises(ValidationError, match="step_size"):
        DeadCodeResetSettings(step_size=step_size)


@pytest.mark.parametrize("key", ["window_hits", "min_hits"])
def test_hits_beyond_the_limit_are_refused(key):
    with pytest.raises(ValidationError, match=rf"\b{key}\b"):
        DeadCodeResetSettings(**{key: 2**63})


# HitSteps


def test_hit_steps_of_one_level() -> None:
    hit_steps = HitSteps([4])
    hit_steps.record(torch.tensor([[0, 2], [2, 2]]), 1)
    hit_steps.record(torch.tensor([[2, 3], [3, 3]]), 5)
    ((first, last),) = hit_steps.per_level()
    assert (first.tolist(), last.tolist()) == ([1, 0, 1, 5], [1, 0, 5, 5])


def test_hit_steps_of_levels_of_different_sizes_are_separate() -> None:
    hit_steps = HitSteps([2, 3, 2])
    hit_steps.record(torch.tensor([[[0, 2, 1]], [[0, 1, 1]]]), 7)
    assert [(first.tolist(), last.tolist()) for first, last in hit_steps.per_level()] == [
        ([7, 0], [7, 0]),
        ([0, 7, 7], [0, 7, 7]),
        ([0, 7], [0, 7]),
    ]


def test_hit_steps_ignore_a_non_finite_step() -> None:
    hit_steps = HitSteps([2])
    hit_steps.record(torch.tensor([0]), 3, torch.tensor(True))
    hit_steps.record(torch.tensor([0, 1]), 4, torch.tensor(False))
    ((first, last),) = hit_steps.per_level()
    assert (first.tolist(), last.tolist()) == ([3, 0], [3, 0])


def test_hit_steps_are_part_of_the_state_dict() -> None:
    hit_steps, other = HitSteps([3]), HitSteps([3])
    hit_steps.record(torch.tensor([1]), 9)
    other.load_state_dict(hit_steps.state_dict())
    assert set(hit_steps.state_dict()) == {"first", "last"}
    assert [column.tolist() for column in other.per_level()[0]] == [[0, 9, 0], [0, 9, 0]]


def test_hit_steps_do_not_depend_on_the_number_of_buffered_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randint(40, (5, 3), generator=generator) for _ in range(20)]
    first_and_last = []
    for max_indices in (1, 15, 31, 1 << 16):
        hit_steps = HitSteps([50], max_pending_indices=max_indices, max_pending_steps=7)
        for step, indices in enumerate(steps):
            hit_steps.record(indices, step + 1)
            num_pending = step + 1 - int(hit_steps.last.max())  # `last` has the steps that are no longer buffered
            assert num_pending * 15 < max_indices
            assert num_pending < 7
        first_and_last.append([column.tolist() for column in hit_steps.per_level()[0]])
    steps_of_code = [[step + 1 for step, indices in enumerate(steps) if code in indices] for code in range(50)]
    expected = [[min(code, default=0) for code in steps_of_code], [max(code, default=0) for code in steps_of_code]]
    assert first_and_last == [expected] * 4


def test_loading_a_state_dict_drops_buffered_steps() -> None:
    hit_steps = HitSteps([3])
    hit_steps.record(torch.tensor([1]), 9)
    hit_steps.load_state_dict(HitSteps([3]).state_dict())
    assert not any(column.any() for column in hit_steps.per_level()[0])


def test_hit_steps_can_be_pickled() -> None:
    hit_steps = HitSteps([3])
    hit_steps.record(torch.tensor([1]), 9)
    assert [column.tolist() for column in pickle.loads(pickle.dumps(hit_steps)).per_level()[0]] == [[0, 9, 0]] * 2
