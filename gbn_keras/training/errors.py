"""What the program tells in one line: mistakes of the user's, and early ends."""


class UsageError(ValueError):
    """A mistake of the user's, told in one line: flag, received, wanted, what to do."""


def first_line(error: Exception) -> str:
    """What an error of a library says, for a line that tells it to the user."""
    return next((line for line in str(error).splitlines() if line.strip()), "no reason")


class Stopped(Exception):
    """A training that stopped before its end; told in one line.

    Attributes:
        exit_code: Of the program. By default that of what the same command, run again,
            goes on with (`EX_TEMPFAIL`).
    """

    exit_code = 75


class NotFinite(Stopped):
    """A training diverged: its loss or its gradient is infinite or not a number.

    Args:
        update: The update that is not finite, counted from 1.
        what: What is not finite, with its value.

    Attributes:
        update: As given.
        in_short: What a study or a search says of the training, and goes on.
    """

    exit_code = 3

    def __init__(self, update: int, what: str):
        super().__init__(
            f"update {update:,} is not finite: {what}. The last checkpoint is kept. "
            "Train in another folder with a lower --learning_rate, --warmup_updates or "
            "--clipnorm."
        )
        self.update = update
        self.in_short = f"diverged at update {update:,}: {what}"


class AllDiverged(Stopped):
    """Each training of a study, a sweep or a search diverged."""

    exit_code = NotFinite.exit_code
