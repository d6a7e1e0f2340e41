import signal
import threading

import pytest

from vqtool.errors import Stopped
from vqtool.runtime.progress import pass_bar
from vqtool.runtime.signals import deferred_signals, raise_if_stopped

NUMBERS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_noted_and_heeded_where_it_does_no_harm(number: signal.Signals) -> None:
    with deferred_signals():
        raise_if_stopped()
        signal.raise_signal(number)
        with pytest.raises(Stopped, match=f"stopped by {number.name}") as stopped:
            raise_if_stopped()
    assert stopped.value.signal == number


def test_a_second_interrupt_takes_its_usual_course() -> None:
    with deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped, match="SIGTERM"):
            raise_if_stopped()


def test_every_pass_heeds() -> None:
    with deferred_signals(), pass_bar("rows", 3) as bar:
        bar.update()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            bar.update()


def fail_within(number: int) -> None:
    before = signal.getsignal(number)
    with deferred_signals():
        assert signal.getsignal(number) != before
        raise RuntimeError("out")


@pytest.mark.parametrize("number", NUMBERS)
def test_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(RuntimeError, match="out"):
        fail_within(number)
    assert signal.getsignal(number) == before
    with deferred_signals():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_each_time_starts_without_a_request() -> None:
    with deferred_signals():
        signal.raise_signal(signal.SIGTERM)
    raise_if_stopped()
    with deferred_signals():
        raise_if_stopped()


def test_an_inner_one_changes_nothing() -> None:
    with deferred_signals():
        with deferred_signals():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            raise_if_stopped()


def test_another_thread_heeds_and_handles_nothing() -> None:
    seen: list[object] = []

    def work() -> None:
        handler = signal.getsignal(signal.SIGINT)
        with deferred_signals():
            seen.append(signal.getsignal(signal.SIGINT) == handler)
        with pytest.raises(Stopped):
            raise_if_stopped()

    with deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [True]
