import signal
import threading

import pytest

from vqtool.training.signals import stop_requests

NUMBERS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_noted(number: signal.Signals) -> None:
    with stop_requests() as stop:
        assert stop.signal is None
        signal.raise_signal(number)
        assert stop.signal == number


def test_a_second_interrupt_takes_its_usual_course() -> None:
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGTERM


def fail_within(number: int) -> None:
    before = signal.getsignal(number)
    with stop_requests():
        assert signal.getsignal(number) != before
        raise RuntimeError("out")


@pytest.mark.parametrize("number", NUMBERS)
def test_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(RuntimeError, match="out"):
        fail_within(number)
    assert signal.getsignal(number) == before
    with stop_requests():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_each_time_starts_without_a_request() -> None:
    with stop_requests():
        signal.raise_signal(signal.SIGTERM)
    with stop_requests() as stop:
        assert stop.signal is None


def test_beside_the_main_thread_nothing_is_touched() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with stop_requests() as stop:
            seen.extend([stop.signal, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None, before]
