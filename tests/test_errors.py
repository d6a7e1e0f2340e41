"""Messages of the exceptions."""

from vqtool.errors import ConfigError, Stopped


def test_each_argument_is_one_line_with_control_characters_escaped() -> None:
    assert (
        str(ConfigError("a\nb: no such file", "\x1b[2J: unknown key")) == "a\\nb: no such file\n\\x1b[2J: unknown key"
    )


def test_message_of_stopped_does_not_contain_the_signal_number() -> None:
    error = Stopped(15, "stopped by SIGTERM")
    assert (error.signal, str(error)) == (15, "stopped by SIGTERM")
