"""SIGINT and SIGTERM are recorded, and raised where stopping is safe."""

import signal
import threading

import pytest

from vqtool.errors import Stopped
from vqtool.runtime.progress import pass_bar
from vqtool.runtime.signals import deferred_signals, raise_if_stopped

STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_is_recorded_and_raised_by_raise_if_stopped(number: signal.Signals) -> None:
    with deferred_signals():
        raise_if_stopped()
        signal.raise_signal(number)
        with pytest.raises(Stopped, match=f"stopped by {number.name}") as stopped:
            raise_if_stopped()
    assert stopped.value.signal == number


def test_second_signal_has_its_original_effect() -> None:
    with deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped, match="SIGTERM"):
            raise_if_stopped()


def test_pass_progress_raises_stopped() -> None:
    with deferred_signals(), pass_bar("rows", 3) as bar:
        bar.update()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            bar.update()


def fail_inside(number: int) -> None:
    before = signal.getsignal(number)
    with deferred_signals():
        assert signal.getsignal(number) != before
        raise RuntimeError("out")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_original_handlers_are_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(RuntimeError, match="out"):
        fail_inside(number)
    assert signal.getsignal(number) == before
    with deferred_signals():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_recorded_signal_is_forgotten_at_the_end() -> None:
    with deferred_signals():
        signal.raise_signal(signal.SIGTERM)
    raise_if_stopped()
    with deferred_signals():
        raise_if_stopped()


def test_nested_context_has_no_effect() -> None:
    with deferred_signals():
        with deferred_signals():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            raise_if_stopped()


def test_other_threads_raise_stopped_but_set_no_handlers() -> None:
    unchanged: list[object] = []

    def work() -> None:
        handler = signal.getsignal(signal.SIGINT)
        with deferred_signals():
            unchanged.append(signal.getsignal(signal.SIGINT) == handler)
        with pytest.raises(Stopped):
            raise_if_stopped()

    with deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert unchanged == [True]
