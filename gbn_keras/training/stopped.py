"""Why a training may stop before its end, without a mistake of the user's."""


class Stopped(Exception):
    """A training that stopped before its end; told in one line.

    Attributes:
        exit_code: Of the program. By default that of what the same command, run again,
            goes on with (`EX_TEMPFAIL`).
    """

    exit_code = 75
