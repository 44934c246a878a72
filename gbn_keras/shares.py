"""`Shares`: which of a batch's shares a data set gives."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shares:
    """Some of the equal, contiguous shares into which replicas cut each batch.

    The default is the only share: the whole batch.

    Attributes:
        replicas: Number of shares of a batch, one for each replica.
        first: Index of the first share to give, counted from 0.
        number: Number of consecutive shares to give.
    """

    replicas: int = 1
    first: int = 0
    number: int = 1


WHOLE_BATCH = Shares()
