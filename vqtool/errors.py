"""What a user can be told. Raised where the fault is found, printed in one place: the command line."""


def escape_control(text: str) -> str:
    """One line, with everything that is no visible character written as an escape: a line break as \\n."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


class VqtoolError(Exception):
    """Something the user can mend; its text says what and how.

    Args:
        lines: of the message. They name files, keys and values as these call themselves, and are made printable here.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(escape_control(line) for line in self.args)


class ConfigError(VqtoolError):
    """The settings are wrong, or do not fit the data."""


class DataError(VqtoolError):
    """A tensor file or an index file cannot be used."""


class CheckpointError(VqtoolError):
    """A run directory, or a file in it, cannot be used."""


class TrainingError(VqtoolError):
    """Training cannot go on: a number is not finite, a finding stays severe, or a process of the job has ended."""


class Stopped(VqtoolError):
    """A signal ended training; the state is saved.

    Attributes:
        signal: the number of the signal.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal
