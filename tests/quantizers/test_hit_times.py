"""When codes were hit first, and last."""

import pickle

import torch

from vqtool.quantizers.hit_times import HitTimes


def test_first_and_last_steps_of_one_level() -> None:
    times = HitTimes([4])
    times.note(torch.tensor([[0, 2], [2, 2]]), 1)
    times.note(torch.tensor([[2, 3], [3, 3]]), 5)
    ((first, last),) = times.levels()
    assert (first.tolist(), last.tolist()) == ([1, 0, 1, 5], [1, 0, 5, 5])


def test_levels_of_different_sizes_are_kept_apart() -> None:
    times = HitTimes([2, 3, 2])
    times.note(torch.tensor([[[0, 2, 1]], [[0, 1, 1]]]), 7)
    assert [(first.tolist(), last.tolist()) for first, last in times.levels()] == [
        ([7, 0], [7, 0]),
        ([0, 7, 7], [0, 7, 7]),
        ([0, 7], [0, 7]),
    ]


def test_a_bad_step_is_not_noted() -> None:
    times = HitTimes([2])
    times.note(torch.tensor([0]), 3, torch.tensor(True))
    times.note(torch.tensor([0, 1]), 4, torch.tensor(False))
    ((first, last),) = times.levels()
    assert (first.tolist(), last.tolist()) == ([3, 0], [3, 0])


def test_times_travel_with_the_model() -> None:
    times, other = HitTimes([3]), HitTimes([3])
    times.note(torch.tensor([1]), 9)
    other.load_state_dict(times.state_dict())
    assert set(times.state_dict()) == {"first", "last"}
    assert [column.tolist() for column in other.levels()[0]] == [[0, 9, 0], [0, 9, 0]]


def test_what_is_kept_is_bounded_and_looked_at_in_any_portions(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randint(40, (5, 3), generator=generator) for _ in range(20)]
    found = []
    for kept in (1, 15, 31, 1 << 16):
        monkeypatch.setattr("vqtool.quantizers.hit_times._KEPT", kept)
        monkeypatch.setattr("vqtool.quantizers.hit_times._STEPS", 7)
        times = HitTimes([50])
        for step, indices in enumerate(steps):
            times.note(indices, step + 1)
            assert len(times._kept) * 15 < kept
            assert len(times._kept) < 7
        found.append([column.tolist() for column in times.levels()[0]])
    hits = [[step + 1 for step, indices in enumerate(steps) if code in indices] for code in range(50)]
    expected = [[min(each, default=0) for each in hits], [max(each, default=0) for each in hits]]
    assert found == [expected] * 4


def test_what_is_kept_is_forgotten_where_other_times_are_loaded() -> None:
    times = HitTimes([3])
    times.note(torch.tensor([1]), 9)
    times.load_state_dict(HitTimes([3]).state_dict())
    assert not any(column.any() for column in times.levels()[0])


def test_times_can_be_pickled() -> None:
    times = HitTimes([3])
    times.note(torch.tensor([1]), 9)
    assert [column.tolist() for column in pickle.loads(pickle.dumps(times)).levels()[0]] == [[0, 9, 0]] * 2
