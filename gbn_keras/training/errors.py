"""The errors that the program reports in one line: usage errors and early ends."""

import signal


class UsageError(ValueError):
    """A user's mistake, in one line: flag, received, wanted, what to do."""


def first_line(error: Exception) -> str:
    """The first line of a library's error message, to quote in a one-line message."""
    return next((line for line in str(error).splitlines() if line.strip()), "no reason")


class Stopped(Exception):
    """A training stopped before its end.

    Attributes:
        exit_code: The program's exit code. The default, `EX_TEMPFAIL`, means that the
            same command resumes.
    """

    exit_code = 75


class Interrupted(Stopped):
    """The process received SIGTERM or SIGINT.

    Args:
        number: Number of the signal.
        message: Line that says so.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        if number == signal.SIGINT:
            self.exit_code = 128 + number  # The convention of shells.


class NotFinite(Stopped):
    """A training diverged: its loss or its gradient is infinite or not a number.

    Args:
        update: The update that is not finite, counted from 1.
        what: What is not finite, with its value.

    Attributes:
        update: The update that is not finite, counted from 1.
        in_short: A shorter message, for a study or a search, which continues.
    """

    exit_code = 3

    def __init__(self, update: int, what: str):
        super().__init__(
            f"update {update:,} is not finite: {what}. The last checkpoint is kept. "
            "In another --run_dir, lower --learning_rate, or set --warmup_updates or "
            "--clipnorm."
        )
        self.update = update
        self.in_short = f"diverged at update {update:,}: {what}"


class AllDiverged(Stopped):
    """All trainings of a study, a sweep or a search diverged."""

    exit_code = NotFinite.exit_code
