"""Bars, beside processes that are forked."""

import os
import signal
import threading

import pytest

from vqtool.progress import Bar, pass_bar, step_bar

PATIENCE = 20

# From Python 3.12 on a fork beside threads warns: its child has none of them.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def use_bars() -> None:
    for bar in (pass_bar("rows", 1), step_bar(1, 0)):
        with bar:
            bar.update()


def test_a_child_process_killed_while_it_draws_a_bar_stops_no_bar_of_its_parent():
    use_bars()
    child = os.fork()
    if not child:
        Bar.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    thread = threading.Thread(target=use_bars, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_child_process_forked_while_a_thread_draws_a_bar_can_draw_its_own():
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with Bar.get_lock():
            held.set()
            done.wait(PATIENCE)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(PATIENCE)
    child = os.fork()
    if not child:
        signal.alarm(PATIENCE)
        use_bars()
        os._exit(0)
    done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
