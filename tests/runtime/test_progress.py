"""Progress: bars on a terminal, lines elsewhere, and the lock of the bars in forked processes."""

import io
import os
import signal
import sys
import threading

import pytest

from vqtool.runtime.progress import LineWriter, ProgressBar, format_duration, pass_bar, step_bar, with_progress

TIMEOUT_SECONDS = 20

# Python 3.12 and later warn about os.fork in a process with threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make standard error a terminal. Not a fixture, because pytest replaces the stream when a test starts."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines on standard error since the last call; standard output must be empty."""
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


# Bars


def test_pass_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    with pass_bar("scan data.npy", 3000, delay=0):
        assert "scan data.npy:   0%" in stream.getvalue()
        assert "0/3000" in stream.getvalue()


def test_training_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    with step_bar(200, 50, lambda: 61.0) as bar:
        bar.show("loss 0.25")
        bar.update()
    assert "train:  25%" in stream.getvalue()
    assert "51/200" in stream.getvalue()
    assert "loss 0.25  ETA 61 s]" in stream.getvalue()


# Lines


def test_pass_writes_a_line_per_interval(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pass_bar("scan data.npy", 5_000_000, line_writer=LineWriter(10, clock)) as bar:
        for _ in range(25):
            clock.now += 1
            bar.update(100_000)
    assert lines(capsys) == [
        "scan data.npy: 1,000,000 of 5,000,000 rows (20%), ETA 40 s",
        "scan data.npy: 2,000,000 of 5,000,000 rows (40%), ETA 30 s",
    ]


def test_line_of_a_finished_pass_has_no_eta(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pass_bar("validate", 7, line_writer=LineWriter(10, clock)) as bar:
        clock.now += 11
        bar.update(7)
    assert lines(capsys) == ["validate: 7 of 7 rows (100%)"]


def test_with_progress_counts_an_item_after_its_use(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr("vqtool.runtime.progress.PassProgress.update", lambda self, n=1: counted.append(n))
    for item in with_progress(range(3), "generate data"):
        assert len(counted) == item
    assert counted == [1, 1, 1]


def test_eta_can_be_disabled(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pass_bar("dry run", 4, "stages", line_writer=LineWriter(10, clock), eta=False) as bar:
        clock.now += 11
        bar.update()
    assert lines(capsys) == ["dry run: 1 of 4 stages (25%)"]


def test_short_passes_write_a_line_after_the_interval(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shared = LineWriter(10, clock)
    for _ in range(14):
        with pass_bar("validate", 2, line_writer=shared) as bar:
            clock.now += 1.5
            bar.update()
    assert lines(capsys) == ["validate: 1 of 2 rows (50%), ETA 2 s"] * 2


def test_consecutive_passes_share_the_interval(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shared = LineWriter(10, clock)
    for name in ("first", "second", "third"):
        with pass_bar(name, 4, "vectors", line_writer=shared) as bar:
            clock.now += 4
            bar.update()
    assert lines(capsys) == ["third: 1 of 4 vectors (25%), ETA 12 s"]


def test_training_and_passes_inside_it_share_the_interval(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shared = LineWriter(10, clock)
    with step_bar(2000, 298, lambda: 190.0, shared) as steps:
        steps.show("loss 0.5")
        clock.now += 10
        steps.update()
        clock.now += 4
        with pass_bar("validate", 10, line_writer=shared) as bar:
            clock.now += 3
            bar.update()
            clock.now += 3
            bar.update()
        clock.now += 1
        steps.update()
    assert lines(capsys) == ["step 299/2000  loss 0.5  ETA 3 min", "validate: 2 of 10 rows (20%), ETA 24 s"]


def test_without_a_terminal_no_bar_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pass_bar("scan", 3, delay=0) as bar, step_bar(9, 0) as steps:
        bar.update()
        steps.update()
    assert lines(capsys) == []


def test_only_rank_0_shows_progress(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqtool.runtime.progress.is_rank0", lambda: False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shared = LineWriter(10, clock)
    with pass_bar("scan", 3, delay=0, line_writer=shared) as bar, step_bar(9, 0, line_writer=shared) as steps:
        clock.now += 20
        bar.update()
        steps.update()
    assert lines(capsys) == []


def test_control_characters_in_names_are_escaped(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pass_bar("scan a\n\x1b[2J.npy", 2, line_writer=LineWriter(10, clock)) as bar:
        clock.now += 20
        bar.update()
    assert lines(capsys) == ["scan a\\n\\x1b[2J.npy: 1 of 2 rows (50%), ETA 20 s"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "1 s"),
        (1.4, "1 s"),
        (40.2, "40 s"),
        (99.4, "99 s"),
        (100, "2 min"),
        (180, "3 min"),
        (99 * 60, "99 min"),
        (2 * 3600, "2 h 0 min"),
        (7260, "2 h 1 min"),
        (47 * 3600, "47 h 0 min"),
        (76 * 3600, "3 d 4 h"),
    ],
)
def test_format_duration(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


# Forked processes


def use_bars() -> None:
    for bar in (pass_bar("rows", 1), step_bar(1, 0)):
        with bar:
            bar.update()


def test_killed_child_that_held_the_lock_does_not_block_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal(monkeypatch)
    use_bars()
    child = os.fork()
    if not child:
        ProgressBar.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    thread = threading.Thread(target=use_bars, daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    assert not thread.is_alive()


def test_child_forked_while_a_thread_holds_the_lock_can_draw_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ProgressBar.get_lock():
            held.set()
            done.wait(TIMEOUT_SECONDS)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(TIMEOUT_SECONDS)
    child = os.fork()
    if not child:
        signal.alarm(TIMEOUT_SECONDS)
        use_bars()
        os._exit(0)
    done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
