"""Exceptions shown to the user. They are raised where the problem is found, and printed by the command line alone."""


def escape_control(text: str) -> str:
    """Return the text on one line, with every non-printable character as a Python escape: a line break becomes \\n."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


class VqtoolError(Exception):
    """Base of errors that the user can fix. The message says what is wrong and what to do.

    Args:
        lines: lines of the message. Each may contain file names, keys and values as found in files; `str()` of the
            error escapes their control characters.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(escape_control(line) for line in self.args)


class ConfigError(VqtoolError):
    """The settings are invalid, or do not fit the data or the machine."""


class DataError(VqtoolError):
    """A tensor file or an index file cannot be read or written, or there is not enough memory for the data."""


class CheckpointError(VqtoolError):
    """A run directory, or a file in it, cannot be used."""


class TrainingError(VqtoolError):
    """Training cannot continue: a value is not finite, a severe finding persists, or a process of the job ended."""


class Stopped(VqtoolError):
    """SIGINT or SIGTERM stopped the work; the message says what was saved.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal
