"""What a user is told, a line for each argument."""

from vqtool.errors import ConfigError, Stopped


def test_each_argument_is_a_line_and_none_can_add_one() -> None:
    assert (
        str(ConfigError("a\nb: no such file", "\x1b[2J: unknown key")) == "a\\nb: no such file\n\\x1b[2J: unknown key"
    )


def test_a_message_keeps_its_signal_to_itself() -> None:
    error = Stopped(15, "stopped by SIGTERM")
    assert (error.signal, str(error)) == (15, "stopped by SIGTERM")
