"""Exceptions shown to the user. They are raised where the problem is found; only the command line prints them."""


def escape_control(text: str) -> str:
    """Return the text on one line, with every non-printable character as a Python escape: a line break becomes \\n."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


class VqtoolError(Exception):
    """Base of the exceptions shown to the user. The message says what is wrong and what to do.

    Args:
        lines: lines of the message. They may contain file names, keys and values as found in files: `str()` of the
            error escapes control characters in each line, and joins the lines by line breaks.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(escape_control(line) for line in self.args)


class ConfigError(VqtoolError):
    """The settings are invalid, or do not fit the data or the machine."""


class DataError(VqtoolError):
    """Data, samples or indices cannot be used, a file of any kind cannot be written, or memory is too small."""


class CheckpointError(VqtoolError):
    """A run directory or a file in it cannot be used; an invalid config.yaml is a ConfigError instead."""


class TrainingError(VqtoolError):
    """Training cannot continue: a value is not finite, a severe finding persists, or a process of the job ended."""


class Stopped(VqtoolError):
    """SIGINT or SIGTERM stopped the work. The message names the signal and, after training, says what was saved.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal
